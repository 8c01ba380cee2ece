"""The lower bounds in pyproject.toml exclude releases with known advisories, and what is installed keeps to them.

`.github/floors` installs those bounds, tests them and asks an advisory database; this needs no network.
"""

import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PROJECT: Mapping[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
FIXED: Mapping[str, str] = tomllib.loads((ROOT / "tests/floors.toml").read_text())["fixed"]
USED = ("emulator", "xlsx", "cli", "notebook", "otel", "store", "mcp", "postgres", "serve")
"""The extras that users install; the others are for those who develop, test and measure."""

_REQUIREMENT = re.compile(r"(?P<name>[A-Za-z0-9_.-]+)(?:\[[^\]]*\])?(?P<bounds>[^;]*)")


def requirements(lists: Iterable[Iterable[str]]) -> Iterator[tuple[str, str]]:
    """Yield the name and the bounds of each requirement on another project."""
    for each in (requirement for requirements in lists for requirement in requirements):
        found = _REQUIREMENT.match(each)
        assert found is not None, each
        if found["name"] != PROJECT["name"]:
            yield found["name"].lower(), found["bounds"].strip()


def floor_of(bounds: str) -> tuple[int, ...]:
    """Return the lowest release that is allowed; an empty one if any is."""
    found = re.search(r">=\s*([\d.]+)", bounds)
    return () if found is None else release(found[1])


def release(text: str) -> tuple[int, ...]:
    """Return the numbers of a release."""
    return tuple(int(part) for part in re.match(r"[\d.]*\d", text)[0].split("."))  # type: ignore[index]


def allows_known_faults(name: str, bounds: str) -> bool:
    """Return whether a release with a known advisory may be installed."""
    return name in FIXED and floor_of(bounds) < release(FIXED[name])


def all_used() -> list[tuple[str, str]]:
    extras = PROJECT["optional-dependencies"]
    return [*requirements([PROJECT["dependencies"], *(extras[name] for name in USED)])]


def test_each_dependency_of_users_has_a_lower_bound() -> None:
    assert [name for name, bounds in all_used() if not floor_of(bounds)] == []


def test_no_lower_bound_allows_a_release_with_a_known_advisory() -> None:
    assert [each for each in all_used() if allows_known_faults(*each)] == []


def test_control_a_release_with_an_advisory_is_found() -> None:
    assert allows_known_faults("aiohttp", ">=3.9.1")
    assert allows_known_faults("jinja2", "")
    assert not allows_known_faults("aiohttp", f">={FIXED['aiohttp']}")


def test_each_advisory_is_about_a_dependency() -> None:
    assert set(FIXED) <= {name for name, _ in all_used()}


def test_what_is_installed_keeps_to_the_lower_bounds() -> None:
    older = {}
    for name, bounds in all_used():
        try:
            found = version(name)
        except PackageNotFoundError:  # an extra that is not installed here
            continue
        if release(found) < floor_of(bounds):
            older[name] = found
    assert older == {}


def test_the_floors_are_installed_and_tested_on_each_change() -> None:
    """The script is the one that the workflow runs, and it has all extras of users."""
    script = (ROOT / ".github/floors").read_text()
    extras = re.search(r"^extras=\((.*)\)$", script, re.MULTILINE)
    assert extras is not None
    assert {*extras[1].split(), "emulator"} == {*USED}  # `cli` has the emulator
    assert "- run: .github/floors" in (ROOT / ".github/workflows/test.yml").read_text()
