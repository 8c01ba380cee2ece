"""Saving: a file is there whole, hashed and listed, or it is not there; and nothing else is touched."""

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

from nanobanana_async.errors import DownloadError, SaveError, SessionClosed
from nanobanana_async.images import files
from nanobanana_async.images.downloader import ImageDownloader
from nanobanana_async.images.files import PartialFile, SavedImage, rename_exclusive
from nanobanana_async.images.inline import FetchError
from nanobanana_async.images.manifest import NAME, Manifest
from tests.images.scenes import ENDINGS, FORMATS, opened, picture, png_claiming, redirect, reply, saying
from tests.http.peers import Peer, answering

WHOLE = picture("png", (60, 40))
OTHER = picture("png", (60, 40), seed=2)
SAVER = Path(__file__).with_name("saver.py")
ROOT = Path(__file__).parents[2]


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def listed(folder: Path) -> list[str]:
    return (folder / NAME).read_text().splitlines()


def held(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir()}


def check_sums(folder: Path) -> None:
    """Let the list be checked, by coreutils where they are installed."""
    if shutil.which("sha256sum") and listed(folder):  # it takes an empty list for none
        subprocess.run(["sha256sum", "--strict", "-c", NAME], cwd=folder, check=True, capture_output=True)
    for line in listed(folder):
        expected, name = line.split("  ")
        assert digest((folder / name).read_bytes()) == expected


async def save(content: bytes, folder: Path, name: str = "nb-1") -> SavedImage:
    async with opened() as downloads, Peer(saying(reply(content))) as peer:
        return await downloads.save(peer.url, folder, name)


async def refusal(downloads: ImageDownloader, url: str, folder: Path, name: str = "nb-1") -> DownloadError:
    with pytest.raises(DownloadError) as caught:
        await downloads.save(url, folder, name)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
    return caught.value


# What is saved


@pytest.mark.parametrize("kind", FORMATS)
async def test_a_picture_is_saved_under_its_key_with_the_ending_of_its_bytes(kind: str, tmp_path: Path) -> None:
    content = picture(kind)
    saved = await save(content, tmp_path / "new" / "folder")
    path = tmp_path / "new" / "folder" / f"nb-1{ENDINGS[kind]}"
    assert saved == SavedImage(path=path, sha256=digest(content), size=len(content), format=kind)
    assert path.read_bytes() == content
    assert held(path.parent) == {path.name, NAME}
    assert listed(path.parent) == [f"{digest(content)}  {path.name}"]
    check_sums(path.parent)


async def test_a_picture_inside_its_link_is_saved_too(tmp_path: Path) -> None:
    async with opened() as downloads:
        saved = await downloads.save("data:;base64," + base64.b64encode(WHOLE).decode(), tmp_path, "nb-1")
    assert saved.path.read_bytes() == WHOLE


async def test_a_picture_of_many_pieces_is_written_as_it_came(tmp_path: Path) -> None:
    large = picture("png", (1500, 1000), compress_level=0)
    assert len(large) > 4_000_000
    saved = await save(large, tmp_path)
    assert saved.path.read_bytes() == large
    assert saved.sha256 == digest(large)


@pytest.mark.skipif(os.name == "nt", reason="modes are POSIX")
async def test_a_saved_picture_has_the_mode_of_any_new_file(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        saved = await save(WHOLE, tmp_path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(saved.path.stat().st_mode) == 0o640
    assert saved.path.stat().st_nlink == 1


# Again, and beside others


async def test_saving_the_same_picture_again_changes_nothing(tmp_path: Path) -> None:
    first = await save(WHOLE, tmp_path)
    before = first.path.stat()
    assert await save(WHOLE, tmp_path) == first
    assert (first.path.stat().st_ino, first.path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert held(tmp_path) == {"nb-1.png", NAME}
    assert len(listed(tmp_path)) == 1


async def test_another_picture_never_replaces_one_but_gets_a_number(tmp_path: Path) -> None:
    third = picture("png", (60, 40), seed=3)
    names = [(await save(content, tmp_path)).path.name for content in (WHOLE, OTHER, third, OTHER, WHOLE)]
    assert names == ["nb-1.png", "nb-1-2.png", "nb-1-3.png", "nb-1-2.png", "nb-1.png"]
    assert (tmp_path / "nb-1.png").read_bytes() == WHOLE
    assert len(listed(tmp_path)) == 3
    check_sums(tmp_path)


async def test_a_strangers_file_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "nb-1.png").write_bytes(b"not yours")
    (tmp_path / "nb-1-2.png").mkdir()
    (tmp_path / "nb-1-3.png").write_bytes(bytes(len(WHOLE)))  # as long as ours
    saved = await save(WHOLE, tmp_path)
    assert saved.path.name == "nb-1-4.png"
    assert (tmp_path / "nb-1.png").read_bytes() == b"not yours"


async def test_the_same_picture_that_stands_unlisted_is_listed(tmp_path: Path) -> None:
    (tmp_path / "nb-1.png").write_bytes(WHOLE)
    await save(WHOLE, tmp_path)
    assert held(tmp_path) == {"nb-1.png", NAME}
    check_sums(tmp_path)


async def test_a_picture_that_was_deleted_is_saved_again_without_a_second_line(tmp_path: Path) -> None:
    (await save(WHOLE, tmp_path)).path.unlink()
    assert (await save(WHOLE, tmp_path)).path.name == "nb-1.png"
    assert len(listed(tmp_path)) == 1


async def test_a_name_that_the_list_promised_to_one_picture_is_not_given_to_another(tmp_path: Path) -> None:
    (await save(WHOLE, tmp_path)).path.unlink()
    assert (await save(OTHER, tmp_path)).path.name == "nb-1-2.png"


async def test_two_keys_never_share_a_file_though_they_look_alike(tmp_path: Path) -> None:
    paths = {(await save(WHOLE, tmp_path, key)).path for key in ("a/b", "a\\b", "a:b", "a_b", "../a_b", "..")}
    assert len(paths) == 6
    assert {path.parent for path in paths} == {tmp_path}
    check_sums(tmp_path)


async def test_names_do_not_run_out_without_a_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_MAX_NUMBER", 2)
    await save(WHOLE, tmp_path)
    with pytest.raises(DownloadError, match="too many pictures are called"):
        await save(OTHER, tmp_path)


async def test_many_at_once_under_one_name_lose_nothing(tmp_path: Path) -> None:
    contents = [picture("png", (30, 20), seed=seed) for seed in range(1, 7)] * 2
    async with opened() as downloads, asyncio.TaskGroup() as group:
        for content in contents:
            group.create_task(_save_inline(downloads, content, tmp_path))
    pictures = [(tmp_path / name).read_bytes() for name in held(tmp_path) - {NAME}]
    assert sorted(pictures) == sorted(set(contents))
    assert len(listed(tmp_path)) == 6
    check_sums(tmp_path)


async def _save_inline(downloads: ImageDownloader, content: bytes, folder: Path) -> SavedImage:
    return await downloads.save("data:;base64," + base64.b64encode(content).decode(), folder, "nb-1")


def test_a_file_that_can_not_be_read_is_another(tmp_path: Path) -> None:
    assert files._has_content(tmp_path / "missing", len(WHOLE), digest(WHOLE)) is False


# Hostile folders


async def test_a_symbolic_link_under_the_name_is_not_followed(tmp_path: Path) -> None:
    folder, outside = tmp_path / "out", tmp_path / "precious"
    folder.mkdir()
    outside.write_bytes(WHOLE)
    (folder / "nb-1.png").symlink_to(outside)
    (folder / "nb-1-2.png").symlink_to(tmp_path / "nowhere")
    saved = await save(WHOLE, folder)
    assert saved.path == folder / "nb-1-3.png"
    assert outside.read_bytes() == WHOLE
    assert held(tmp_path) == {"out", "precious"}


@pytest.mark.parametrize("kind", ["link", "dangling link", "hard link", "folder", "pipe"])
async def test_a_list_that_is_no_file_is_not_written_to(kind: str, tmp_path: Path) -> None:
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
    with pytest.raises(SaveError, match=f"{folder} can't be written: .*: move away what is in its place"):
        await save(WHOLE, folder)
    assert held(folder) == {NAME}
    assert not outside.exists() or outside.read_text() == "mine\n"


async def test_a_folder_that_is_a_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "out").write_bytes(b"")
    with pytest.raises(SaveError, match="out can't be written: File exists"):
        await save(WHOLE, tmp_path / "out")


async def test_one_image_too_large_for_the_file_system_is_not_the_folders_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_large(part: PartialFile, content: bytes) -> None:
        raise OSError(errno.EFBIG, "File too large")

    monkeypatch.setattr(PartialFile, "write", too_large)
    with pytest.raises(DownloadError, match="File too large"):
        await save(WHOLE, tmp_path)
    assert held(tmp_path) == set()


async def test_too_many_open_files_are_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opens, failed = PartialFile.open, 0

    def open_later(part: PartialFile) -> None:
        nonlocal failed
        if failed < 2:
            failed += 1
            raise OSError(errno.EMFILE, "Too many open files")
        opens(part)

    monkeypatch.setattr(PartialFile, "open", open_later)
    assert (await save(WHOLE, tmp_path)).path.exists()
    assert failed == 2


async def test_a_folder_is_checked_by_writing_and_left_as_it_was(tmp_path: Path) -> None:
    async with opened() as downloads:
        await downloads.check(tmp_path / "new" / "out")
        assert held(tmp_path / "new" / "out") == set()
        (tmp_path / NAME).hardlink_to(SAVER)
        for folder in (tmp_path, tmp_path / ("x" * 300), SAVER):
            with pytest.raises(SaveError, match="can't be written"):
                await downloads.check(folder)
        assert held(tmp_path) == {NAME, "new"}


async def test_a_full_disk_is_told_once_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int, content: bytes) -> int:
        raise OSError(28, "No space left on device")

    async with opened() as downloads, Peer(saying(reply(WHOLE))) as peer:
        with monkeypatch.context() as patched:
            patched.setattr(os, "write", full)
            with pytest.raises(SaveError) as caught:
                await downloads.save(peer.url, tmp_path, "nb-1")
        assert peer.accepted == 1
    assert caught.value.message == f"{tmp_path} can't be written: No space left on device: make room"
    assert held(tmp_path) == set()


async def test_a_list_with_a_torn_last_line_goes_on_in_a_new_one(tmp_path: Path) -> None:
    (tmp_path / NAME).write_text(f"{digest(OTHER)}  other.png\nabc")
    await save(WHOLE, tmp_path)
    assert listed(tmp_path) == [f"{digest(OTHER)}  other.png", "abc", f"{digest(WHOLE)}  nb-1.png"]


def test_the_list_is_held_by_one_at_a_time(tmp_path: Path) -> None:
    seen: list[set[str]] = []

    def look() -> None:
        with Manifest(tmp_path) as manifest:
            seen.append(manifest.digests_of("a.png"))

    looking = threading.Thread(target=look)
    with Manifest(tmp_path) as manifest:
        looking.start()
        looking.join(0.05)
        assert seen == []
        manifest.add("a.png", digest(WHOLE))
    looking.join(2)
    assert seen == [{digest(WHOLE)}]


def test_a_line_that_is_written_in_part_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Manifest(tmp_path) as manifest:
        monkeypatch.setattr(os, "write", lambda descriptor, line: len(line) - 1)
        with pytest.raises(OSError, match="space"):
            manifest.add("a.png", digest(WHOLE))


def test_a_list_on_a_file_system_without_locks_is_written_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(descriptor: int, how: int) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr("nanobanana_async.images.manifest.fcntl.flock", unsupported)
    with Manifest(tmp_path) as manifest:
        manifest.add("a.png", digest(WHOLE))
    assert listed(tmp_path) == [f"{digest(WHOLE)}  a.png"]


# File systems without hard links


@pytest.fixture
def _no_links(monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(part: Path, target: Path) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", unsupported)


@pytest.mark.usefixtures("_no_links")
async def test_without_hard_links_nothing_is_overwritten_either(tmp_path: Path) -> None:
    names = [(await save(content, tmp_path)).path.name for content in (WHOLE, OTHER, WHOLE)]
    assert names == ["nb-1.png", "nb-1-2.png", "nb-1.png"]
    assert held(tmp_path) == {"nb-1.png", "nb-1-2.png", NAME}
    check_sums(tmp_path)


@pytest.mark.usefixtures("_no_links")
def test_a_name_that_was_taken_for_nothing_is_given_back(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        rename_exclusive(tmp_path / "missing", tmp_path / "a.png")
    assert held(tmp_path) == set()


# Failing, being cancelled, being killed


@pytest.mark.parametrize(
    "said",
    [
        reply(WHOLE)[:-7],
        reply(WHOLE[:-7], length=None),
        reply(b"<html>"),
        reply(b""),
        reply(png_claiming(30_000, 30_000)),
        reply(png_claiming(30, 30)),
        reply(WHOLE, length=10**9),
        reply(b"", status="404 Not Found"),
        redirect("http://10.0.0.1/"),
    ],
)
async def test_a_picture_that_is_refused_leaves_nothing(said: bytes, tmp_path: Path) -> None:
    async with opened(attempts=2) as downloads, Peer(saying(said)) as peer:
        await refusal(downloads, peer.url, tmp_path)
    assert held(tmp_path) == set()


@pytest.mark.parametrize("kind", ["png", "jpeg"])
async def test_a_picture_cut_at_any_byte_leaves_nothing(kind: str, tmp_path: Path) -> None:
    whole = picture(kind, (5, 4))
    replies = [reply(whole[:cut], length=None) for cut in range(0, len(whole), 11)]
    async with opened(attempts=1) as downloads, Peer(saying(*replies)) as peer:
        for _ in replies:
            await refusal(downloads, peer.url, tmp_path)
    assert held(tmp_path) == set()


async def test_a_picture_that_comes_whole_at_the_next_attempt_is_saved_whole(tmp_path: Path) -> None:
    async with opened() as downloads, Peer(saying(reply(WHOLE)[:-9], reply(WHOLE))) as peer:
        assert (await downloads.save(peer.url, tmp_path, "nb-1")).sha256 == digest(WHOLE)
    assert held(tmp_path) == {"nb-1.png", NAME}


@pytest.mark.parametrize("how", ["task", "scope", "closing"])
async def test_an_interrupted_save_leaves_nothing(how: str, tmp_path: Path) -> None:
    async with opened() as downloads, Peer(answering(reply(WHOLE)[:-9], then="wait")) as peer:
        if how == "scope":
            with anyio.move_on_after(0.05) as scope:
                await downloads.save(peer.url, tmp_path, "nb-1")
            assert scope.cancelled_caught
        else:
            saving = asyncio.get_running_loop().create_task(downloads.save(peer.url, tmp_path, "nb-1"))
            await peer.all_met(1)
            await asyncio.sleep(0.02)
            assert len(held(tmp_path)) == 1
            if how == "task":
                saving.cancel()
            else:
                await downloads.aclose()
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
async def test_a_save_cancelled_while_its_thread_works_is_whole_or_absent(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    working, go_on = threading.Event(), threading.Event()
    owner, name = STEPS[step]
    plain: Callable[..., object] = getattr(owner, name)

    def slow(*values: object) -> object:
        working.set()
        go_on.wait(2)
        return plain(*values)

    monkeypatch.setattr(owner, name, slow)
    async with opened() as downloads, Peer(saying(reply(WHOLE))) as peer:
        saving = asyncio.get_running_loop().create_task(downloads.save(peer.url, tmp_path, "nb-1"))
        await asyncio.to_thread(working.wait, 2)
        saving.cancel()
        await asyncio.sleep(0.02)
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await saving
        await asyncio.sleep(0.05)
    if step == "name":  # too late to take it back
        check_sums(tmp_path)
    assert held(tmp_path) == ({"nb-1.png", NAME} if step == "name" else set())


def test_after_it_was_discarded_a_part_does_nothing_any_more(tmp_path: Path) -> None:
    part = PartialFile(tmp_path)
    part.discard()
    part.open()
    part.write(WHOLE)
    part.sweep()
    with pytest.raises(FetchError, match="discarded"):
        part.finish("nb-1")
    assert held(tmp_path) == set()


async def test_what_a_killed_process_left_is_swept_after_an_hour_and_nothing_else(tmp_path: Path) -> None:
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
    await save(WHOLE, tmp_path)
    assert before - held(tmp_path) == {".nanobanana-0123456789abcdef.part"}


def _saver(
    folder: Path, content: Path, *, name: str = "nb-1", count: int = 1, step: str = ""
) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, str(SAVER), str(folder), name, str(content), str(count), step], env=environment
    )


@pytest.mark.skipif(os.name == "nt", reason="signals are POSIX")
@pytest.mark.parametrize("step", ["before the name", "before the flush of the folder", "before the line"])
async def test_a_process_killed_at_any_step_leaves_a_true_list_and_the_next_one_completes_it(
    step: str, tmp_path: Path
) -> None:
    (tmp_path / "picture").write_bytes(WHOLE)
    folder = tmp_path / "out"
    folder.mkdir()
    assert _saver(folder, tmp_path / "picture", step=step).wait(20) == -signal.SIGKILL
    check_sums(folder)
    shown = {name for name in held(folder) if not name.startswith(".")}
    assert shown == {NAME} if step == "before the name" else {NAME, "nb-1.png"}
    assert (await save(WHOLE, folder)).path.name == "nb-1.png"
    assert listed(folder) == [f"{digest(WHOLE)}  nb-1.png"]
    check_sums(folder)


async def test_several_processes_share_a_folder(tmp_path: Path) -> None:
    for number, content in enumerate((WHOLE, OTHER)):
        (tmp_path / str(number)).write_bytes(content)
    folder = tmp_path / "out"
    savers = [_saver(folder, tmp_path / str(number % 2), name="nb-{}", count=20) for number in range(4)]
    assert [saver.wait(20) for saver in savers] == [0, 0, 0, 0]
    names = held(folder) - {NAME}
    assert names == {f"nb-{number}{twin}.png" for number in range(20) for twin in ("", "-2")}
    assert len(listed(folder)) == len(set(listed(folder))) == 40
    assert not [line for line in listed(folder) if not re.fullmatch(r"[0-9a-f]{64}  nb-\d+(-2)?\.png", line)]
    check_sums(folder)
