"""What holds wherever images are saved: folders, stores in memory and local stores behave alike."""

import asyncio
import json
from pathlib import Path

import pytest

pytest.importorskip("obstore", reason="obstore is not installed: pip install 'nanobanana-async[store]'")

from obstore.store import LocalStore, MemoryStore

from nanobanana_async.errors import DownloadError, SaveError
from tests.store.shelves import IMAGES, FolderShelf, Shelf, StoreShelf, bought, digest, link
from tests.support.images import ENDINGS, FORMATS, make_image, opened

ONE, TWO, THREE, FOUR = IMAGES
NAMES = {
    "order-17": "order-17.png",
    "ein Gewächshaus": "ein_Gewachshaus.png",
    "日本": "_.png",
    "../../etc/passwd": "_.._etc_passwd.png",
    "a/b\\c": "a_b_c.png",
    ".hidden": "hidden.png",
    "con": "_con.png",
    "trailing.": "trailing.png",
    "nul\0byte\n": "nul_byte_.png",
}


@pytest.fixture(params=["folder", "memory", "local"])
def shelf(request: pytest.FixtureRequest, tmp_path: Path) -> Shelf:
    if request.param == "folder":
        return FolderShelf(tmp_path / "images")
    return StoreShelf(MemoryStore() if request.param == "memory" else LocalStore(tmp_path))


@pytest.mark.parametrize("kind", FORMATS)
async def test_image_gets_its_name_and_the_detected_extension(shelf: Shelf, kind: str) -> None:
    content, name = make_image(kind), f"fox{ENDINGS[kind]}"
    saved = await shelf.save(content, "fox", bought("a"))
    assert (saved.place, saved.sha256) == (shelf.place(name), digest(content))
    assert await shelf.images() == {name: content}


async def test_names_are_the_same_everywhere(shelf: Shelf) -> None:
    for number, name in enumerate(NAMES):
        content = make_image("png", (20, 20), seed=number + 1)
        saved = await shelf.save(content, name, bought(f"job {number}"))
        assert saved.place == shelf.place(NAMES[name])
    assert set(await shelf.images()) == set(NAMES.values())


async def test_image_with_a_long_name_is_found_again(shelf: Shelf) -> None:
    await shelf.save(TWO, "x" * 300, bought("b"))
    saved = await shelf.save(ONE, "x" * 300, bought("a"))
    assert sorted(len(name) for name in await shelf.images()) == [124, 126]
    async with opened() as downloader:
        assert await downloader.find_saved(shelf.target, bought("a")) == saved


async def test_same_image_again_changes_nothing(shelf: Shelf) -> None:
    first = await shelf.save(ONE, "fox", bought("a"))
    before = await shelf.everything()
    assert await shelf.save(ONE, "fox", bought("a")) == first
    assert await shelf.everything() == before


async def test_other_images_of_the_name_get_numbers(shelf: Shelf) -> None:
    for number, content in enumerate((ONE, TWO, THREE, TWO, ONE)):
        await shelf.save(content, "fox", bought(f"job {digest(content)}" if number > 2 else f"job {number}"))
    assert await shelf.images() == {"fox.png": ONE, "fox-2.png": TWO, "fox-3.png": THREE}


async def test_foreign_content_is_never_overwritten(shelf: Shelf) -> None:
    await shelf.put("fox.png", b"precious")
    await shelf.put("fox-2.png", b"too")
    saved = await shelf.save(ONE, "fox", bought("a"))
    assert saved.place == shelf.place("fox-3.png")
    assert await shelf.images() == {"fox.png": b"precious", "fox-2.png": b"too", "fox-3.png": ONE}
    async with opened() as downloader:
        assert await downloader.find_saved(shelf.target, bought("a")) == saved


async def test_saved_image_is_found_by_its_record_under_any_name(shelf: Shelf) -> None:
    saved = await shelf.save(ONE, "fox", bought("a"))
    async with opened() as downloader:
        assert await downloader.find_saved(shelf.target, bought("a")) == saved
        assert await downloader.find_saved(shelf.target, bought("a", 1)) is None
        assert await downloader.find_saved(shelf.target, bought("b")) is None


async def test_removed_image_is_saved_again_under_its_name(shelf: Shelf) -> None:
    await shelf.save(ONE, "fox", bought("a"))
    await shelf.remove("fox.png")
    async with opened() as downloader:
        assert await downloader.find_saved(shelf.target, bought("a")) is None
    assert (await shelf.save(ONE, "fox", bought("a"))).place == shelf.place("fox.png")
    assert await shelf.images() == {"fox.png": ONE}


async def test_replaced_image_is_not_found(shelf: Shelf) -> None:
    await shelf.save(ONE, "fox", bought("a"))
    await shelf.remove("fox.png")
    await shelf.put("fox.png", TWO)
    async with opened() as downloader:
        assert await downloader.find_saved(shelf.target, bought("a")) is None
    assert (await shelf.save(ONE, "fox", bought("a"))).place == shelf.place("fox-2.png")
    assert await shelf.images() == {"fox.png": TWO, "fox-2.png": ONE}


@pytest.mark.parametrize("content", [b"", b"no image", ONE[:-20]])
async def test_bad_image_leaves_nothing(shelf: Shelf, content: bytes) -> None:
    with pytest.raises(DownloadError):
        await shelf.save(content, "fox", bought("a"))
    assert {name: found for name, found in (await shelf.images()).items() if found} == {}


async def test_sessions_that_save_one_job_together_end_with_one_image(shelf: Shelf) -> None:
    async with shelf.sessions(3) as sessions, asyncio.TaskGroup() as group:
        saves = [group.create_task(each.save(link(ONE), shelf.target, "fox", bought("a"))) for each in sessions]
    assert {save.result().place for save in saves} == {shelf.place("fox.png")}
    assert await shelf.images() == {"fox.png": ONE}


async def test_images_of_one_name_saved_together_are_all_kept(shelf: Shelf) -> None:
    async with opened() as downloader, asyncio.TaskGroup() as group:
        for number, content in enumerate(IMAGES):
            group.create_task(downloader.save(link(content), shelf.target, "fox", bought(f"job {number}")))
    assert set(await shelf.images()) == {"fox.png", "fox-2.png", "fox-3.png", "fox-4.png"}
    assert set((await shelf.images()).values()) == set(IMAGES)


async def test_check_leaves_nothing_behind(shelf: Shelf) -> None:
    async with opened() as downloader:
        await downloader.check_target(shelf.target)
    assert await shelf.everything() == {}


# Sidecars

FACTS = {"job_key": "a", "task_id": "task-a", "image": 1, "sha256": digest(ONE), "prompt": "ein Gewächshaus"}


async def add(shelf: Shelf, image: str, facts: dict[str, object]) -> None:
    async with opened() as downloader:
        await downloader.add_sidecar(shelf.target, image, facts)


async def test_sidecar_is_beside_the_image_and_written_once(shelf: Shelf) -> None:
    await add(shelf, "fox.png", FACTS)
    await add(shelf, "fox.png", {**FACTS, "credits": 8})
    ((name, content),) = (await shelf.everything()).items()
    assert (name, json.loads(content)) == ("fox.json", FACTS)


async def test_sidecar_of_another_image_is_kept(shelf: Shelf) -> None:
    await add(shelf, "fox.png", FACTS)
    await add(shelf, "fox.jpg", {**FACTS, "sha256": digest(TWO)})
    assert set(await shelf.everything()) == {"fox.json", "fox.jpg.json"}


async def test_sidecar_overwrites_no_foreign_file(shelf: Shelf) -> None:
    await shelf.put("fox.json", b"[]")
    await shelf.put("fox.png.json", b"precious")
    with pytest.raises(SaveError, match=r"has other files named fox\.json and fox\.png\.json: move one away"):
        await add(shelf, "fox.png", FACTS)
    assert await shelf.everything() == {"fox.json": b"[]", "fox.png.json": b"precious"}
