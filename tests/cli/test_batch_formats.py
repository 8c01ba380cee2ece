"""Files whose name says another format than their content, names of columns that are nearly right, joined files."""

import json
from pathlib import Path
from typing import Any

import pytest

from nanobanana_async import ConfigurationError
from nanobanana_async.cli.batch.parsers import ReadingOptions
from tests.cli.batches import Command
from tests.cli.test_batch_tables import Read, dry


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ("prompt,key\na fox, red,1\na lynx,2\n", "is a table, .* the first is 'prompt,key': rename it to .csv"),
        ("\n Prompt ; Notiz\na fox;x\na lynx;y\n", "is a table, .*: rename it to .csv, or pass --format csv"),
        ("Aspect Ratio\tPrompt\n16:9\ta fox\n", "is a table"),
        ('"prompt","shelf"\n"a fox, red","7"\n', "is a table"),
        ("prompt\na fox\n", "is a table"),
        ("\ufeffprompt,key\n", "is a table"),
        ("prompt,extra.seed\na, fox, in snow\nan owl\n", "is a table"),
        ("prompt|key\na fox|1\n", r"with \| between columns, .*: separate the columns by commas, semicolons or tabs"),
        ('{"Prompt": "a fox"}\n{"prompt": "a lynx"}\n', "is JSON lines, .*: rename it to .jsonl, or pass --format"),
        ('["a fox", "a lynx"]\n', "is a JSON array, .*: rename it to .json, or pass --format json"),
        ('[\n  "a fox"\n]\n', "is a JSON array"),
    ],
)
def test_table_or_json_named_txt_is_refused(content: str, what: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=what):
        Read(tmp_path / "a.txt", content)


@pytest.mark.parametrize(
    "content",
    [
        "a prompt, in neon letters\na fox\n",
        "a fox, prompt, fog\na lynx in snow\nan owl\n",
        '{"subject": "a fox", "style": "neon"}\n',
        "[style: ink] a fox\n",
        "[1, fox\n",
    ],
)
def test_lines_that_only_resemble_a_table_are_prompts(content: str, tmp_path: Path) -> None:
    assert Read(tmp_path / "a.txt", content).prompts == content.splitlines()


def test_given_format_is_believed(tmp_path: Path) -> None:
    table = "prompt,key\na fox,1\n"
    assert Read(tmp_path / "a.txt", table, kind="txt").prompts == table.splitlines()
    assert Read(tmp_path / "a.txt", table, kind="csv").prompts == ["a fox"]


async def test_table_on_standard_input_is_refused(batch: Command) -> None:
    batch.patch.setenv("APIMALL_API_KEY", "k" * 20)
    said = await batch("-", "--dry-run", stdin=b"prompt,key\na fox,1\n")
    assert said.code == 2
    assert "pass --format csv (--format txt buys its lines)" in said.complaint
    assert (await batch("-", "--dry-run", "--format", "csv", stdin=b"prompt,key\na fox,1\n")).code == 0


@pytest.mark.parametrize(
    "content",
    [
        '["a fox", {"prompt": "a lynx", "num_images": 2}]',
        '\ufeff[\n  "a fox",\n  {\n    "prompt": "a lynx",\r\n    "num_images": 2\n  }\n]\n',
    ],
)
@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_json_array_is_read_item_by_item(name: str, content: str, tmp_path: Path) -> None:
    read = Read(tmp_path / name, content)
    assert [(row.number, row.request.prompt, row.request.num_images) for row in read.rows if row.request] == [
        (1, "a fox", 1),
        (2, "a lynx", 2),
    ]
    assert (read.unit, read.errors, read.notes) == ("item", [], [])


def test_json_keeps_what_strings_and_objects_hold(tmp_path: Path) -> None:
    prompts = ['a [fox], "red" {x}', "zwei\nZeilen", "\u2028 lone"]
    assert Read(tmp_path / "a.json", json.dumps(prompts, ensure_ascii=False)).prompts == [
        'a [fox], "red" {x}',
        "zwei\nZeilen",
        "\u2028 lone",
    ]
    twice = Read(tmp_path / "b.json", '["a", {"prompt": "b", "prompt": "c"}, 7]')
    assert [number for number, _ in twice.errors] == [2, 3]
    assert "given twice" in str(twice.errors[0])


def test_json_file_of_lines_is_read_as_lines(tmp_path: Path) -> None:
    read = Read(tmp_path / "a.json", '{"prompt": "a fox"}\n{"prompt": "a lynx"}\n')
    assert (read.prompts, read.unit) == (["a fox", "a lynx"], "line")


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ('{\n"prompts": ["a fox"]\n}', "neither a JSON array of prompts or objects, nor JSON lines"),
        ('"a fox"', "neither a JSON array"),
        ("a fox\n", "neither a JSON array"),
        ('["a fox"\n"a lynx"]', "broken JSON at line 2, column 1"),
        ('["a fox",', "broken JSON at line 1"),
        ('["a fox"', "broken JSON at line 1"),
        ('["a fox"] x', "Extra data"),
        ("[" * 100_000, "broken JSON"),
    ],
)
def test_other_json_is_refused(content: str, what: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=what):
        Read(tmp_path / "a.json", content)


@pytest.mark.parametrize(
    ("name", "content", "recognised"),
    [
        ("a.csv", "prompt,AspectRatio,Num Images\na fox,16:9,2\n", "column 'AspectRatio' is read as aspect_ratio"),
        ("a.csv", "prompt,aspect.ratio,Number of images\na fox,16:9,2\n", "'Number of images' is read as num_images"),
        ("a.jsonl", '{"prompt": "a fox", "aspectRatio": "16:9", "numImages": 2}', "'numImages' is read as num_images"),
        ("a.csv", "prompt,Ratio,num_images\na fox,16:9,2\n", "column 'Ratio' is read as aspect_ratio"),
        ("a.csv", "prompt,Aspect,num_images\na fox,16:9,2\n", "column 'Aspect' is read as aspect_ratio"),
    ],
)
def test_names_without_doubt_are_recognised_and_said(name: str, content: str, recognised: str, tmp_path: Path) -> None:
    read = Read(tmp_path / name, content)
    request = read.rows[0].request
    assert request is not None
    assert (request.aspect_ratio, request.num_images, read.rows[0].metadata) == ("16:9", 2, None)
    assert recognised in read.notes[0]
    assert len(read.notes) == 1


@pytest.mark.parametrize("name", ["Number of photos", "photos", "how many", "Variants"])
@pytest.mark.parametrize(("values", "counts"), [(("2", "6"), [2, 6]), (("2", "7"), [1, 1]), (("2", "many"), [1, 1])])
def test_columns_of_whole_numbers_are_num_images(
    name: str, values: tuple[str, str], counts: list[int], tmp_path: Path
) -> None:
    read = Read(tmp_path / "a.csv", f"prompt,{name}\na fox,{values[0]}\na lynx,{values[1]}\n")
    assert [row.request.num_images for row in read.rows if row.request] == counts


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
@pytest.mark.parametrize(
    ("sizes", "resolutions", "metadata"),
    [
        (["2K", "", "4k"], ["2K", None, "4K"], [None, None, None]),
        (["2K", "", "30x40"], [None, None, None], [{"Size": "2K"}, None, {"Size": "30x40"}]),
    ],
)
def test_size_is_the_resolution_if_all_values_fit(
    name: str, sizes: list[str], resolutions: list[str | None], metadata: list[Any], tmp_path: Path
) -> None:
    lines = ["prompt,Size", *(f"fox {number},{size}" for number, size in enumerate(sizes))]
    if name == "a.jsonl":
        rows = [{"prompt": f"fox {number}", "Size": size} for number, size in enumerate(sizes)]
        lines = [json.dumps({key: value for key, value in row.items() if value}) for row in rows]
    read = Read(tmp_path / name, "\n".join(lines))
    assert [row.request.resolution for row in read.rows if row.request] == resolutions
    assert [row.metadata for row in read.rows] == metadata
    said = " is read as resolution" if resolutions[0] else " kept as metadata"
    assert f"'Size'{said}" in read.notes[0]


@pytest.mark.parametrize("other", ["resolution", "Image Size"])
def test_size_beside_another_column_that_means_it_is_metadata(other: str, tmp_path: Path) -> None:
    read = Read(tmp_path / "a.csv", f"prompt,Size,{other}\na fox,2K,4K\n")
    metadata = read.rows[0].metadata
    assert metadata["Size"] == "2K"
    assert "'Size'" in read.notes[0]
    assert "kept as metadata" in read.notes[0]


@pytest.mark.parametrize(
    ("header", "what"),
    [
        ("Text,Notes", "the table has columns 'Text', 'Notes': rename 'Text' to prompt"),
        ("Notes,Image prompt", "rename 'Image prompt' to prompt"),
        ("A fox in snow", "the table has column 'A fox in snow': rename the one with the prompts to prompt"),
        ("prompt|key", r"the first row is 'prompt\|key': separate the columns by commas, semicolons or tabs"),
    ],
)
def test_missing_prompt_lists_the_columns_and_which_to_rename(header: str, what: str, tmp_path: Path) -> None:
    ((number, why),) = Read(tmp_path / "a.csv", f"{header}\nx,y\n").errors
    assert number == 1
    assert why is not None
    with pytest.raises(ConfigurationError, match=what):
        raise ConfigurationError(why)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_marks_of_joined_files_are_removed(encoding: str, tmp_path: Path) -> None:
    text = "\ufeffa fox\n" * 3 + "an \ufeffowl\n"
    assert Read(tmp_path / "a.txt", text.encode(encoding)).prompts == ["a fox", "a fox", "a fox", "an \ufeffowl"]


def test_marks_are_removed_at_the_borders_of_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "".join(f"\ufeff\ufefffox {number}\r\n" for number in range(20))
    for size in range(1, 12):
        monkeypatch.setattr("nanobanana_async.cli.batch.spool._CHUNK", size)
        assert Read(tmp_path / "a.txt", text).prompts == [f"fox {number}" for number in range(20)]


def test_header_of_a_joined_table_is_an_error(tmp_path: Path) -> None:
    table = "\ufeffprompt,key\na fox,1\n\ufeffprompt,key\na lynx,2\n"
    read = Read(tmp_path / "a.csv", table)
    assert read.errors == [(3, "this row repeats the header, as in files that were joined: remove it")]


@pytest.mark.parametrize(
    ("encoding", "note"),
    [
        ("utf-32", "a.txt is UTF-32 text"),
        ("utf-32-le", "a.txt is read as UTF-32 text"),
        ("utf-32-be", "a.txt is read as UTF-32 text"),
    ],
)
def test_wide_encodings_are_said(encoding: str, note: str, tmp_path: Path) -> None:
    for content in ("a fox\nGewächshaus\n", "夜の街\n日本の庭\n"):
        read = Read(tmp_path / "a.txt", content.encode(encoding))
        assert read.prompts == content.splitlines()
        assert note in read.notes[0]


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"a fox\n\0\0\n", "has NUL characters as utf-8, so it is no text of that encoding: save it as UTF-8"),
        ("夜の街\n日本の庭\n".encode("utf-16-le"), "has NUL characters"),
        (b"PK\x03\x04rest", r"is a workbook or another ZIP archive, not text: give it the ending of its format"),
    ],
)
def test_bytes_that_are_no_text_are_refused(content: bytes, what: str, tmp_path: Path) -> None:
    for name in ("a.txt", "a.csv"):
        with pytest.raises(ConfigurationError, match=what):
            Read(tmp_path / name, content)


async def test_notes_come_before_the_errors_they_explain(batch: Command) -> None:
    (batch.folder / "a.csv").write_bytes("prompt;Größe;num_images\nGewächshaus;x;many\na fox;y;9\n".encode("cp1252"))
    said = await dry(batch, "a.csv")
    assert said.code == 2
    lines = [line.partition(": ")[2] for line in said.err.splitlines()]
    assert [line[:24] for line in lines] == [
        "a.csv is not UTF-8 and i",
        "a.csv: column 'Größe' ke",
        "a.csv, row 2: num_images",
        "a.csv, row 3: num_images",
        "nothing was bought: corr",
    ]


def test_hint_about_comments_is_for_formats_that_have_them(tmp_path: Path) -> None:
    options = ReadingOptions(comments="#")
    read = Read(tmp_path / "a.jsonl", '{"prompt": "# 7"}', options)
    assert (read.prompts, read.notes) == (["# 7"], [])
