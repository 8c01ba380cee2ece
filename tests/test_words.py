"""Checks that identifiers and prose use the words of the glossary in docs/architecture.md, and no retired ones.

`python -m tests.test_words` prints how many retired words each file still has.
"""

import ast
import functools
import io
import json
import re
import sys
import tokenize
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from attrs import frozen

from tests.support.rows import each_row

ROOT = Path(__file__).parent.parent
GLOSSARY = "docs/architecture.md"
SEARCHED = ("README.md", "CHANGELOG.md", "docs", "nanobanana_async", "tests", "benchmarks")
"""Files and folders in which retired words are counted."""

CLEAN: tuple[str, ...] = ("README.md", "CHANGELOG.md", "docs", "nanobanana_async", "tests", "benchmarks")
"""Files and folders that must have none; add a path when it is clean."""

ALLOWED: tuple[tuple[str, str, str], ...] = (
    *(("tests/test_words.py", word, "an example of this test") for word in ("desk", "ghost", "he", "heard", "picture")),
    *(("tests/test_words.py", word, "an example of this test") for word in ("purse", "the wire", "told", "wish")),
)
"""Exceptions: path, word, reason."""

SECTION = "### Retired words"
_ROW = re.compile(r"^\| ([^|]+) \| (all|names) \| [^|]+ \|$", re.MULTILINE)
_PART = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_WORD = re.compile(r"[A-Za-z_]+")
_ESCAPE = re.compile(r"\\.")  # in source text the escape for a new line hides where the word after it begins
_KEPT = re.compile(r"\bwire (?:format|key)s?\b|</?picture>", re.IGNORECASE)
"""Phrases that contain a retired one and stay, and an element of HTML."""


@frozen
class Retired:
    """One retired word, or a phrase of several."""

    parts: tuple[str, ...]
    in_prose: bool

    @property
    def word(self) -> str:
        return " ".join(self.parts)

    def stands_at(self, start: int, parts: list[str]) -> bool:
        """Whether the word's own parts stand in a row from there."""
        return tuple(parts[start : start + len(self.parts)]) == self.parts


@frozen
class Found:
    """A retired word in a file."""

    path: str
    line: int
    word: str
    text: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.word!r} in {self.text!r}"


def retired_words(glossary: str) -> list[Retired]:
    """Return the retired words that the glossary lists."""
    section = glossary.partition(f"\n{SECTION}\n")[2]
    found = []
    for words, where in _ROW.findall(section):
        if words != "retired":
            found += [Retired(tuple(word.split()), where == "all") for word in words.split(", ")]
    return found


RETIRED = retired_words((ROOT / GLOSSARY).read_text(encoding="utf-8"))
BY_FIRST_PART: dict[str, list[Retired]] = {}
for _retired in RETIRED:
    BY_FIRST_PART.setdefault(_retired.parts[0], []).append(_retired)


def split_identifier(name: str) -> list[str]:
    """Return the parts of an identifier in lower case: `_JobPolled_at` has job, polled and at."""
    return [part.lower() for part in _PART.findall(name)]


def split_prose(text: str) -> list[str]:
    """Return the words of a text in lower case, those of identifiers in it split."""
    return [part for word in _WORD.findall(_KEPT.sub("", text)) for part in split_identifier(word)]


def retired_among(parts: list[str]) -> Iterator[Retired]:
    """Yield the retired words that the parts hold."""
    for start, part in enumerate(parts):
        for retired in BY_FIRST_PART.get(part, ()):
            if retired.stands_at(start, parts):
                yield retired


@functools.cache  # most identifiers stand in many files
def in_identifier(name: str) -> frozenset[str]:
    """Return the retired words in an identifier."""
    return frozenset(retired.word for retired in retired_among(split_identifier(name)))


def in_prose(text: str) -> set[str]:
    """Return the retired words in a text."""
    return {retired.word for retired in retired_among(split_prose(text)) if retired.in_prose}


def identifiers(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield each identifier of a module with its line."""
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name, lineno=line) | ast.Attribute(attr=name, lineno=line):
                yield line, name
            case ast.arg(arg=name, lineno=line):
                yield line, name
            case ast.FunctionDef(name=name, lineno=line) | ast.AsyncFunctionDef(name=name, lineno=line):
                yield line, name
            case ast.ClassDef(name=name, lineno=line):
                yield line, name
            case ast.keyword(arg=str(name), lineno=line):
                yield line, name
            case ast.ImportFrom(module=str(name), lineno=line):
                yield line, name
            case ast.alias(name=name, asname=other, lineno=line):
                yield line, name
                yield line, other or ""


def prose(source: str, tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield each comment, and each line of a string that has a space in it: docstrings and messages."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            yield from enumerate(node.value.splitlines(), node.lineno)


def markdown_lines(text: str) -> Iterator[tuple[int, str]]:
    """Yield the lines of a page, without the list of retired words."""
    yield from enumerate(text.partition(f"\n{SECTION}\n")[0].splitlines(), 1)


def notebook_lines(text: str) -> Iterator[tuple[int, str]]:
    """Yield the lines of a notebook's cells, numbered through all cells."""
    cells = json.loads(text)["cells"]
    yield from enumerate("".join("".join(cell["source"]) + "\n" for cell in cells).splitlines(), 1)


def may_hold_one(text: str) -> bool:
    """Whether the text has all parts of a retired word, in any order: most files don't and need no parsing."""
    words = {*_WORD.findall(text), *_WORD.findall(_ESCAPE.sub(" ", text))}
    parts = {part for word in words for part in split_identifier(word)}
    return any(parts.issuperset(retired.parts) for retired in RETIRED)


def search(path: str, text: str) -> list[Found]:
    """Return the retired words of a file that are not allowed in it."""
    if not may_hold_one(f"{Path(path).stem} {text}"):
        return []
    if path.endswith(".py"):
        tree = ast.parse(text)
        found = [Found(path, 1, word, Path(path).stem) for word in in_identifier(Path(path).stem)]
        found += [Found(path, line, word, name) for line, name in identifiers(tree) for word in in_identifier(name)]
        lines = prose(text, tree)
    else:
        found = []
        lines = notebook_lines(text) if path.endswith(".ipynb") else markdown_lines(text)
    found += [Found(path, line, word, said.strip()) for line, said in lines for word in in_prose(said)]
    allowed = {word for where, word, _ in ALLOWED if where == path}
    return sorted({each for each in found if each.word not in allowed}, key=lambda each: (each.line, each.word))


def files(paths: tuple[str, ...]) -> list[str]:
    """Return the Python files, pages and notebooks under these paths."""
    found = []
    for path in paths:
        place = ROOT / path
        inside = [place] if place.is_file() else [each for each in place.rglob("*") if each.is_file()]
        found += [each for each in inside if each.suffix in (".py", ".md", ".ipynb")]
    return sorted(each.relative_to(ROOT).as_posix() for each in found if ".ipynb_checkpoints" not in each.parts)


def search_file(path: str) -> list[Found]:
    """Return the retired words of a file in the repository."""
    return search(path, (ROOT / path).read_text(encoding="utf-8"))


def test_glossary_lists_the_retired_words() -> None:
    words = {retired.word for retired in RETIRED}
    assert len(words) > 40
    assert {"purse", "told", "he", "the wire"} <= words


@pytest.mark.slow
def test_clean_files_have_no_retired_word() -> None:
    paths = files(CLEAN)
    assert len(paths) > 400
    assert [str(found) for path in paths for found in search_file(path)] == []


def test_exceptions_are_still_needed() -> None:
    for path, word, reason in ALLOWED:
        text = (ROOT / path).read_text(encoding="utf-8")
        assert reason
        assert word in in_prose(text) | {word for name in _WORD.findall(text) for word in in_identifier(name)}


@each_row(
    "source",
    [
        "desk = 1",
        "class Purse: ...",
        "def f(ghost): ...",
        "x.on_wire",
        "f(wish=1)",
        "from a.heard import b",
        "import desk",
    ],
)
def test_retired_identifier_is_found(source: str) -> None:
    assert len(search("module.py", source)) == 1


@pytest.mark.parametrize("source", ['"""He goes."""', "# on the wire", 'raise E(f"{x} was told")', '"a picture"'])
def test_retired_prose_is_found(source: str) -> None:
    assert len(search("module.py", source)) == 1


@pytest.mark.parametrize("source", ["wire_key = 1", "# look up elsewhere", "# wire format", "x = 'told'", "the = ahe"])
def test_other_words_are_let_through(source: str) -> None:
    assert search("module.py", source) == []


def test_file_name_is_searched() -> None:
    assert [found.word for found in search("package/desk.py", "")] == ["desk"]


if __name__ == "__main__":
    counts = Counter({path: len(search_file(path)) for path in files(SEARCHED)})
    for path, count in counts.most_common():
        if count:
            print(f"{count:5} {path}")
            if path in sys.argv[1:]:
                print(*search_file(path), sep="\n")
    print(f"{counts.total():5} in {sum(1 for count in counts.values() if count)} files")
