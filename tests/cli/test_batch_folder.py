"""The folder of a batch: nothing foreign in it is changed or followed; one that can't be written stops the buying."""

import errno
import io
import os
from pathlib import Path

import pytest

from nanobanana_async.cli.batch import run as batchrun
from nanobanana_async.cli.batch import run_report as batchreport
from nanobanana_async.cli.batch.folder import FILES, FOLDERS, MARKER
from nanobanana_async.images.files import PartialFile
from tests.cli.batch_kills import lines_of
from tests.cli.batches import Command, emulated, requests
from tests.cli.command import Said

MARK = '{"batch": "foxes", "emulated": false}'


def tree(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Return every entry of a folder: its kind and permissions, its content or where it leads."""
    found: dict[str, tuple[int, bytes]] = {}
    for path in sorted(folder.rglob("*")):
        content = b""
        if path.is_symlink():
            content = os.fsencode(path.readlink())
        elif path.is_file():
            content = path.read_bytes()
        found[str(path.relative_to(folder))] = (path.lstat().st_mode, content)
    return found


def put(kind: str, path: Path, outside: Path) -> None:
    """Put something foreign in a place; `outside` is what a link would lead to."""
    match kind:
        case "file":
            path.write_text("mine\n")
        case "link":
            path.symlink_to(outside)
        case "dangling link":
            path.symlink_to(outside.with_name("nowhere"))
        case "hard link":
            path.hardlink_to(outside)
        case "pipe":
            os.mkfifo(path)
        case _:
            path.mkdir()


async def refused(batch: Command, *options: str) -> Said:
    """Run the command in a folder with something foreign; nothing may be bought, nor changed anywhere."""
    file = batch.prompts(2)
    async with emulated(batch) as emulator:
        before = tree(batch.folder)
        said = await batch(file, *options)
        assert (said.code, emulator.stats().creates_received) == (2, 0)
        assert tree(batch.folder) == before
    return said


@pytest.mark.parametrize("kind", ["file", "link", "dangling link", "hard link", "pipe", "folder"])
@pytest.mark.parametrize("name", [*FILES[:3], *FOLDERS])
async def test_a_folder_without_a_marker_in_which_a_name_is_taken_is_refused(
    name: str, kind: str, batch: Command
) -> None:
    batch.out.mkdir()
    (batch.folder / "precious").write_text("mine\n")
    put(kind, batch.out / name, batch.folder / "precious")
    for options in ((), ("--dry-run",)):
        complaint = (await refused(batch, *options)).complaint
        assert complaint.startswith(f"nanobanana: out holds {name}, which no run of this command made: name another")
        assert MARK in complaint


@pytest.mark.parametrize("kind", ["file", "link", "dangling link", "hard link", "pipe", "folder"])
async def test_a_marker_that_no_run_wrote_is_refused(kind: str, batch: Command) -> None:
    batch.out.mkdir()
    (batch.folder / "precious").write_text("mine\n")
    put(kind, batch.out / MARKER, batch.folder / "precious")
    assert (await refused(batch)).complaint.startswith(f"nanobanana: out/{MARKER} is ")


@pytest.mark.parametrize("content", ["", "{", "[]", '{"batch": 1}', "[" * 5000, "\udcff"])
async def test_a_marker_with_other_content_is_refused(content: str, batch: Command) -> None:
    batch.out.mkdir()
    (batch.out / MARKER).write_text(content, errors="surrogateescape")
    assert "is not what this command writes there" in (await refused(batch)).complaint


@pytest.mark.parametrize("kind", ["link", "dangling link", "pipe", "folder"])
@pytest.mark.parametrize("name", FILES)
async def test_what_leads_elsewhere_from_a_marked_folder_is_refused(name: str, kind: str, batch: Command) -> None:
    batch.out.mkdir()
    (batch.out / MARKER).write_text(MARK)
    (batch.folder / "precious").write_text("mine\n")
    put(kind, batch.out / name, batch.folder / "precious")
    assert (await refused(batch)).complaint.startswith(f"nanobanana: out/{name} is ")


@pytest.mark.parametrize("name", FOLDERS)
async def test_a_folder_behind_a_link_is_not_written_to(name: str, batch: Command) -> None:
    batch.out.mkdir()
    (batch.out / MARKER).write_text(MARK)
    (batch.folder / "elsewhere").mkdir()
    (batch.out / name).symlink_to(batch.folder / "elsewhere")
    assert "is a symbolic link, which is not followed: put the folder itself there" in (await refused(batch)).complaint


async def test_a_ledger_that_has_another_name_is_refused_and_other_files_with_two_names_are_replaced(
    batch: Command,
) -> None:
    file = batch.prompts(2)
    async with emulated(batch) as emulator:
        await batch(file)
        copies = {name: batch.folder / f"copy-{name}" for name in ("results.jsonl", "index.html", MARKER)}
        for name, copy in copies.items():
            copy.hardlink_to(batch.out / name)
        before = {copy: copy.read_bytes() for copy in copies.values()}
        assert (await batch(batch.prompts(3))).code == 0
        assert {copy: copy.read_bytes() for copy in copies.values()} == before
        (batch.folder / "copy.sqlite").hardlink_to(batch.out / "jobs.sqlite")
        said = await batch(file)
        assert (said.code, emulator.stats().creates_accepted) == (2, 3)
    assert "has another name elsewhere (a hard link)" in said.complaint


async def test_other_files_of_a_folder_are_left_alone(batch: Command) -> None:
    batch.out.mkdir()
    for name in ("notes.txt", ".nanobanana-mine.part", ".nanobanana-0123456789abcdef.part.bak"):
        (batch.out / name).write_text("mine\n")
    (batch.out / ".nanobanana-0123456789abcdef.part").mkdir()
    (batch.out / ".nanobanana-0123456789abcdee.part").symlink_to("notes.txt")
    before = tree(batch.out)
    (batch.out / ".nanobanana-0123456789abcdea.jsonl.part").write_text("of a run that was killed")
    async with emulated(batch):
        assert (await batch(batch.prompts(2))).code == 0
    after = tree(batch.out)
    assert {name: after[name] for name in before} == before
    assert ".nanobanana-0123456789abcdea.jsonl.part" not in after


async def test_a_marker_that_was_lost_can_be_written_by_hand_and_nothing_is_bought_again(batch: Command) -> None:
    file = batch.prompts(2)
    async with emulated(batch) as emulator:
        await batch(file)
        (batch.out / MARKER).unlink()
        said = await batch(file)
        assert said.code == 2
        assert f"write {MARK} into it" in said.complaint
        (batch.out / MARKER).write_text(MARK)
        assert (await batch(file)).code == 0
        assert emulator.stats().creates_accepted == 2


@pytest.mark.parametrize("name", ["results.jsonl", "index.html"])
async def test_a_file_that_the_run_itself_writes_is_no_input(name: str, batch: Command) -> None:
    async with emulated(batch):
        await batch(batch.prompts(1))
        said = await batch(f"out/{name}", "--format", "txt", "--name", "foxes")
    assert (said.code, "would be written over" in said.complaint) == (2, True)


async def test_results_that_can_not_be_written_stop_the_buying_and_lose_nothing(batch: Command) -> None:
    file, full, write = batch.prompts(160), OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), os.write

    def half_a_line(descriptor: int, content: bytes) -> int:
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        if not path.endswith("/results.jsonl") or os.fstat(descriptor).st_size < 1500:
            return write(descriptor, content)
        if len(content) < 50:
            raise full
        return write(descriptor, content[:50])

    async with emulated(batch, job_limit=5) as emulator:
        with batch.patch.context() as patch:
            patch.setattr(os, "write", half_a_line)
            said = await batch(file)
        bought, told = emulator.stats().creates_accepted, len(lines_of(batch.out))
        assert said.code == 3
        assert 1 < told < bought < 100
        assert "the buying stopped: out/results.jsonl can't be written: No space left on device: make room" in said.err
        assert f"{160 - told} rows left: the same command goes on" in said.err
        assert len(list((batch.out / "images").glob("*.png"))) == bought
        before = requests(emulator)
        assert (await batch(file)).code == 0
        assert (requests(emulator) - before)["cdn"] == 160 - bought
        assert (emulator.stats().creates_accepted, emulator.stats().double_charges) == (160, 0)


async def test_pictures_that_can_not_be_written_stop_the_buying(batch: Command) -> None:
    file, left, open_it = batch.prompts(80), iter(range(4)), PartialFile.open

    def open_some(part: PartialFile) -> None:
        if next(left, None) is None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        open_it(part)

    async with emulated(batch, job_limit=5) as emulator:
        with batch.patch.context() as patch:
            patch.setattr(PartialFile, "open", open_some)
            said = await batch(file)
        assert (said.code, emulator.stats().creates_accepted < 70) == (3, True)
        assert "the buying stopped: out/images can't be written: No space left on device: make room" in said.err
        assert (await batch(file)).code == 0
        assert (emulator.stats().creates_accepted, emulator.stats().double_charges) == (80, 0)


async def test_a_report_that_can_not_be_written_while_the_run_goes_on_stops_the_buying(batch: Command) -> None:
    def cannot(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    async with emulated(batch, job_limit=2) as emulator:
        with batch.patch.context() as patch:
            patch.setattr(batchrun, "REPORT_S", 0.2)
            patch.setattr(batchreport, "write_report", cannot)
            said = await batch(batch.prompts(200))
        assert (said.code, emulator.stats().creates_accepted < 150) == (3, True)
    assert "the buying stopped: out/index.html can't be written: Permission denied: let this user write" in said.err


async def test_a_report_that_can_not_be_written_at_the_end_is_told_and_written_by_the_next_run(batch: Command) -> None:
    def cannot(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    async with emulated(batch) as emulator:
        with batch.patch.context() as patch:
            patch.setattr(batchreport, "write_report", cannot)
            said = await batch(batch.prompts(3))
        assert (said.code, batch.statuses()) == (1, {"succeeded": 3})
        assert "nanobanana: out/index.html can't be written: No space left on device: make room\n" in said.err
        assert (await batch("foxes.txt")).code == 0
        assert emulator.stats().creates_accepted == 3
    assert (batch.out / "index.html").exists()


async def test_a_standard_output_that_is_full_stops_the_buying(batch: Command) -> None:
    class Full(io.RawIOBase):
        def writable(self) -> bool:
            return True

        def write(self, content: object) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    async with emulated(batch, job_limit=2) as emulator:
        with batch.patch.context() as patch:
            patch.setattr("sys.stdout", io.TextIOWrapper(Full(), write_through=True))  # type: ignore[type-var]
            said = await batch(batch.prompts(60))
        assert (said.code, emulator.stats().creates_accepted < 40) == (3, True)
        assert "the buying stopped: standard output can't be written: No space left on device" in said.err


async def test_a_folder_whose_name_is_no_text_is_printed_as_it_is(batch: Command) -> None:
    name = os.fsdecode(b"out-\xff")
    async with emulated(batch):
        with batch.patch.context() as patch:
            out = io.BytesIO()
            patch.setattr("sys.stdout", io.TextIOWrapper(out, encoding="ascii"))
            said = await batch(batch.prompts(1), folder=name)
    assert said.code == 0
    assert out.getvalue().count(b"out-\xff/images/") == 1
