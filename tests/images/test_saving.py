"""Saving: an image is complete, hashed and listed, or absent; and no other file is touched."""

import asyncio
import base64
import errno
import hashlib
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import anyio
import pytest
from attrs import frozen

from nanobanana_async.errors import DownloadError, SaveError, SessionClosed
from nanobanana_async.images import files
from nanobanana_async.images.destination import Saved
from nanobanana_async.images.downloader import ImageDownloader
from nanobanana_async.images.files import PartialFile, rename_exclusive
from nanobanana_async.images.inline import FetchError
from nanobanana_async.images.manifest import NAME, Manifest
from nanobanana_async.images.saved import has_content
from tests.support.clocks import turns
from tests.support.images import ENDINGS, FORMATS, make_image, opened, png_claiming, redirect, reply, saying
from tests.support.loopback import until
from tests.support.peers import Peer, answering

IMAGE = make_image("png", (60, 40))
OTHER_IMAGE = make_image("png", (60, 40), seed=2)
SAVER = Path(__file__).with_name("saver.py")
ROOT = Path(__file__).parents[2]


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def listed(folder: Path) -> list[str]:
    return (folder / NAME).read_text().splitlines()


def held(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir()}


def check_sums(folder: Path) -> None:
    """Check the manifest, also with coreutils if installed."""
    if shutil.which("sha256sum") and listed(folder):  # sha256sum refuses an empty list
        subprocess.run(["sha256sum", "--strict", "-c", NAME], cwd=folder, check=True, capture_output=True)
    for line in listed(folder):
        expected, name = line.split("  ")
        assert digest((folder / name).read_bytes()) == expected


@frozen
class SavedFile:
    """A saved image whose place is a file."""

    path: Path
    sha256: str

    @classmethod
    def of(cls, saved: Saved) -> "SavedFile":
        assert isinstance(saved.place, Path)
        return cls(saved.place, saved.sha256)


async def save(content: bytes, folder: Path, name: str = "nb-1") -> SavedFile:
    async with opened() as downloader, Peer(saying(reply(content))) as peer:
        return SavedFile.of(await downloader.save(peer.url, folder, name))


async def refusal(downloader: ImageDownloader, url: str, folder: Path, name: str = "nb-1") -> DownloadError:
    with pytest.raises(DownloadError) as caught:
        await downloader.save(url, folder, name)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
    return caught.value


# What is saved


@pytest.mark.parametrize("kind", FORMATS)
async def test_image_is_saved_by_key_with_the_detected_extension(kind: str, tmp_path: Path) -> None:
    content = make_image(kind)
    saved = await save(content, tmp_path / "new" / "folder")
    path = tmp_path / "new" / "folder" / f"nb-1{ENDINGS[kind]}"
    assert saved == SavedFile(path, digest(content))
    assert path.read_bytes() == content
    assert held(path.parent) == {path.name, NAME}
    assert listed(path.parent) == [f"{digest(content)}  {path.name}"]
    check_sums(path.parent)


async def test_data_uri_is_saved(tmp_path: Path) -> None:
    async with opened() as downloader:
        saved = await downloader.save("data:;base64," + base64.b64encode(IMAGE).decode(), tmp_path, "nb-1")
    assert SavedFile.of(saved).path.read_bytes() == IMAGE


@pytest.mark.slow
async def test_large_image_is_written_unchanged(tmp_path: Path) -> None:
    large = make_image("png", (1500, 1000), compress_level=0)
    assert len(large) > 4_000_000
    saved = await save(large, tmp_path)
    assert saved.path.read_bytes() == large
    assert saved.sha256 == digest(large)


@pytest.mark.skipif(os.name == "nt", reason="modes are POSIX")
async def test_saved_image_has_the_default_file_mode(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        saved = await save(IMAGE, tmp_path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(saved.path.stat().st_mode) == 0o640
    assert saved.path.stat().st_nlink == 1


# Again, and beside others


async def test_saving_the_same_image_again_changes_nothing(tmp_path: Path) -> None:
    first = await save(IMAGE, tmp_path)
    before = first.path.stat()
    assert await save(IMAGE, tmp_path) == first
    assert (first.path.stat().st_ino, first.path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert held(tmp_path) == {"nb-1.png", NAME}
    assert len(listed(tmp_path)) == 1


async def test_another_image_gets_a_number(tmp_path: Path) -> None:
    third = make_image("png", (60, 40), seed=3)
    names = [(await save(content, tmp_path)).path.name for content in (IMAGE, OTHER_IMAGE, third, OTHER_IMAGE, IMAGE)]
    assert names == ["nb-1.png", "nb-1-2.png", "nb-1-3.png", "nb-1-2.png", "nb-1.png"]
    assert (tmp_path / "nb-1.png").read_bytes() == IMAGE
    assert len(listed(tmp_path)) == 3
    check_sums(tmp_path)


async def test_foreign_file_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "nb-1.png").write_bytes(b"not yours")
    (tmp_path / "nb-1-2.png").mkdir()
    (tmp_path / "nb-1-3.png").write_bytes(bytes(len(IMAGE)))  # the same size as the image
    saved = await save(IMAGE, tmp_path)
    assert saved.path.name == "nb-1-4.png"
    assert (tmp_path / "nb-1.png").read_bytes() == b"not yours"


async def test_existing_unlisted_image_is_listed(tmp_path: Path) -> None:
    (tmp_path / "nb-1.png").write_bytes(IMAGE)
    await save(IMAGE, tmp_path)
    assert held(tmp_path) == {"nb-1.png", NAME}
    check_sums(tmp_path)


async def test_deleted_image_is_saved_again_without_a_second_line(tmp_path: Path) -> None:
    (await save(IMAGE, tmp_path)).path.unlink()
    assert (await save(IMAGE, tmp_path)).path.name == "nb-1.png"
    assert len(listed(tmp_path)) == 1


@pytest.mark.parametrize("damage", [b"", b"junk", IMAGE[: len(IMAGE) // 2], bytes(len(IMAGE))])
async def test_damaged_image_is_replaced(tmp_path: Path, damage: bytes) -> None:
    (await save(IMAGE, tmp_path)).path.write_bytes(damage)
    saved = await save(IMAGE, tmp_path)
    assert saved.path.name == "nb-1.png"
    assert saved.path.read_bytes() == IMAGE
    assert held(tmp_path) == {"nb-1.png", NAME}
    check_sums(tmp_path)


async def test_edited_image_is_kept(tmp_path: Path) -> None:
    (await save(IMAGE, tmp_path)).path.write_bytes(OTHER_IMAGE)
    assert (await save(IMAGE, tmp_path)).path.name == "nb-1-2.png"
    assert (tmp_path / "nb-1.png").read_bytes() == OTHER_IMAGE


async def test_link_in_place_of_a_listed_image_is_kept(tmp_path: Path) -> None:
    (tmp_path / "outside").write_bytes(b"mine")
    path = (await save(IMAGE, tmp_path)).path
    path.unlink()
    path.symlink_to(tmp_path / "outside")
    assert (await save(IMAGE, tmp_path)).path.name == "nb-1-2.png"
    assert (tmp_path / "outside").read_bytes() == b"mine"


async def test_listed_name_is_not_given_to_another_image(tmp_path: Path) -> None:
    (await save(IMAGE, tmp_path)).path.unlink()
    assert (await save(OTHER_IMAGE, tmp_path)).path.name == "nb-1-2.png"


async def test_names_that_become_equal_get_a_number(tmp_path: Path) -> None:
    images = zip((IMAGE, OTHER_IMAGE, IMAGE, OTHER_IMAGE), ("a/b", "a:b", "..", "A_b"), strict=True)
    paths = {(await save(image, tmp_path, key)).path for image, key in images}
    assert {path.stem for path in paths} == {"a_b", "a_b-2", "_", "A_b-3"}  # also apart where case does not count
    assert {path.parent for path in paths} == {tmp_path}
    check_sums(tmp_path)


async def test_running_out_of_names_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_MAX_NUMBER", 2)
    await save(IMAGE, tmp_path)
    with pytest.raises(DownloadError, match="too many images are named"):
        await save(OTHER_IMAGE, tmp_path)


async def test_concurrent_saves_under_one_name_lose_nothing(tmp_path: Path) -> None:
    contents = [make_image("png", (30, 20), seed=seed) for seed in range(1, 7)] * 2
    async with opened() as downloader, asyncio.TaskGroup() as group:
        for content in contents:
            group.create_task(_save_inline(downloader, content, tmp_path))
    saved = [(tmp_path / name).read_bytes() for name in held(tmp_path) - {NAME}]
    assert sorted(saved) == sorted(set(contents))
    assert len(listed(tmp_path)) == 6
    check_sums(tmp_path)


async def _save_inline(downloader: ImageDownloader, content: bytes, folder: Path) -> Saved:
    return await downloader.save("data:;base64," + base64.b64encode(content).decode(), folder, "nb-1")


def test_unreadable_file_counts_as_different(tmp_path: Path) -> None:
    assert has_content(tmp_path / "missing", digest(IMAGE)) is False


# Hostile folders


async def test_symbolic_link_in_place_of_the_image_is_not_followed(tmp_path: Path) -> None:
    folder, outside = tmp_path / "out", tmp_path / "precious"
    folder.mkdir()
    outside.write_bytes(IMAGE)
    (folder / "nb-1.png").symlink_to(outside)
    (folder / "nb-1-2.png").symlink_to(tmp_path / "nowhere")
    saved = await save(IMAGE, folder)
    assert saved.path == folder / "nb-1-3.png"
    assert outside.read_bytes() == IMAGE
    assert held(tmp_path) == {"out", "precious"}


@pytest.mark.parametrize("kind", ["link", "dangling link", "hard link", "folder", "pipe"])
async def test_manifest_that_is_no_regular_file_is_not_written(kind: str, tmp_path: Path) -> None:
    folder, outside = tmp_path / "out", tmp_path / "precious"
    folder.mkdir()
    match kind:
        case "link":
            outside.write_text("mine\n")
            (folder / NAME).symlink_to(outside)
        case "dangling link":
            (folder / NAME).symlink_to(outside)
        case "hard link":
            outside.write_text("mine\n")
            (folder / NAME).hardlink_to(outside)
        case "folder":
            (folder / NAME).mkdir()
        case _:
            os.mkfifo(folder / NAME)
    with pytest.raises(SaveError, match=rf"{folder}(/{NAME})? can't be written: .*: move that away"):
        await save(IMAGE, folder)
    assert held(folder) == {NAME}
    assert not outside.exists() or outside.read_text() == "mine\n"


async def test_file_in_place_of_the_folder_is_reported(tmp_path: Path) -> None:
    (tmp_path / "out").write_bytes(b"")
    with pytest.raises(SaveError, match="out can't be written: something else has this name: move that away"):
        await save(IMAGE, tmp_path / "out")


async def test_too_large_image_is_a_download_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def too_large(part: PartialFile, content: bytes) -> None:
        raise OSError(errno.EFBIG, "File too large")

    monkeypatch.setattr(PartialFile, "write", too_large)
    with pytest.raises(DownloadError, match="File too large"):
        await save(IMAGE, tmp_path)
    assert held(tmp_path) == set()


async def test_too_many_open_files_are_retried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opens, failed = PartialFile.open, 0

    def open_later(part: PartialFile) -> None:
        nonlocal failed
        if failed < 2:
            failed += 1
            raise OSError(errno.EMFILE, "Too many open files")
        opens(part)

    monkeypatch.setattr(PartialFile, "open", open_later)
    assert (await save(IMAGE, tmp_path)).path.exists()
    assert failed == 2


async def test_check_writes_a_test_file_and_removes_it(tmp_path: Path) -> None:
    async with opened() as downloader:
        await downloader.check_target(tmp_path / "new" / "out")
        assert held(tmp_path / "new" / "out") == set()
        (tmp_path / NAME).hardlink_to(SAVER)
        for folder in (tmp_path, tmp_path / ("x" * 300), SAVER):
            with pytest.raises(SaveError, match="can't be written"):
                await downloader.check_target(folder)
        assert held(tmp_path) == {NAME, "new"}


async def test_full_disk_is_a_save_error_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int, content: bytes) -> int:
        raise OSError(28, "No space left on device")

    async with opened() as downloader, Peer(saying(reply(IMAGE))) as peer:
        with monkeypatch.context() as patched:
            patched.setattr(os, "write", full)
            with pytest.raises(SaveError) as caught:
                await downloader.save(peer.url, tmp_path, "nb-1")
        assert peer.accepted == 1
    assert caught.value.message == f"{tmp_path} can't be written: No space left on device: make room"
    assert held(tmp_path) == set()


async def test_manifest_with_a_torn_line_continues_on_a_new_one(tmp_path: Path) -> None:
    (tmp_path / NAME).write_text(f"{digest(OTHER_IMAGE)}  other.png\nabc")
    await save(IMAGE, tmp_path)
    assert listed(tmp_path) == [f"{digest(OTHER_IMAGE)}  other.png", "abc", f"{digest(IMAGE)}  nb-1.png"]


def test_manifest_is_locked(tmp_path: Path) -> None:
    seen: list[set[tuple[str, str]]] = []

    def read() -> None:
        with Manifest(tmp_path) as manifest:
            seen.append(manifest.listed("A.png"))

    reader = threading.Thread(target=read)
    with Manifest(tmp_path) as manifest:
        reader.start()
        reader.join(0.05)
        assert seen == []
        manifest.add("a.png", digest(IMAGE))
    reader.join(2)
    assert seen == [{("a.png", digest(IMAGE))}]


def test_partial_manifest_write_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Manifest(tmp_path) as manifest:
        monkeypatch.setattr(os, "write", lambda descriptor, line: len(line) - 1)
        with pytest.raises(OSError, match="space"):
            manifest.add("a.png", digest(IMAGE))


def test_manifest_is_written_without_file_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(descriptor: int, how: int) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr("nanobanana_async.file_locks.fcntl.flock", unsupported)
    with Manifest(tmp_path) as manifest:
        manifest.add("a.png", digest(IMAGE))
    assert listed(tmp_path) == [f"{digest(IMAGE)}  a.png"]


# File systems without hard links


@pytest.fixture
def _no_links(monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(part: Path, target: Path) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", unsupported)


@pytest.mark.usefixtures("_no_links")
async def test_without_hard_links_nothing_is_overwritten(tmp_path: Path) -> None:
    names = [(await save(content, tmp_path)).path.name for content in (IMAGE, OTHER_IMAGE, IMAGE)]
    assert names == ["nb-1.png", "nb-1-2.png", "nb-1.png"]
    assert held(tmp_path) == {"nb-1.png", "nb-1-2.png", NAME}
    check_sums(tmp_path)


@pytest.mark.usefixtures("_no_links")
def test_failed_rename_frees_the_name(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        rename_exclusive(tmp_path / "missing", tmp_path / "a.png")
    assert held(tmp_path) == set()


# Failing, being cancelled, being killed


@pytest.mark.parametrize(
    "answer",
    [
        reply(IMAGE)[:-7],
        reply(IMAGE[:-7], length=None),
        reply(b"<html>"),
        reply(b""),
        reply(png_claiming(30_000, 30_000)),
        reply(png_claiming(30, 30)),
        reply(IMAGE, length=10**9),
        reply(b"", status="404 Not Found"),
        redirect("http://10.0.0.1/"),
    ],
)
async def test_refused_image_leaves_no_file(answer: bytes, tmp_path: Path) -> None:
    async with opened(attempts=2) as downloader, Peer(saying(answer)) as peer:
        await refusal(downloader, peer.url, tmp_path)
    assert held(tmp_path) == set()


@pytest.mark.parametrize("kind", ["png", "jpeg"])
async def test_truncated_image_leaves_no_file(kind: str, tmp_path: Path) -> None:
    whole = make_image(kind, (5, 4))
    replies = [reply(whole[:cut], length=None) for cut in range(0, len(whole), 11)]
    async with opened(attempts=1) as downloader, Peer(saying(*replies)) as peer:
        for _ in replies:
            await refusal(downloader, peer.url, tmp_path)
    assert held(tmp_path) == set()


async def test_image_complete_at_a_later_attempt_is_saved(tmp_path: Path) -> None:
    async with opened() as downloader, Peer(saying(reply(IMAGE)[:-9], reply(IMAGE))) as peer:
        assert (await downloader.save(peer.url, tmp_path, "nb-1")).sha256 == digest(IMAGE)
    assert held(tmp_path) == {"nb-1.png", NAME}


@pytest.mark.parametrize("how", ["task", "scope", "closing"])
async def test_interrupted_save_leaves_no_file(how: str, tmp_path: Path) -> None:
    async with opened() as downloader, Peer(answering(reply(IMAGE)[:-9], then="wait")) as peer:
        if how == "scope":
            with anyio.move_on_after(0.05) as scope:
                await downloader.save(peer.url, tmp_path, "nb-1")
            assert scope.cancelled_caught
        else:
            saving = asyncio.get_running_loop().create_task(downloader.save(peer.url, tmp_path, "nb-1"))
            await peer.all_accepted(1)
            await until(lambda: len(held(tmp_path)) == 1)
            if how == "task":
                saving.cancel()
            else:
                await downloader.aclose()
            with pytest.raises((asyncio.CancelledError, SessionClosed)):
                await saving
    assert held(tmp_path) == set()


STEPS = {
    "open": (PartialFile, "open"),
    "write": (PartialFile, "write"),
    "publish": (PartialFile, "finish"),
    "name": (files, "rename_exclusive"),
}


@pytest.mark.parametrize("step", STEPS)
async def test_save_cancelled_in_its_thread_is_complete_or_absent(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    working, proceed = threading.Event(), threading.Event()
    owner, name = STEPS[step]
    plain: Callable[..., object] = getattr(owner, name)

    def slow(*values: object) -> object:
        working.set()
        proceed.wait(30)
        return plain(*values)

    monkeypatch.setattr(owner, name, slow)
    async with opened() as downloader, Peer(saying(reply(IMAGE))) as peer:
        saving = asyncio.get_running_loop().create_task(downloader.save(peer.url, tmp_path, "nb-1"))
        await asyncio.to_thread(working.wait, 30)
        saving.cancel()
        await turns()  # the task takes note of it first
        await asyncio.sleep(0.02)
        proceed.set()
        with pytest.raises(asyncio.CancelledError):
            await saving
        left = {"nb-1.png", NAME} if step == "name" else set()
        await until(lambda: held(tmp_path) == left)
        await asyncio.sleep(0.05)
    if step == "name":  # too late to undo
        check_sums(tmp_path)
    assert held(tmp_path) == left


def test_discarded_partial_file_does_nothing(tmp_path: Path) -> None:
    part = PartialFile(tmp_path)
    part.discard()
    part.open()
    part.write(IMAGE)
    part.remove_stale_parts()
    with pytest.raises(FetchError, match="discarded"):
        part.finish("nb-1")
    assert held(tmp_path) == set()


async def test_partial_files_are_removed_after_an_hour(tmp_path: Path) -> None:
    old = time.time() - 3700  # noqa: TID251
    for name in (
        ".nanobanana-0123456789abcdef.part",
        ".nanobanana-x.part",
        "mine.part",
        ".nanobanana-0123456789abcdef",
    ):
        (tmp_path / name).write_bytes(b"x")
        os.utime(tmp_path / name, (old, old))
    (tmp_path / ".nanobanana-aaaaaaaaaaaaaaaa.part").write_bytes(b"in use")
    (tmp_path / ".nanobanana-bbbbbbbbbbbbbbbb.part").symlink_to(tmp_path / "mine.part")
    os.utime(tmp_path / ".nanobanana-bbbbbbbbbbbbbbbb.part", (old, old), follow_symlinks=False)
    before = held(tmp_path)
    await save(IMAGE, tmp_path)
    assert before - held(tmp_path) == {".nanobanana-0123456789abcdef.part"}


def _saver(
    folder: Path, content: Path, *, name: str = "nb-1", count: int = 1, step: str = ""
) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, str(SAVER), str(folder), name, str(content), str(count), step], env=environment
    )


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals are POSIX")
@pytest.mark.parametrize("step", ["before the name", "before the flush of the folder", "before the manifest line"])
async def test_killed_save_leaves_a_correct_manifest(step: str, tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(IMAGE)
    folder = tmp_path / "out"
    folder.mkdir()
    assert _saver(folder, tmp_path / "image", step=step).wait(50) == -signal.SIGKILL
    check_sums(folder)
    shown = {name for name in held(folder) if not name.startswith(".")}
    assert shown == {NAME} if step == "before the name" else {NAME, "nb-1.png"}
    assert (await save(IMAGE, folder)).path.name == "nb-1.png"
    assert listed(folder) == [f"{digest(IMAGE)}  nb-1.png"]
    check_sums(folder)


@pytest.mark.slow
async def test_processes_share_a_folder(tmp_path: Path) -> None:
    for number, content in enumerate((IMAGE, OTHER_IMAGE)):
        (tmp_path / str(number)).write_bytes(content)
    folder = tmp_path / "out"
    savers = [_saver(folder, tmp_path / str(number % 2), name="nb-{}", count=20) for number in range(4)]
    assert [saver.wait(50) for saver in savers] == [0, 0, 0, 0]
    names = held(folder) - {NAME}
    assert names == {f"nb-{number}{twin}.png" for number in range(20) for twin in ("", "-2")}
    assert len(listed(folder)) == len(set(listed(folder))) == 40
    assert not [line for line in listed(folder) if not re.fullmatch(r"[0-9a-f]{64}  nb-\d+(-2)?\.png", line)]
    check_sums(folder)
