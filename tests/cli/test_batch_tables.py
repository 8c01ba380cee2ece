"""Tables as spreadsheets write them, and text in any encoding: as people read them."""

from datetime import time
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from nanobanana_async import ApiMall, ConfigurationError, DefApi
from nanobanana_async.cli.batch.formats import Format
from nanobanana_async.cli.batch.input_file import FileRow, open_input
from nanobanana_async.cli.batch.notes import Notes
from nanobanana_async.cli.batch.parsers import ReadingOptions
from tests.cli.batches import Command, emulated
from tests.support.command import Said

GATEWAY = ApiMall(api_key="k" * 20)


class Read:
    """A file as it was read."""

    def __init__(
        self,
        path: Path,
        content: str | bytes | None,
        options: ReadingOptions | None = None,
        *,
        kind: Format | None = None,
        **named: Any,
    ) -> None:
        if content is not None:
            path.write_bytes(content.encode() if isinstance(content, str) else content)
        notes = Notes()
        with open_input(str(path), None, kind, options, **named) as file:
            self.rows: list[FileRow] = list(file.rows(GATEWAY, notes))
            self.unit = file.unit
            self.notes = [*filter(None, [file.note]), *notes.sentences()]
        self.prompts = [row.request.prompt for row in self.rows if row.request is not None]
        self.errors = [(row.number, row.error) for row in self.rows if row.error is not None]


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize(("name", "header"), [("a.txt", ""), ("a.csv", "prompt")])
def test_each_line_ending_ends_a_row(name: str, header: str, ending: str, tmp_path: Path) -> None:
    lines = [*filter(None, [header]), "a fox", "a lynx", ""]
    assert Read(tmp_path / name, ending.join(lines)).prompts == ["a fox", "a lynx"]


@pytest.mark.parametrize("character", ["\u2028", "\u2029", "\x0b", "\x0c", "\x85", "\x1e"])
@pytest.mark.parametrize(("name", "header"), [("a.txt", ""), ("a.csv", "prompt\n")])
def test_other_separators_are_part_of_the_prompt(name: str, header: str, character: str, tmp_path: Path) -> None:
    assert Read(tmp_path / name, f"{header}a fox{character}in snow\n").prompts == [f"a fox{character}in snow"]


def test_file_saved_while_it_is_read_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("a fox\na lynx\n")
    with open_input(str(path), None, None) as file:
        path.write_text("a st")
        assert [row.request.prompt for row in file.rows(GATEWAY) if row.request] == ["a fox", "a lynx"]
        path.unlink()
        assert len(list(file.rows(GATEWAY))) == 2
        copy = file.path
    assert not copy.exists()


@pytest.mark.parametrize(
    ("header", "meant"),
    [
        ("Prompt,Aspect Ratio,NUM-IMAGES", "aspect_ratio"),
        ("prompt,ASPECT-RATIO,num images", "aspect_ratio"),
        (" PROMPT , aspect-ratio ,Num_Images", "aspect_ratio"),
    ],
)
def test_headers_are_recognised_in_any_case_and_spelling(header: str, meant: str, tmp_path: Path) -> None:
    read = Read(tmp_path / "a.csv", f"{header}\na fox,16:09:00,2.0\n")
    request = read.rows[0].request
    assert request is not None
    assert (getattr(request, meant), request.num_images, read.notes) == ("16:9", 2, [])


def test_unknown_columns_are_metadata_and_near_misses_are_said(tmp_path: Path) -> None:
    read = Read(tmp_path / "a.csv", "prompt;Kampagne;resoluton;metadata.Shelf\na fox;Frühling;4K;7\na lynx;;;\n")
    assert [row.metadata for row in read.rows] == [{"Kampagne": "Frühling", "resoluton": "4K", "Shelf": "7"}, None]
    assert read.notes == [
        "columns 'Kampagne', 'resoluton' kept as metadata; 'resoluton': did you mean resolution?",
    ]


def test_unknown_fields_of_json_lines_are_metadata(tmp_path: Path) -> None:
    lines = [
        '{"Prompt": "a fox", "Aspect Ratio": "16:9", "shelf": 7}',
        '{"prompt": "b", "metadata": {"a": 1}, "key": NaN}',
    ]
    read = Read(tmp_path / "a.jsonl", "\n".join(lines))
    assert [row.metadata for row in read.rows] == [{"shelf": 7}, {"a": 1}]
    assert (read.rows[0].request and read.rows[0].request.aspect_ratio, read.errors) == ("16:9", [])
    assert read.notes == ["field 'shelf' kept as metadata"]


EXTRA = [{"seed": 7, "quality": "high"}, {"box": {"a": [1]}, "Size": "007"}, {}]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (
            "a.csv",
            'prompt,extra.seed,EXTRA,extra.Size,extra.quality\na,7,,,high\nb,,"{""box"": {""a"": [1]}}",007,\nc,,,,\n',
        ),
        (
            "a.jsonl",
            '{"prompt": "a", "extra": {"seed": 7}, "extra.quality": "high"}\n'
            '{"prompt": "b", "extra": {"box": {"a": [1]}, "Size": "007"}}\n{"prompt": "c", "extra": {}}\n',
        ),
    ],
)
def test_extra_is_an_object_or_has_columns_of_its_own(name: str, content: str, tmp_path: Path) -> None:
    read = Read(tmp_path / name, content, ReadingOptions(strict=True))
    assert (read.errors, read.notes) == ([], [])
    assert [dict(row.request.extra) for row in read.rows if row.request is not None] == EXTRA


def test_row_has_its_own_extra_values_and_the_defaults_of_others(tmp_path: Path) -> None:
    options = ReadingOptions(defaults={"extra": {"seed": 1, "quality": "low"}})
    read = Read(tmp_path / "a.csv", "prompt,extra.seed,extra\na,7,\nb,,\nc,,[1]\n", options)
    assert [dict(row.request.extra) for row in read.rows if row.request is not None] == [
        {"seed": 7, "quality": "low"},
        {"seed": 1, "quality": "low"},
    ]
    ((number, why),) = read.errors
    assert (number, why) == (4, 'extra must be an object of JSON values such as {"seed": 7}, not list')


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("a.csv", 'prompt,extra.seed,extra\na,7,"{""seed"": 8}"\n', "extra has 'seed', and extra.seed has it too"),
        ("a.csv", "prompt,extra.seed,extra\na,7,8\n", "extra must be an object of JSON values"),
        ("a.csv", "prompt,extra\na,seed=7\n", "extra must be a JSON object such as"),
        ("a.csv", "prompt,extra.num_images\na,7\n", "pass num_images=..., not extra={'num_images': ...}"),
        ("a.jsonl", '{"prompt": "a", "extra": {"seed": 7}, "extra.seed": 7}', "extra has 'seed', and extra.seed"),
        ("a.jsonl", '{"prompt": "a", "extra": 7}', "extra must be an object of JSON values"),
    ],
)
def test_extra_that_can_not_be_sent_is_an_error_of_its_row(name: str, content: str, why: str, tmp_path: Path) -> None:
    ((_, error),) = Read(tmp_path / name, content).errors
    assert error is not None
    assert error.startswith(why)


@pytest.mark.parametrize(
    ("name", "content", "error"),
    [
        ("a.csv", "prompt,colour\na fox,red\n", (1, "unknown column 'colour': the columns are prompt, images,")),
        ("a.jsonl", '{"prompt": "a", "resoluton": "2K"}', (1, "unknown field 'resoluton': did you mean resolution?")),
    ],
)
def test_strict_refuses_unknown_names(name: str, content: str, error: tuple[int, str], tmp_path: Path) -> None:
    ((number, why),) = Read(tmp_path / name, content, ReadingOptions(strict=True)).errors
    assert number == error[0]
    assert why is not None
    assert why.startswith(error[1])


def test_empty_columns_rows_and_cells_are_ignored(tmp_path: Path) -> None:
    read = Read(tmp_path / "a.csv", "prompt,aspect_ratio,,Notes,\r\na fox,16:9,,,\r\n,,,,\r\na lynx,,,good,,,\r\n")
    assert (read.prompts, read.errors) == (["a fox", "a lynx"], [])
    assert [row.number for row in read.rows] == [2, 4]  # as the spreadsheet numbers them
    assert [row.metadata for row in read.rows] == [None, {"Notes": "good"}]


def test_rows_of_a_table_are_numbered_by_record_and_lines_by_line(tmp_path: Path) -> None:
    table = Read(tmp_path / "a.csv", '\nprompt\n"a fox\non three\nlines"\n\na lynx\n')
    assert (table.unit, [row.number for row in table.rows]) == ("row", [3, 5])
    text = Read(tmp_path / "a.txt", "\na fox\n\na lynx\n")
    assert (text.unit, [row.number for row in text.rows]) == ("line", [2, 4])


def test_separator_line_of_excel_is_not_counted(tmp_path: Path) -> None:
    read = Read(tmp_path / "a.csv", "sep=;\r\nprompt;key\r\na fox, red;1\r\n")
    assert (read.prompts, [row.number for row in read.rows]) == (["a fox, red"], [2])


TEXT = "Gewächshaus bei Sonnenaufgang\nStraßencafé in München (Spaß!)\n"


@pytest.mark.parametrize(
    ("encoding", "note"),
    [
        ("utf-8", None),
        ("utf-8-sig", None),
        ("utf-16", "a.txt is UTF-16 text: a line reads 'Gewächshaus"),
        ("utf-16-le", "a.txt is read as UTF-16 text"),
        ("utf-16-be", "a.txt is read as UTF-16 text"),
        (
            "cp1252",
            "a.txt is not UTF-8 and is read as Windows-1252 (--encoding NAME reads it as another): a line reads",
        ),
    ],
)
def test_encoding_is_found_and_a_guess_is_said(encoding: str, note: str | None, tmp_path: Path) -> None:
    read = Read(tmp_path / "a.txt", TEXT.encode(encoding))
    assert read.prompts == TEXT.splitlines()
    said = " ".join(read.notes).replace(str(tmp_path / "a.txt"), "a.txt")
    assert said.startswith(note or "")
    assert bool(said) is (note is not None)


@pytest.mark.parametrize(
    ("content", "named", "what"),
    [
        ("Gewächshaus\n".encode() * 3 + b"M\xfcnchen\n", {}, "a.txt, line 4 is not UTF-8, and other lines are"),
        (b"a fox\x81\xff\n", {}, "can't be read as cp1252: save it as UTF-8, or pass --encoding NAME"),
        (b"a fox \xff\n", {"encoding": "utf-8"}, "can't be read as utf-8"),
        (b"a fox\n", {"encoding": "utf-7-bit"}, "--encoding utf-7-bit is unknown"),
        (b"a fox\n", {"sheet": "x"}, "--sheet is for workbooks, and .*a.txt is text"),
    ],
)
def test_text_that_cannot_be_read_is_refused(content: bytes, named: Any, what: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=what):
        Read(tmp_path / "a.txt", content, **named)


def test_given_encoding_is_used(tmp_path: Path) -> None:
    assert Read(tmp_path / "a.txt", "ключ\n".encode("cp1251"), encoding="cp1251").prompts == ["ключ"]


def workbook(path: Path, *rows: list[Any], other: str | None = None) -> Path:
    book = import_module("openpyxl").Workbook()
    book.active.title = "Motive"
    for number, row in enumerate(rows, 1):
        for column, value in enumerate(row, 1):
            book.active.cell(number, column, value)
    if other is not None:
        sheet = book.create_sheet(other)
        sheet.cell(1, 1, "prompt")
        sheet.cell(2, 1, "a stoat")
    book.save(path)
    return path


def test_workbook_is_read_with_its_numbers_and_times(tmp_path: Path) -> None:
    path = workbook(
        tmp_path / "a.xlsx",
        ["Prompt", "Aspect Ratio", "Num Images", "Key", "Jahr"],
        ["Leuchtturm\nim Nebel", time(16, 9), 2, 17, 2026],
        [],
        ["Nachtzug", "9:16", None, "b", None],
    )
    read = Read(path, None)
    first, second = (row.request for row in read.rows)
    assert first is not None
    assert second is not None
    assert (first.prompt, first.aspect_ratio, first.num_images) == ("Leuchtturm\nim Nebel", "16:9", 2)
    assert (second.prompt, second.aspect_ratio, second.num_images) == ("Nachtzug", "9:16", 1)
    assert [(row.number, row.own_key, row.metadata) for row in read.rows] == [
        (2, "17", {"Jahr": "2026"}),
        (4, "b", None),
    ]
    assert read.unit == "row"


def test_other_sheets_are_said_and_can_be_read(tmp_path: Path) -> None:
    path = workbook(tmp_path / "a.xlsx", ["prompt"], ["a fox"], other="Herbst")
    read = Read(path, None)
    assert (read.prompts, read.notes) == (
        ["a fox"],
        [f"{path}: sheet 'Motive' is read; --sheet NAME reads another (Herbst)"],
    )
    assert Read(path, None, sheet="Herbst").prompts == ["a stoat"]
    with pytest.raises(ConfigurationError, match="has no sheet 'Herpst': did you mean Herbst"):
        Read(path, None, sheet="Herpst")


def test_file_that_is_no_workbook_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"can't be read as a workbook: .*; save it as .xlsx, or as CSV"):
        Read(tmp_path / "a.xlsx", "prompt\na fox\n")


def test_missing_workbook_reader_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "python_calamine", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'nanobanana-async\[xlsx\]'"):
        Read(workbook(tmp_path / "a.xlsx", ["prompt"]), None)


def test_defaults_are_taken_by_rows_that_have_no_value(tmp_path: Path) -> None:
    defaults = {"aspect_ratio": "16:9", "num_images": 2}
    read = Read(tmp_path / "a.csv", "prompt,aspect_ratio\na fox,\na lynx,1:1\n", ReadingOptions(defaults=defaults))
    assert [(row.request.aspect_ratio, row.request.num_images) for row in read.rows if row.request] == [
        ("16:9", 2),
        ("1:1", 2),
    ]


def test_lines_with_a_hash_are_said_and_skipped_on_request(tmp_path: Path) -> None:
    lines = "# a heading\na fox\n  # another\n"
    read = Read(tmp_path / "a.txt", lines)
    assert len(read.prompts) == 3
    assert read.notes == ["lines 1 and 3 begin with # and are prompts: --comments '#' skips them"]
    skipped = Read(tmp_path / "a.txt", lines, ReadingOptions(comments="#"))
    assert ([row.number for row in skipped.rows], skipped.notes) == ([2], [])
    table = Read(tmp_path / "a.csv", "# made by me\nprompt\n# off\na fox\n", ReadingOptions(comments="#"))
    assert (table.prompts, table.rows[0].number) == (["a fox"], 4)


@pytest.mark.parametrize("content", ["key,prompt\na,# old\nb,a fox\n", "prompt,key\n# old,a\na fox,b\n"])
def test_rows_whose_prompt_begins_with_a_hash_are_skipped_in_any_column(content: str, tmp_path: Path) -> None:
    read = Read(tmp_path / "a.csv", content)
    assert read.prompts == ["# old", "a fox"]
    assert read.notes == ["row 2 begins with # and is a prompt: --comments '#' skips it"]
    skipped = Read(tmp_path / "a.csv", content, ReadingOptions(comments="#"))
    assert ([row.number for row in skipped.rows], skipped.prompts, skipped.notes) == ([3], ["a fox"], [])


@pytest.mark.parametrize("header", ["Reference Image", "reference_images", "Ref image"])
def test_columns_of_reference_images_are_recognised(header: str, tmp_path: Path) -> None:
    read = Read(tmp_path / "a.csv", f"prompt,{header}\na fox,https://example.com/cat.png\n")
    request = read.rows[0].request
    assert request is not None
    assert (request.images, read.rows[0].metadata) == (("https://example.com/cat.png",), None)
    assert f"column {header!r} is read as image" in read.notes[0]


@pytest.mark.parametrize(
    ("prompts", "note"),
    [
        (["a cat", "a cat", "a dog", "a cat ", "A cat", "a dog"], "3 lines repeat an earlier one: they are bought as"),
        (["a cat", "a cat"], "1 line repeats an earlier one: it is bought as a separate image"),
    ],
)
def test_repeated_rows_are_counted_once(prompts: list[str], note: str, tmp_path: Path) -> None:
    (said,) = Read(tmp_path / "a.txt", "\n".join(prompts)).notes
    assert said.startswith(note)


@pytest.mark.parametrize(
    ("rows", "notes"),
    [
        (["k1,a cat", "k2,a cat", ",a cat", "k3,a dog"], ["2 rows have the prompt and settings of an earlier one"]),
        ([",a cat", "k1,a cat"], ["1 row has the prompt and settings of an earlier one under another key"]),
        ([",a cat", ",a cat", "k1,a cat"], ["1 row repeats an earlier one", "1 row has the prompt and settings of an"]),
        (["k1,a cat", "k2,a dog"], []),
    ],
)
def test_repeated_prompts_under_other_keys_are_counted_once(rows: list[str], notes: list[str], tmp_path: Path) -> None:
    said = Read(tmp_path / "a.csv", "\n".join(["key,prompt", *rows])).notes
    assert [sentence.startswith(note) for sentence, note in zip(said, notes, strict=True)] == [True] * len(notes)


async def dry(batch: Command, name: str, *options: str) -> Said:
    return await batch(name, "--dry-run", "--gateway", "emulator", *options)


async def test_notes_are_printed_before_anything_is_bought(batch: Command) -> None:
    (batch.folder / "a.csv").write_bytes("prompt;Notiz\nGewächshaus;x\nGewächshaus;y\n".encode("cp1252"))
    said = await dry(batch, "a.csv")
    assert said.code == 0
    assert [line.partition(": ")[2] for line in said.err.splitlines()] == [
        "a.csv is not UTF-8 and is read as Windows-1252 (--encoding NAME reads it as another): a line reads"
        " 'Gewächshaus;x'",
        "a.csv: column 'Notiz' kept as metadata",
        "a.csv: 1 row repeats an earlier one: it is bought as a separate image",
    ]


@pytest.mark.parametrize(
    ("option", "value", "what"),
    [
        ("--aspect-ratio", "16x9", "--aspect-ratio must be two numbers such as 16:9, not '16x9': did you mean 16:9?"),
        ("--resolution", "8K", "--resolution must be one of 1K, 2K, 4K"),
        ("--num-images", "9", "--num-images must be a whole number from 1 to 6"),
    ],
)
async def test_wrong_default_is_one_error_of_the_option(option: str, value: str, what: str, batch: Command) -> None:
    said = await dry(batch, batch.prompts(3), option, value)
    assert said.code == 2
    assert said.complaint.startswith(f"nanobanana: {what}")


@pytest.mark.slow
async def test_defaults_are_bought_and_shown(batch: Command) -> None:
    file = batch.prompts(2)
    async with emulated(batch) as emulator:
        assert (await batch(file, "--aspect-ratio", "16:9", "--resolution", "2k", "--num-images", "2")).code == 0
        assert emulator.stats().creates_accepted == 2
        assert (await batch(file, "--aspect-ratio", "16:9", "--resolution", "2K", "--num-images", "2")).code == 0
        assert emulator.stats().creates_accepted == 2
    settings = [line["settings"] for line in batch.lines().values()]
    assert [{**found, "model": None} for found in settings] == [
        {"num_images": 2, "aspect_ratio": "16:9", "resolution": "2K", "model": None}
    ] * 2


def test_column_that_the_gateway_does_not_take_is_named_as_extra(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text("prompt,aspect_ratio\na fox,16:9\na lynx,\n")
    gateway = DefApi(api_key="k" * 20)
    with open_input(str(file), None, None) as found:
        assert [row.error for row in found.rows(gateway)] == [
            "defapi does not take aspect_ratio: name it extra.aspect_ratio if the model takes it",
            None,
        ]
    with open_input(str(file), None, None, ReadingOptions(defaults={"aspect_ratio": "1:1"})) as found:
        assert [row.error for row in found.rows(gateway)][1] == (
            "defapi does not take aspect_ratio: pass --extra aspect_ratio=VALUE if the model takes it"
        )
