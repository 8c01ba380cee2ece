"""Checks the site of docs/: every page is in its navigation, every public name in its reference, and it builds."""

import importlib.util
import inspect
import json
import os
import pkgutil
import re
import shutil
import subprocess
import sys
import tomllib
import typing
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from nanobanana_async import BatchStopped, JobError, JobUncertain, Session, SessionPortal
from nanobanana_async.cli.batch.results import Result
from nanobanana_async.cli.batch.spreadsheet import write_spreadsheet
from nanobanana_async.images.saved import PurchasedImage
from nanobanana_async.ledger.file import current_schema
from nanobanana_async.ledger.postgres.schema import current_tables
from nanobanana_async.report import STATUSES, ReportRow

DOCS = Path(__file__).parent.parent / "docs"
SETTINGS = tomllib.loads((DOCS / "zensical.toml").read_text(encoding="utf-8"))
PAGES = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md") if ".site" not in path.parts}
PUBLIC_MODULES = (
    "",
    ".emulator",
    ".emulator.faults",
    ".emulator.fixtures",
    ".errors",
    ".events",
    ".gateways",
    ".otel",
    ".otel.prometheus",
    ".serve",
    ".testing",
    ".webhooks",
)
"""The modules of "What is public" in compatibility.md."""
NOT_ON_A_PAGE = {
    ".Resolution": "the words that `ImageRequest.resolution` takes",
    ".__version__": "a string",
    ".emulator.EmulatorOptions": "the fields of `EmulatorSettings` as keyword arguments",
    ".emulator.faults.FaultSource": "what the emulator makes of its settings",
    ".emulator.fixtures.pytest_configure": "for pytest",
    ".testing.EPOCH": "a time",
}
"""Public names without text of their own."""
OF_REQUESTS = {"extra.ExtraFields", "references.LocalImage", "references.StoreObject"}
"""What `ImageRequest` makes of mappings, paths and bytes: users pass those."""

VARIABLES = ("## Variables that the library reads", "## Variables that only the command line reads")
"""The sections of settings.md with the environment variables."""


def pages_in(nav: Any) -> list[str]:
    """Return the pages of a navigation, in its order."""
    match nav:
        case str():
            return [nav]
        case dict():
            return [page for inner in nav.values() for page in pages_in(inner)]
        case _:
            return [page for inner in nav for page in pages_in(inner)]


def section(page: str, heading: str) -> str:
    """Return the text of a page below a heading, up to the next one."""
    return re.split(r"^#+ ", (DOCS / page).read_text(encoding="utf-8").partition(f"\n{heading}\n")[2], flags=re.M)[0]


def first_column(text: str) -> list[str]:
    """Return the names in the first column of the first table of a text."""
    table = re.search(r"^\| [^\n]*\n\|[ -|]*\n((?:\|[^\n]*\n)+)", text, re.MULTILINE)
    assert table is not None
    return [name for line in table[1].splitlines() for name in re.findall(r"`([^`]+)`", line.split("|")[1])]


def test_every_page_is_in_the_navigation_once() -> None:
    listed = pages_in(SETTINGS["project"]["nav"])
    assert sorted(listed) == sorted(PAGES)


def labels_in(nav: Any) -> dict[str, str]:
    """Return the labels of a navigation's pages, of those that have one."""
    match nav:
        case dict():
            own = {page: label for label, page in nav.items() if isinstance(page, str)}
            return own | labels_in([inner for inner in nav.values() if not isinstance(inner, str)])
        case list():
            return {page: label for inner in nav for page, label in labels_in(inner).items()}
        case _:
            return {}


def test_page_has_one_title_everywhere() -> None:
    texts = {page: (DOCS / page).read_text(encoding="utf-8") for page in PAGES - {"index.md"}}
    titles = {page: text.partition("\n")[0].removeprefix("# ") for page, text in texts.items()}
    in_navigation = labels_in(SETTINGS["project"]["nav"])
    listed = re.findall(r"^- \[([^\]]+)\]\((\S+)\.html\)", (DOCS / "llms.txt").read_text(encoding="utf-8"), re.M)
    in_list = {f"{page}.md": title for title, page in listed}
    assert len(in_navigation) > 20
    for page, title in titles.items():
        named = (in_navigation.get(page, title), in_list[page.replace("README", "index")])
        assert named == (title, title), page


def test_list_for_language_models_has_every_page_in_order() -> None:
    links = re.findall(r"^- \[[^\]]+\]\((\S+)\.html\): \S", (DOCS / "llms.txt").read_text(encoding="utf-8"), re.M)
    pages = [page.replace("README", "index") for page in pages_in(SETTINGS["project"]["nav"])]
    assert [f"{link}.md" for link in links] == pages


def public_names(module: ModuleType) -> list[str]:
    """Return what a module exports: `__all__`, or without one the classes and functions that it defines."""
    own = {name for name, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__}
    public = [name for name in own if not name.startswith("_") and callable(getattr(module, name))]
    return list(getattr(module, "__all__", public))


def shown_names() -> set[str]:
    """Return the names on the pages of the reference, each by the module that defines it and by that of its page."""
    shown: set[str] = set()
    for page in (DOCS / "reference").glob("*.md"):
        text = page.read_text(encoding="utf-8")
        for path, options in re.findall(r"^::: (\S+)\n((?: +.*\n)*)", text, re.MULTILINE):
            shown.add(path)
            value = pkgutil.resolve_name(path)
            inside = public_names(value) if inspect.ismodule(value) else []
            hidden = re.findall(r'"!(\^[^"]+)"', options)
            names = [f"{path}.{name}" for name in inside if not any(re.search(each, name) for each in hidden)]
            for name in (*names, path):
                value = pkgutil.resolve_name(name)
                shown |= {name, f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', '')}"}
    return shown


def test_every_public_name_is_on_a_reference_page() -> None:
    shown, missing = shown_names(), set()
    for module in (importlib.import_module(f"nanobanana_async{each}") for each in PUBLIC_MODULES):
        for name in public_names(module):
            value, path = getattr(module, name), f"{module.__name__}.{name}"
            if not {path, f"{getattr(value, '__module__', '')}.{name}"} & shown:
                missing.add(path.removeprefix("nanobanana_async"))
    assert missing == NOT_ON_A_PAGE.keys()


def classes_in(annotation: Any) -> set[type]:
    """Return the classes of the package in a type."""
    inner = {each for argument in typing.get_args(annotation) for each in classes_in(argument)}
    ours = inspect.isclass(annotation) and annotation.__module__.startswith("nanobanana_async")
    return {annotation} | inner if ours else inner


def returned_by(owner: type) -> set[type]:
    """Return the classes of the package that public methods, properties and fields of a class give to a user."""
    found: set[type] = set()
    hints = {name: hint for name, hint in typing.get_type_hints(owner).items() if not name.startswith("_")}
    for name, member in inspect.getmembers(owner):
        function = member.fget if isinstance(member, property) else member
        if not name.startswith("_") and inspect.isfunction(function):
            hints[name] = typing.get_type_hints(function).get("return")
    for hint in hints.values():
        found |= classes_in(hint)
    return found


def test_what_sessions_give_out_is_on_a_reference_page() -> None:
    shown, seen = shown_names(), set[type]()
    found: set[type] = {Session, SessionPortal, JobError, BatchStopped, JobUncertain}
    while found:
        seen |= found
        found = {each for owner in found for each in returned_by(owner)} - seen
    assert len(seen) > 10
    missing = {f"{each.__module__}.{each.__name__}" for each in seen} - shown
    assert missing == {f"nanobanana_async.{name}" for name in OF_REQUESTS}


def test_page_of_files_has_the_columns_of_results() -> None:
    text = section("results-files.md", "## results.jsonl")
    row = Result(row=ReportRow(index=0, job_key="a", status="succeeded"))
    assert first_column(text) == list(json.loads(row.to_json()))
    statuses = text[text.index("| `status` | means") :]
    assert first_column(statuses) == list(STATUSES)


def test_page_of_files_has_the_columns_of_the_spreadsheet(tmp_path: Path) -> None:
    row = Result(row=ReportRow(index=0, job_key="a", status="succeeded", metadata={"NAME": 1}))
    write_spreadsheet(tmp_path, lambda: [row], ",")
    columns = (tmp_path / "results.csv").read_text("utf-8-sig").splitlines()[0].split(",")
    named = first_column(section("results-files.md", "## results.csv"))
    assert sorted(named) == sorted(columns)


def test_page_of_files_has_the_columns_of_saved_images() -> None:
    image = PurchasedImage(key="a", task_id="b", index=0)
    named = first_column(section("results-files.md", "## metadata.jsonl"))
    assert sorted(named) == sorted(json.loads(image.line("a.png", "0" * 64)))


def test_page_of_settings_has_each_variable_of_the_code() -> None:
    sources = (path.read_text(encoding="utf-8") for path in (DOCS.parent / "nanobanana_async").rglob("*.py"))
    read = {name for source in sources for name in re.findall(r"\bNANOBANANA_[A-Z_]+\b", source)}
    named = {name for heading in VARIABLES for name in first_column(section("settings.md", heading))}
    assert len(read) > 10
    assert named == read | {"APIMALL_API_KEY", "DEFAPI_API_KEY"}


def test_page_of_compatibility_has_the_versions_of_the_ledgers() -> None:
    text = section("compatibility.md", "## Ledgers")
    assert f"| SQLite | {current_schema().version} |" in text
    assert f"| PostgreSQL | {current_tables().version} |" in text


@pytest.mark.slow
@pytest.mark.timeout(280)
def test_site_builds_strictly(tmp_path: Path) -> None:
    beside = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    if (zensical := shutil.which("zensical", path=beside)) is None:
        pytest.skip("zensical is missing: pip install -e '.[docs]'")
    shutil.copytree(DOCS, tmp_path / "docs", ignore=shutil.ignore_patterns(".site", ".cache"))
    (tmp_path / "nanobanana_async").symlink_to(DOCS.parent / "nanobanana_async")
    command = [zensical, "build", "--strict", "--config-file", "docs/zensical.toml"]
    built = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=250, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    site = tmp_path / "docs/.site"
    assert [
        page for page in PAGES if not (site / page.replace("README.md", "index.md")).with_suffix(".html").is_file()
    ] == []
    reference = "".join(page.read_text(encoding="utf-8") for page in (site / "reference").glob("*.html"))
    wanted = {f'id="nanobanana_async.{name}"' for name in ("Session.generate_many", "errors.JobFailed", "ApiMall")}
    assert {each for each in wanted if each not in reference} == set()
    objects = (
        r'id="([^"]+)" class="doc doc-heading"(?:(?!doc doc-heading).)*?<div class="doc doc-contents[^>]*>\s*</div>'
    )
    silent = [name for name in re.findall(objects, reference, re.DOTALL) if not name.endswith(".advice")]
    assert silent == []  # `advice` is its own text
    shown = re.sub(r"<[^>]+>", "", reference)
    hidden = ("validator=", "_blocking(", "misspelt", "_STARTED_AT", "TrackedJob", "BatchRunner", "BlockingPortal")
    assert [text for text in hidden if text in shown] == []  # docs/reference_extension.py
    assert {path.name for path in site.iterdir() if path.suffix in (".py", ".toml")} == set()
    assert not (site / "examples/studio/page").exists()


def test_what_shows_each_promise_exists() -> None:
    text = (DOCS / "promises.md").read_text(encoding="utf-8")
    paths, modules = re.findall(r"`(tests/[\w/.]+)`", text), re.findall(r"`python -m ([\w.]+)", text)
    assert len(paths) >= 4
    assert len(modules) >= 8
    assert [path for path in paths if not (DOCS.parent / path).exists()] == []
    assert [module for module in modules if importlib.util.find_spec(module) is None] == []
