"""Inputs that are no lists of prompts: data frames are read row by row, what would be misread is refused."""

import asyncio
import csv
import gc
import io
import itertools
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nanobanana_async import ConfigurationError, ImageRequest
from nanobanana_async.batch import options
from nanobanana_async.batch.inputs import to_requests
from nanobanana_async.batch.rows import Row, RowReader
from nanobanana_async.testing import FakeTransport
from tests.batch.fakes import PromptGateway, all_of
from tests.support.fakes import apimall, virtually
from tests.support.lazy import lazy
from tests.support.rows import each_row

pd = lazy("pandas")
pl = lazy("polars")

TABLE = {"Prompt": ["a fox", "a lynx"], "Num Images": [2, None], "key": [1, 2], "shelf": ["A", None]}


def read_rows(rows: Any) -> list[Row]:
    reader, found = RowReader("spring"), to_requests(rows)
    assert isinstance(found, Iterable)
    return [reader.read(row) for row in found]


def requests_of(rows: Any) -> list[ImageRequest]:
    read = read_rows(rows)
    assert [row.error for row in read] == [None] * len(read)
    return [row.request for row in read if row.request is not None]


@pytest.mark.parametrize("library", [pd, pl], ids=["pandas", "polars"])
def test_rows_of_a_data_frame_are_bought_and_not_its_columns(library: Any) -> None:
    frame = library.DataFrame(TABLE)
    assert requests_of(frame) == [ImageRequest("a fox", num_images=2), ImageRequest("a lynx")]
    assert [(row.own_key, row.metadata) for row in read_rows(frame)] == [("1", {"shelf": "A"}), ("2", None)]


def test_columns_of_a_data_frame_fill_extra() -> None:
    table = {"prompt": ["a fox", "b"], "Extra.seed": [7, None], "extra": [{"quality": "high"}, '{"box": [1]}']}
    assert requests_of(pd.DataFrame(table)) == [
        ImageRequest("a fox", extra={"quality": "high", "seed": 7}),
        ImageRequest("b", extra={"box": [1]}),
    ]


def test_extra_value_given_twice_in_a_data_frame_is_an_error_of_its_row() -> None:
    rows = read_rows(pd.DataFrame({"prompt": ["a", "b"], "extra.seed": [7, 8], "extra": [{"seed": 7}, {}]}))
    assert rows[0].error is not None
    assert "extra has 'seed', and extra.seed has it too" in rows[0].error.message
    assert (rows[1].error, rows[1].request) == (None, ImageRequest("b", extra={"seed": 8}))


def test_row_with_wrong_extra_does_not_hide_columns_found_by_their_values() -> None:
    table = {"prompt": ["a", "b"], "extra.seed": [7, 8], "extra": [{"seed": 7}, {}], "Size": ["1K", "2K"]}
    rows = read_rows(pd.DataFrame(table))
    assert rows[0].error is not None
    assert rows[1].request == ImageRequest("b", resolution="2K", extra={"seed": 8})


@virtually
async def test_generate_many_buys_the_rows_of_a_data_frame() -> None:
    gateway = PromptGateway()
    async with apimall(FakeTransport(gateway.answer)) as session:
        outcomes = await all_of(session.generate_many(pd.DataFrame(TABLE)))
    assert sorted(gateway.sold) == ["a fox", "a lynx"]
    assert {outcome.key for outcome in outcomes} == {"1", "2"}


def test_unknown_columns_of_a_data_frame_are_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        requests_of(pd.DataFrame({"prompt": ["a", "b"], "resoluton": ["2K", "2K"], "shelf": [1, 2]}))
    (line,) = [record.getMessage() for record in caplog.records]
    assert "columns 'resoluton', 'shelf' kept as metadata; 'resoluton': did you mean resolution?" in line


@pytest.mark.parametrize("library", [pd, pl], ids=["pandas", "polars"])
def test_nearly_right_columns_of_a_data_frame_are_recognised(library: Any, caplog: pytest.LogCaptureFixture) -> None:
    kind = library.DataFrame
    with caplog.at_level(logging.WARNING):
        frame = kind({"prompt": ["a", "b"], "Size": ["2K", "4k"], "AspectRatio": ["16:9", None]})
        first, second = requests_of(frame)
    assert (first.resolution, first.aspect_ratio) == ("2K", "16:9")
    assert (second.resolution, second.aspect_ratio) == ("4K", None)
    (line,) = [record.getMessage() for record in caplog.records]
    assert "column 'Size' is read as resolution, 'AspectRatio' is read as aspect_ratio" in line
    sizes = [read.metadata for read in read_rows(kind({"prompt": ["a", "b"], "Size": ["2K", "30x40"]}))]
    assert sizes == [{"Size": "2K"}, {"Size": "30x40"}]


@pytest.mark.parametrize(
    ("frame", "what"),
    [
        (lambda: pd.DataFrame({"promt": ["a"]}), "column prompt is missing; .* rename 'promt' to prompt"),
        (lambda: pd.DataFrame(), "a name for each column, and one with the name prompt"),
        (lambda: pl.DataFrame({"Prompt": ["a"], "prompt": ["b"]}), "duplicate column prompt"),
        (lambda: pl.LazyFrame({"prompt": ["a"]}), "not LazyFrame: call .collect\\(\\) on it"),
    ],
)
def test_data_frame_without_prompts_is_refused(frame: Callable[[], Any], what: str) -> None:
    with pytest.raises(ConfigurationError, match=what):
        to_requests(frame())


def test_empty_prompt_of_a_data_frame_is_an_error_of_its_row() -> None:
    good, bad = read_rows(pd.DataFrame({"prompt": ["a fox", float("nan")]}))
    assert good.error is None
    assert bad.error is not None
    assert bad.error.message == "prompt is empty"


def test_series_of_prompts_is_read_value_by_value() -> None:
    wanted = [ImageRequest("a fox"), ImageRequest("a lynx")]
    assert requests_of(pd.Series(["a fox", "a lynx"])) == wanted
    assert requests_of(pl.Series(["a fox", "a lynx"])) == wanted
    assert requests_of(pd.Series(["a fox", "a lynx"]).to_numpy()) == wanted


def test_row_of_a_data_frame_is_a_row_and_no_input() -> None:
    frame = pd.DataFrame({"prompt": ["a fox"], "aspect_ratio": ["16:9"]})
    assert requests_of([row for _, row in frame.iterrows()]) == [ImageRequest("a fox", aspect_ratio="16:9")]
    with pytest.raises(ConfigurationError, match=r"one row: pass \[row.to_dict\(\)\]"):
        to_requests(frame.iloc[0])


def test_rows_of_a_csv_reader_are_bought() -> None:
    table = io.StringIO("prompt,num_images,resolution\na fox,2,\na lynx,,2k\n")
    assert requests_of(csv.DictReader(table)) == [
        ImageRequest("a fox", num_images=2),
        ImageRequest("a lynx", resolution="2K"),
    ]


@each_row(
    ("requests", "advice"),
    [
        ("a lighthouse", r"not str: pass \[prompt\] for one prompt"),
        ("prompts.csv", "not the name of a file: read it"),
        (Path("prompts.txt"), "read the file, as in path.read_text"),
        (b"a lighthouse", "not bytes: decode it"),
        (bytearray(b"x"), "not bytearray: decode it"),
        ({"prompt": "a lighthouse"}, r"not dict: pass \[row\] for one row"),
        (ImageRequest("a lighthouse"), r"pass \[request\] for one request"),
        (None, "not NoneType"),
        (5, "not int"),
    ],
)
def test_input_that_would_be_misread_is_refused_with_advice(requests: Any, advice: str) -> None:
    @virtually
    async def refuses() -> None:
        async with apimall(FakeTransport(PromptGateway().answer)) as session:
            with pytest.raises(ConfigurationError, match=f"requests must be an iterable of prompts, .*{advice}"):
                session.generate_many(requests)
        gc.collect()  # the half-made batch goes without a complaint

    refuses()


def slowly_read(pauses_s: list[float]) -> Iterator[str]:
    for number, pause_s in enumerate(pauses_s):
        time.sleep(pause_s)
        yield f"image {number}"


@pytest.mark.slow
async def test_iterator_that_blocks_the_event_loop_is_logged_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(options, "BLOCKED_S", 0.02)
    with caplog.at_level(logging.WARNING):
        assert len([row async for row in options.iterate(slowly_read([0, 0.03, 0.03]), time.perf_counter)]) == 3
    (line,) = [record.getMessage() for record in caplog.records if "batch.input_blocks" in record.getMessage()]
    assert "pass an async iterator" in line


@pytest.mark.parametrize("took_s", [0.2, 0.0])
async def test_iterator_that_does_not_block_is_not_logged(took_s: float, caplog: pytest.LogCaptureFixture) -> None:
    ticks = itertools.count(step=took_s) if took_s else itertools.repeat(0.0)
    with caplog.at_level(logging.WARNING):
        assert [row async for row in options.iterate(["a", "b"], lambda: next(ticks))] == ["a", "b"]
    assert caplog.records == []


@virtually
async def test_other_tasks_run_between_the_rows_of_a_plain_iterator() -> None:
    pulled: list[int] = []
    seen: list[int] = []

    def rows() -> Iterator[str]:
        for number in range(20):
            pulled.append(number)
            yield ""  # an invalid row: nothing else waits for it

    async with apimall(FakeTransport(PromptGateway().answer)) as session, asyncio.TaskGroup() as group:

        async def watch() -> None:
            while len(pulled) < 20:
                seen.append(len(pulled))
                await asyncio.sleep(0)

        group.create_task(watch())
        await all_of(session.generate_many(rows()))
    assert max(later - earlier for earlier, later in itertools.pairwise(seen)) <= 2
