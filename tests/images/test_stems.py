"""All images of one job share one stem; on a collision the whole job gets another one, the same on a run again."""

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

from nanobanana_async import Session
from nanobanana_async.emulator import Emulator, Fixed

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("taken", ["fox-2.png", "fox-1.jpg", "FOX-1.png"])
async def test_whole_job_gets_another_stem_where_one_name_is_taken(taken: str, tmp_path: Path) -> None:
    (tmp_path / taken).write_bytes(b"mine")
    if taken[0].isupper():
        (tmp_path / "SHA256SUMS").write_text(f"{'0' * 64}  {taken}\n")
    async with Emulator(duration=Fixed(0.05), image_scale=0.05) as emulator, Session(emulator.apimall()) as session:
        result = await session.generate("a fox", num_images=2)
        paths = await session.save(result, tmp_path, name="fox")
        assert [path.name for path in paths] == ["fox-2-1.png", "fox-2-2.png"]
        assert await session.save(result, tmp_path, name="fox") == paths
        paths[0].unlink()  # as after a kill between the two
        assert await session.save(result, tmp_path, name="fox") == paths
    assert (tmp_path / taken).read_bytes() == b"mine"


async def at_once(*saves: Coroutine[Any, Any, list[Path]]) -> list[list[Path]]:
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(save) for save in saves]
    return [task.result() for task in tasks]


async def test_jobs_that_are_saved_at_the_same_time_have_stems_of_their_own(tmp_path: Path) -> None:
    async with Emulator(duration=Fixed(0.05), image_scale=0.05) as emulator, Session(emulator.apimall()) as session:
        results = [await session.generate("a fox", num_images=3) for _ in range(4)]
        saved = await at_once(*(session.save(result, tmp_path, name="fox") for result in results))
    names = [[path.stem for path in paths] for paths in saved]
    stems = [{name.rpartition("-")[0] for name in each} for each in names]
    assert all(len(each) == 1 for each in stems)
    assert len(set.union(*stems)) == 4
    assert sorted(names)[0] == ["fox-1", "fox-2", "fox-3"]


async def test_two_saves_of_one_job_at_the_same_time_give_one_set_of_files(tmp_path: Path) -> None:
    async with Emulator(duration=Fixed(0.05), image_scale=0.05) as emulator, Session(emulator.apimall()) as session:
        result = await session.generate("a fox", num_images=2)
        first, second = await at_once(*(session.save(result, tmp_path, name="fox") for _ in range(2)))
    assert first == second
    assert [path.name for path in first] == ["fox-1.png", "fox-2.png"]
