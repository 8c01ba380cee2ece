"""The report page as a file: its content, and how it is written."""

import base64
import hashlib
import html
import json
import re
import tracemalloc
from collections.abc import Iterator
from decimal import Decimal
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path

import pytest
from attrs import evolve

from nanobanana_async import errors
from nanobanana_async.report import Advice, Credits, ReportRow, write_report
from nanobanana_async.report.phrases import PHRASES
from tests.cli.test_batch_display import STATS
from tests.support.reports import made_rows, made_run, row, without_image

HOSTILE = (
    "<script>window.pwned = 1</script>",
    "</script></style></title><img src=x onerror='window.pwned = 1'>",
    '" onmouseover="window.pwned = 1" x=\'',
    "{{ 7 * 7 }} {% raw %} ${7*7} &lt;b&gt; &amp;",
    "<!-- ]]> --> <plaintext>",
)


class Elements(HTMLParser):
    """Parser that collects the tags and attributes of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Collect the element."""
        self.found.append((tag, dict(attrs)))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        """Return the attributes of each element with this tag."""
        return [attributes for name, attributes in self.found if name == tag]


def written(folder: Path, rows: list[ReportRow], title: str = "spring") -> str:
    """Write the page of some rows and return it."""
    write_report(folder / "index.html", rows, title=title)
    return (folder / "index.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_adds_no_element_or_attribute(tmp_path: Path, text: str) -> None:
    def with_text(text: str) -> list[tuple[str, list[str]]]:
        rows = [
            row(0, prompt=text, key=text, job_key=text, task_id=text, images=(f"images/{text}",), metadata=text),
            without_image(1, "failed", text, error_kind=text, prompt=text, settings={text: text, "resolution": text}),
        ]
        return [(tag, sorted(found)) for tag, found in Elements(written(tmp_path, rows, title=text)).found]

    assert with_text(text) == with_text("x" * len(text))


@pytest.mark.parametrize(
    "name",
    [
        "images/a b.png",
        "//elsewhere.example/a.png",
        "http://elsewhere.example/a.png",
        "javascript:alert(1)",
        "a?b#c.png",
        'a"b.png',
        "data:image/png,x",
        "images/caf\N{LATIN SMALL LETTER E WITH ACUTE}.png",
        "50%25.png",
    ],
)
def test_image_links_are_quoted_relative_paths(tmp_path: Path, name: str) -> None:
    (image,) = [found for found in Elements(written(tmp_path, [row(images=(name,))])).all("img") if found.get("src")]
    source = image["src"]
    assert source is not None
    assert re.fullmatch(r"\./[A-Za-z0-9_.~/%-]+", source)


def test_non_utf_8_file_name_and_lone_surrogate_are_accepted(tmp_path: Path) -> None:
    page = written(tmp_path, [row(images=("images/\udce9.png",)), without_image(1, "failed", "half \ud83d")])
    assert "./images/%E9.png" in page
    assert "half \\ud83d" in page


def test_page_fetches_nothing_and_runs_only_its_script(tmp_path: Path) -> None:
    page = written(tmp_path, [row()])
    (policy,) = [found["content"] for found in Elements(page).all("meta") if "http-equiv" in found]
    assert policy is not None
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "'self' data: file:"
    for tag in ("script", "style"):
        (content,) = re.findall(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert rules[f"{tag}-src"] == f"'sha256-{digest}'"
    assert not re.search(r"https?://(?!www\.w3\.org)", page)
    assert not any(name.startswith("on") or name == "style" for _, found in Elements(page).found for name in found)


def test_each_row_is_a_card(tmp_path: Path) -> None:
    rows = [
        row(0, credits=Decimal("4.50"), images=("images/a-01.png", "images/a-02.png")),
        without_image(1, "refused", "451: blocked", error_kind="PromptBlocked"),
        row(2, images=(), error="the disk is full"),
        row(3, settings={"images": ["https://x.example/1.png"], "model": "m"}, prompt=""),
    ]
    page = written(tmp_path, rows)
    assert Elements(page).all("article")[1]["data-status"] == "refused"
    assert [found["loading"] for found in Elements(page).all("img") if found.get("src")] == ["lazy"] * 3
    for fact in ("4.5 cr", "8.0 s", "451: blocked", "prompt blocked", "the disk is full", "1 reference", "row 4"):
        assert fact in page
    assert page.count('class="quiet copy"') == 3


def test_a_card_says_why_images_are_missing(tmp_path: Path) -> None:
    page = written(tmp_path, [row(0, missing=("image 2: not a <URL>",))])
    assert '<p class="remark" dir="auto">image 2: not a &lt;URL&gt;</p>' in page


def test_the_header_has_counts_and_sums(tmp_path: Path) -> None:
    rows = [
        row(0),
        row(1, credits=Decimal("0.25")),
        without_image(2, "failed", "no"),
        without_image(3, "uncertain"),
    ]
    page = written(tmp_path, rows)
    facts = re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", page)
    assert ("credits spent", "4.25") in facts
    assert "credits reserved" not in dict(facts)
    assert ("succeeded", "2 <small>of 4 rows</small>") in facts
    assert ("failed", "1") in facts
    assert ("uncertain", "1") in facts
    assert re.findall(r'data-status="(\w*)" aria-pressed', page) == ["", "succeeded", "failed", "uncertain"]


@pytest.mark.parametrize(
    ("ratio", "frame"),
    [
        ("16:9", "1.7778"),
        ("9:16", "0.7500"),
        ("21:9", "1.7778"),
        ("4:3", "1.3333"),
        ("auto", "1.0000"),
        (None, "1.0000"),
        ("1:0", "1.0000"),
        ("}body{", "1.0000"),
        ("\N{SUPERSCRIPT TWO}:1", "1.0000"),
    ],
)
def test_the_frame_has_the_most_common_shape(tmp_path: Path, ratio: str | None, frame: str) -> None:
    assert f"--frame:{frame}}}" in written(tmp_path, [row(settings={"aspect_ratio": ratio})])


def test_no_rows_and_one_row_are_valid_pages(tmp_path: Path) -> None:
    assert "No rows yet" in written(tmp_path, [])
    assert ">1 row</span>" in written(tmp_path, [row()])


def test_the_old_page_stays_if_writing_fails(tmp_path: Path) -> None:
    before = written(tmp_path, [row()])

    def torn() -> Iterator[ReportRow]:
        yield row()
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="gone"):
        write_report(tmp_path / "index.html", torn(), title="spring")
    assert [path.name for path in tmp_path.iterdir()] == ["index.html"]
    assert (tmp_path / "index.html").read_text(encoding="utf-8") == before
    assert written(tmp_path, [row(1)]) != before


@pytest.mark.slow
def test_memory_does_not_grow_with_rows(tmp_path: Path) -> None:
    def peak(count: int) -> int:
        tracemalloc.start()
        write_report(tmp_path / "index.html", (row(n, prompt="fog " * 1000) for n in range(count)), title="many")
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    peak(1)
    growth = min(peak(250) - peak(50) for _ in range(3))  # a garbage collection that comes late is no growth
    assert growth / 200 < 700  # bytes a row, of which the card has five thousand


def test_a_full_gallery_still_shows_failed_rows(tmp_path: Path) -> None:
    rows = [row(number) if number % 2 else without_image(number, "failed", "no") for number in range(40)]
    write_report(tmp_path / "index.html", rows, title="many", max_cards=10)
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    shown = [found["data-status"] for found in Elements(page).all("article")]
    assert shown == ["failed", "succeeded"] * 5 + ["failed"] * 10
    assert "shows 20 of 40 rows" in page
    assert "20 <small>of 40 rows</small>" in page


@pytest.mark.parametrize(("rows", "groups"), [(0, 1), (1, 1), (60, 1), (61, 2), (120, 2), (150, 3)])
def test_cards_are_laid_out_in_groups(tmp_path: Path, rows: int, groups: int) -> None:
    found = Elements(written(tmp_path, [row(number) for number in range(rows)]))
    assert len([found for found in found.all("div") if found.get("class") == "grid"]) == groups
    assert len(found.all("article")) == rows


def test_cards_of_rows_without_success_have_advice(tmp_path: Path) -> None:
    rows = [row(0), without_image(1, "failed", "no"), without_image(2, "unfinished")]

    def advice(row: ReportRow) -> Advice:
        return Advice(f"<{row.status}> {row.index}", "run 'a<b' --again" if row.status == "failed" else "")

    write_report(tmp_path / "index.html", rows, title="spring", advice=advice)
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    sentences = re.findall(r'<div class="advice"><p>(.*?)</p>', page)
    assert sentences == ["&lt;failed&gt; 1", "&lt;unfinished&gt; 2"]
    (command,) = re.findall(r"<code title=.*?>(.*?)</code>", page)
    assert command == 'run &#39;a&lt;b&#39; <span class="option">--again</span>'


def test_credits_of_the_ledger_come_before_the_sum_of_the_rows(tmp_path: Path) -> None:
    cost = Credits(spent=Decimal("9.5"), reserved=Decimal(4))
    write_report(tmp_path / "index.html", [row(0)], title="spring", credits=cost)
    facts = dict(re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", (tmp_path / "index.html").read_text(encoding="utf-8")))
    assert facts["credits spent"] == "9.5"
    assert facts["credits reserved"] == "4"


def test_a_page_has_one_running_time(tmp_path: Path) -> None:
    page = written(tmp_path, [row(0), row(30)])
    assert '<p class="when">14 Mar 2026, 09:26 UTC ' in page
    assert "<dt>running time</dt><dd>38 s</dd>" in page
    paused = written(tmp_path, [row(0), row(86_400)])
    assert '<p class="when">14 Mar 2026, 09:26 to 15 Mar 2026, 09:27 UTC ' in paused
    assert "<dt>running time without pauses</dt><dd>16 s</dd>" in paused


@pytest.mark.parametrize("name", sorted(PHRASES))
def test_the_name_of_an_error_class_is_not_shown(tmp_path: Path, name: str) -> None:
    page = written(tmp_path, [without_image(1, "refused", "no", error_kind=name, job_key="k")])
    assert name not in page
    assert PHRASES[name].replace("'", "&#39;") in page


def test_every_error_class_has_a_phrase() -> None:
    assert set(PHRASES) == {name for name, one in vars(errors).items() if _is_error(one)}


def _is_error(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, errors.NanoBananaError)


def test_charts_come_after_the_gallery_and_are_folded(tmp_path: Path) -> None:
    rows = list(made_rows(60))
    write_report(tmp_path / "index.html", rows, title="spring", run=made_run(rows))
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert page.count("<figure") == 4
    assert re.search(r'aria-label="Job slots, \d+ at once, limit 20 learned · 4 refusals"', page)
    assert page.rindex("<article") < page.index('<details class="run" id="run">') < page.index("<figure")
    assert '<a href="#run">Charts of the run</a>' in page


def test_templates_are_packaged() -> None:
    packaged = files("nanobanana_async.report")
    for name in ("page.html.j2", "card.html.j2", "page.css", "page.js"):
        assert packaged.joinpath(name).is_file()


def test_own_key_of_a_row_is_on_its_card_and_the_job_key_in_its_details(tmp_path: Path) -> None:
    page = written(tmp_path, [row(0, key="p01", job_key="5f1c0ffee"), row(1, job_key="5f1c0ffef")])
    assert page.count("<bdi>p01</bdi>") == 1
    assert json.dumps(["key", "p01"]) in html.unescape(page)
    assert json.dumps(["job key", "5f1c0ffee"]) in html.unescape(page)
    assert html.unescape(page).count('["key", ') == 1


def test_head_lists_what_each_of_several_accounts_bought_and_why_one_rests(tmp_path: Path) -> None:
    rows = [row(index, account="apimall:a" if index < 3 else "apimall:b") for index in range(5)]
    accounts = {
        "apimall:a": evolve(STATS, job_limit=5, slots_held=4, queued=2),
        "apimall:b": evolve(
            STATS, job_limit=None, slots_held=0, queued=0, rests_for_s=42.3, rests_because="no <credits>"
        ),
    }
    write_report(tmp_path / "index.html", rows, title="spring", accounts=accounts)
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "<dt>apimall:a</dt><dd>3 <small>succeeded, limit 5, 4 running, 2 waiting</small></dd>" in page
    assert "<dt>apimall:b</dt><dd>2 <small>succeeded, rests for 42 s: no &lt;credits&gt;</small></dd>" in page
    assert "account: apimall:b (2)" in page  # a filter


def test_only_account_of_a_batch_is_no_fact_of_its_head(tmp_path: Path) -> None:
    write_report(tmp_path / "index.html", [row(account="apimall:a")], title="spring", accounts={"apimall:a": STATS})
    assert "<dt>apimall:a" not in (tmp_path / "index.html").read_text(encoding="utf-8")
