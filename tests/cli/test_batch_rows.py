"""Input files of each format, and the errors of bad rows."""

import os
from pathlib import Path

import pytest
from attrs import evolve

from nanobanana_async import ApiMall, ConfigurationError, DefApi, JobState
from nanobanana_async.batch.rows import RowReader
from nanobanana_async.cli.batch.input_file import FileRow, open_input
from nanobanana_async.cli.batch.rows import result_from_record
from tests.cli.batches import Command, emulated, requests
from tests.support.reports import record

GATEWAY = ApiMall(api_key="k" * 20)


def rows_of(folder: Path, name: str, content: str | bytes) -> list[FileRow]:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with open_input(str(path), None, None) as file:
        return list(file.rows(GATEWAY))


def prompts(rows: list[FileRow]) -> list[tuple[int, str]]:
    return [(row.number, row.request.prompt) for row in rows if row.request is not None]


def errors(rows: list[FileRow]) -> list[tuple[int, str]]:
    return [(row.number, row.error) for row in rows if row.error is not None]


def test_each_text_line_is_a_prompt_and_blank_lines_are_skipped(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, "a.txt", "\n  a fox  \n\n# not a comment\n\ta lynx")
    assert prompts(rows) == [(2, "a fox"), (4, "# not a comment"), (5, "a lynx")]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", "a fox\r\na lynx\r\n"),
        ("a.jsonl", '{"prompt": "a fox"}\r\n{"prompt": "a lynx"}\r\n'),
        ("a.csv", "prompt\r\na fox\r\na lynx\r\n"),
    ],
)
def test_windows_line_ends_and_bom_are_read(name: str, content: str, tmp_path: Path) -> None:
    rows = rows_of(tmp_path, name, content.encode("utf-8-sig"))
    assert prompts(rows) == [(1 + (name == "a.csv"), "a fox"), (2 + (name == "a.csv"), "a lynx")]


def test_json_lines_have_all_fields_and_null_means_default(tmp_path: Path) -> None:
    line = (
        '{"prompt": "a fox", "images": ["https://x.example/1.png"], "num_images": 2, "resolution": "2K",'
        ' "model": null, "key": "k1", "metadata": {"who": [1, null]}}'
    )
    (row,) = rows_of(tmp_path, "a.jsonl", line)
    assert row.request is not None
    assert (row.request.images, row.request.num_images, row.request.model) == (("https://x.example/1.png",), 2, None)
    assert (row.own_key, row.metadata) == ("k1", {"who": [1, None]})


def test_csv_has_images_numbers_metadata_and_multiline_cells(tmp_path: Path) -> None:
    content = (
        "Prompt,images,num_images,key,metadata.Name,metadata.x\n"
        '"a fox,\non two lines",https://x.example/1.png|https://x.example/2.png,2,k1,Ann,\n'
        ",,,,,\n"
        "a lynx,https://x.example/1.png https://x.example/3.png\n"
    )
    rows = rows_of(tmp_path, "a.csv", content)
    assert prompts(rows) == [(2, "a fox,\non two lines"), (4, "a lynx")]
    assert [len(row.request.images) for row in rows if row.request is not None] == [2, 2]
    assert [row.metadata for row in rows] == [{"Name": "Ann"}, None]


def test_a_result_says_why_images_are_missing(tmp_path: Path) -> None:
    (row,) = rows_of(tmp_path, "a.txt", "a fox\n")
    ended = evolve(record(row.key, JobState.SUCCEEDED), images=("https://x.example/1.png",), missing=((1, "no URL"),))
    assert result_from_record(row, ended, GATEWAY).row.missing == ("image 2: no URL",)


@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_other_csv_delimiters_are_detected(delimiter: str, tmp_path: Path) -> None:
    (row,) = rows_of(tmp_path, "a.csv", f"prompt{delimiter}key\na fox, red{delimiter}k1\n")
    assert row.request is not None
    assert (row.request.prompt, row.own_key) == ("a fox, red", "k1")


@pytest.mark.parametrize(
    ("name", "content", "line", "what"),
    [
        ("a.jsonl", '{"prompt": "a"}\n{"prompt": "b",\n', 2, "broken JSON at column 16"),
        ("a.jsonl", '"a fox"', 1, "a row must be an object"),
        ("a.jsonl", '{"key": "k"}', 1, "a row needs a prompt"),
        ("a.jsonl", '{"prompt": "a", "images": "https://x.example/1.png"}', 1, "images must be a list"),
        ("a.jsonl", '{"prompt": "a", "key": 7.5}', 1, "key must be printable text"),
        (
            "a.jsonl",
            '{"prompt": "a", "metadata": 1, "shelf": 2}',
            1,
            "'shelf', and metadata is no object",
        ),
        ("a.jsonl", '{"prompt": "a", "Num Images": 1, "num_images": 2}', 1, "field num_images is given twice"),
        ("a.jsonl", f'{{"prompt": {"[" * 100_000}', 1, "broken JSON"),
        ("a.jsonl", '{"prompt": "a", "prompt": "b"}', 1, "field 'prompt' is given twice"),
        ("a.jsonl", f'{{"prompt": {"9" * 5000}}}', 1, "broken JSON"),
        ("a.csv", "key,model\n1,2\n", 1, "the table has columns 'key', 'model': rename the one"),
        ("a.csv", "promt,model\na fox,2\n", 1, "rename 'promt' to prompt"),
        ("a.csv", "prompt,Prompt\n1,2\n", 1, "duplicate column prompt"),
        ("a.csv", "prompt,metadata,metadata.x\n", 1, "not both"),
        ("a.csv", "prompt\na fox, red\n", 2, "2 cells, but the header has 1"),
        ("a.csv", "prompt,num_images\n\na fox,two\n", 3, "num_images must be a whole number from 1 to 6"),
        ("a.csv", "prompt,num_images\na fox,9\n", 2, "num_images must be a whole number from 1 to 6"),
        (
            "a.csv",
            'prompt\na fox\n"a lynx\n',
            3,
            'broken CSV: unexpected end of data: a quote " is not closed, here or',
        ),
        ("a.csv", 'prompt\n"a "big" lynx"\n', 2, 'a quote " inside of a quoted cell is written ""'),
        ("a.csv", "prompt,\na fox,red\n", 2, "2 cells, but the header has 1"),
        ("a.csv", "prompt,,key\na fox,red,1\n", 2, "column 2 has a value here and no name in the header"),
        ("a.jsonl", '{"prompt": "a", "key": "k"}\n{"prompt": "b", "key": "k"}', 2, "key 'k' belongs to an earlier row"),
    ],
)
def test_a_bad_row_is_reported_with_its_line(
    name: str, content: str | bytes, line: int, what: str, tmp_path: Path
) -> None:
    ((found, error),) = errors(rows_of(tmp_path, name, content))
    assert found == line
    assert what in error


def test_a_request_unsupported_by_the_gateway_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"prompt": "a", "num_images": 2}\n{"prompt": "a", "aspect_ratio": "16:9"}')
    with open_input(str(tmp_path / "a.jsonl"), None, None) as file:
        assert len(errors(list(file.rows(DefApi(api_key="k" * 20))))) > 0


def test_rows_keep_their_keys_when_lines_are_inserted(tmp_path: Path) -> None:
    before = rows_of(tmp_path, "a.txt", "a fox\na lynx\na fox\n")
    after = rows_of(tmp_path, "a.txt", "a stoat\na lynx\n\na fox\na fox\n")
    assert len({row.key for row in before}) == 3
    assert {row.key for row in before} < {row.key for row in after}


def test_the_batch_derives_the_same_keys_as_the_file(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, "a.jsonl", '{"prompt": "a"}\n{"prompt": "a"}\n{"prompt": "a", "key": "k"}')
    as_batch = RowReader("a")
    # In another order.
    assert [as_batch.read(row.batch_input).key for row in reversed(rows)] == [row.key for row in reversed(rows)]


@pytest.mark.parametrize(
    ("name", "what"),
    [("none.txt", "No such file"), ("a fox", "No such file"), ("a.md", "--format"), ("folder.txt", "Is a directory")],
)
def test_an_unreadable_file_is_refused(name: str, what: str, tmp_path: Path) -> None:
    (tmp_path / "folder.txt").mkdir()
    (tmp_path / "a.md").touch()
    with pytest.raises(ConfigurationError, match=what), open_input(str(tmp_path / name), None, None):
        raise AssertionError("it was opened")


def test_a_pipe_can_be_read_several_times(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.write(writer, b"a fox\na lynx\n")
    os.close(writer)
    try:
        with open_input(f"/dev/fd/{reader}", "pipe", "txt") as file:
            assert [prompts(list(file.rows(GATEWAY))) for _ in range(2)] == [[(1, "a fox"), (2, "a lynx")]] * 2
            assert file.path.exists()
    finally:
        os.close(reader)
    assert not file.path.exists()


def nested(depth: int) -> str:
    return '{"a":' * depth + "1" + "}" * depth


@pytest.mark.slow
@pytest.mark.parametrize(
    "metadata",
    [
        nested(100),
        '["[]", NaN, -Infinity, 1e999, -0.0]',
        '{"\\ud800": "\\udfff\\u2028\\u0000"}',
        "9" * 4300,
        "[" * 99 + "]" * 99,
    ],
)
async def test_accepted_metadata_survives_the_round_trip(metadata: str, batch: Command) -> None:
    file = batch.write("a.jsonl", f'{{"prompt": "a fox", "metadata": {metadata}}}', '{"prompt": "a lynx"}')
    async with emulated(batch) as emulator:
        assert (await batch(file)).code == 0
        before, lines = requests(emulator), batch.lines()
        assert (await batch(file)).code == 0
        assert requests(emulator) == before
    assert batch.lines() == lines
    assert (batch.out / "index.html").exists()


@pytest.mark.parametrize("metadata", [nested(101), nested(900), nested(100_000), "[" * 102 + "]" * 102, "9" * 4301])
async def test_unwritable_metadata_is_an_error_before_buying(metadata: str, batch: Command) -> None:
    file = batch.write("a.jsonl", '{"prompt": "a lynx"}', f'{{"prompt": "a fox", "metadata": {metadata}}}')
    async with emulated(batch) as emulator:
        said = await batch(file)
        assert (said.code, emulator.stats().creates_received) == (2, 0)
    why, advice = said.err.splitlines()
    assert why.startswith("nanobanana: a.jsonl, line 2: ")
    assert advice == "nanobanana: nothing was bought: correct 1 row of 2 first"
