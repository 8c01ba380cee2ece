"""The folder of a batch: foreign files are neither changed nor followed; write errors stop the buying."""

import errno
import io
import os
from decimal import Decimal
from pathlib import Path

import pytest

from nanobanana_async.cli.batch import run as batchrun
from nanobanana_async.cli.batch import run_report as batchreport
from nanobanana_async.cli.batch.folder import FILES, FOLDERS, MARKER
from nanobanana_async.errors import LedgerError
from nanobanana_async.images.files import PartialFile
from nanobanana_async.jobs import JobRecord, JobState
from nanobanana_async.ledger.sqlite import SqliteLedger
from tests.cli.batch_kills import lines_of
from tests.cli.batches import Command, emulated, requests
from tests.support.command import Said

pytestmark = pytest.mark.slow

MARK = '{"batch": "foxes", "emulated": false}'


def tree(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Return every entry of a folder: its mode, and its content or link target."""
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
    """Create a foreign file of some kind; `outside` is the target of links."""
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
    """Run the command in a folder with a foreign file; nothing may be bought or changed."""
    file = batch.prompts(2)
    async with emulated(batch) as emulator:
        before = tree(batch.folder)
        said = await batch(file, *options)
        assert (said.code, emulator.stats().creates_received) == (2, 0)
        assert tree(batch.folder) == before
    return said


@pytest.mark.parametrize("kind", ["file", "link", "dangling link", "hard link", "pipe", "folder"])
@pytest.mark.parametrize("name", [*FILES[:3], *FOLDERS])
async def test_an_unmarked_folder_with_a_taken_name_is_refused(name: str, kind: str, batch: Command) -> None:
    batch.out.mkdir()
    (batch.folder / "precious").write_text("mine\n")
    put(kind, batch.out / name, batch.folder / "precious")
    for options in ((), ("--dry-run",)):
        complaint = (await refused(batch, *options)).complaint
        assert complaint.startswith(f"nanobanana: out holds {name}, which this command did not create: name another")
        assert MARK in complaint


@pytest.mark.parametrize("kind", ["file", "link", "dangling link", "hard link", "pipe", "folder"])
async def test_a_foreign_marker_is_refused(kind: str, batch: Command) -> None:
    batch.out.mkdir()
    (batch.folder / "precious").write_text("mine\n")
    put(kind, batch.out / MARKER, batch.folder / "precious")
    assert (await refused(batch)).complaint.startswith(f"nanobanana: out/{MARKER} ")


@pytest.mark.parametrize("content", ["", "{", "[]", '{"batch": 1}', "[" * 5000, "\udcff"])
async def test_a_marker_with_other_content_is_refused(content: str, batch: Command) -> None:
    batch.out.mkdir()
    (batch.out / MARKER).write_text(content, errors="surrogateescape")
    assert "was not written by this command" in (await refused(batch)).complaint


@pytest.mark.parametrize("kind", ["link", "dangling link", "pipe", "folder"])
@pytest.mark.parametrize("name", FILES)
async def test_links_and_special_files_in_a_marked_folder_are_refused(name: str, kind: str, batch: Command) -> None:
    batch.out.mkdir()
    (batch.out / MARKER).write_text(MARK)
    (batch.folder / "precious").write_text("mine\n")
    put(kind, batch.out / name, batch.folder / "precious")
    assert (await refused(batch)).complaint.startswith(f"nanobanana: out/{name} is ")


@pytest.mark.parametrize("name", FOLDERS)
async def test_a_linked_folder_is_refused(name: str, batch: Command) -> None:
    batch.out.mkdir()
    (batch.out / MARKER).write_text(MARK)
    (batch.folder / "linked").mkdir()
    (batch.out / name).symlink_to(batch.folder / "linked")
    assert "is a symbolic link, which is not followed: put the folder itself there" in (await refused(batch)).complaint


async def test_a_hard_linked_ledger_is_refused_and_other_hard_links_are_replaced(
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
    assert "has a second name (a hard link)" in said.complaint


async def test_foreign_files_in_the_folder_stay_unchanged(batch: Command) -> None:
    batch.out.mkdir()
    for name in ("notes.txt", ".nanobanana-mine.part", ".nanobanana-0123456789abcdef.part.bak"):
        (batch.out / name).write_text("mine\n")
    (batch.out / ".nanobanana-0123456789abcdef.part").mkdir()
    (batch.out / ".nanobanana-0123456789abcdee.part").symlink_to("notes.txt")
    before = tree(batch.out)
    (batch.out / ".nanobanana-0123456789abcdea.jsonl.part").write_text("of a killed run")
    async with emulated(batch):
        assert (await batch(batch.prompts(2))).code == 0
    after = tree(batch.out)
    assert {name: after[name] for name in before} == before
    assert ".nanobanana-0123456789abcdea.jsonl.part" not in after


async def test_a_lost_marker_can_be_restored_by_hand(batch: Command) -> None:
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
async def test_an_output_file_cannot_be_the_input(name: str, batch: Command) -> None:
    async with emulated(batch):
        await batch(batch.prompts(1))
        said = await batch(f"out/{name}", "--format", "txt", "--name", "foxes")
    assert (said.code, "would be overwritten" in said.complaint) == (2, True)


async def test_unwritable_results_stop_the_buying_without_loss(batch: Command) -> None:
    file, full, write = batch.prompts(100), OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), os.write

    def write_partially(descriptor: int, content: bytes) -> int:
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        if not path.endswith("/results.jsonl") or os.fstat(descriptor).st_size < 1500:
            return write(descriptor, content)
        if len(content) < 50:
            raise full
        return write(descriptor, content[:50])

    async with emulated(batch, job_limit=5) as emulator:
        with batch.patch.context() as patch:
            patch.setattr(os, "write", write_partially)
            said = await batch(file)
        bought, written = emulator.stats().creates_accepted, len(lines_of(batch.out))
        assert said.code == 3
        assert 1 < written < bought < 100
        assert "the buying stopped: out/results.jsonl can't be written: No space left on device: make room" in said.err
        assert f"{100 - written} rows left, " in said.err
        assert "of them bought and not collected: run the same command to continue" in said.err
        assert len(list((batch.out / "images").glob("*.png"))) == bought
        before = requests(emulator)
        assert (await batch(file)).code == 0
        assert (requests(emulator) - before)["cdn"] == 100 - bought
        assert (emulator.stats().creates_accepted, emulator.stats().double_charges) == (100, 0)


async def test_unwritable_images_stop_the_buying(batch: Command) -> None:
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


async def test_an_unwritable_report_during_the_run_stops_the_buying(batch: Command) -> None:
    def cannot(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    async with emulated(batch, job_limit=2) as emulator:
        with batch.patch.context() as patch:
            patch.setattr(batchrun, "REPORT_S", 0.2)
            patch.setattr(batchreport, "write_report", cannot)
            said = await batch(batch.prompts(200))
        assert (said.code, emulator.stats().creates_accepted < 150) == (3, True)
    assert "the buying stopped: out/index.html can't be written: Permission denied: let this user write" in said.err


async def test_an_unwritable_report_at_the_end_is_written_by_the_next_run(batch: Command) -> None:
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


async def test_a_full_stdout_stops_the_buying(batch: Command) -> None:
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


async def test_undecodable_bytes_of_a_folder_name_are_printed_escaped(batch: Command) -> None:
    name = os.fsdecode(b"out-\xff")
    async with emulated(batch):
        with batch.patch.context() as patch:
            out = io.BytesIO()
            stdout = io.TextIOWrapper(out, encoding="ascii")
            patch.setattr("sys.stdout", stdout)
            said = await batch(batch.prompts(1), folder=name)
    assert said.code == 0
    stdout.flush()
    assert out.getvalue().count(b"out-\\udcff/images/") == 1


@pytest.mark.parametrize("option", ["--vary=product=@{}", "--vary-file={}"])
@pytest.mark.parametrize("name", ["results.csv", "images/metadata.jsonl"])
async def test_an_output_file_cannot_have_the_values_of_a_sweep(batch: Command, name: str, option: str) -> None:
    values = batch.out / name
    values.parent.mkdir(parents=True)
    values.write_text("product\nmug\n", encoding="utf-8")
    if name.endswith("jsonl") and option.startswith("--vary-file"):
        option = "--vary=product=@./{}"
    said = await batch("--prompt=a {product}", option.format(f"out/{name}"), "--gateway", "emulator")
    assert (said.code, f"out/{name} would be overwritten" in said.complaint) == (2, True)
    assert values.read_text(encoding="utf-8") == "product\nmug\n"


async def test_a_ledger_that_fails_when_a_row_has_ended_stops_the_run_with_a_summary(batch: Command) -> None:
    file, find, spent = batch.prompts(8), SqliteLedger.find, SqliteLedger.spent_or_reserved
    full = LedgerError("ledger out/jobs.sqlite: the disk is full: free some disk space, then repeat")
    ended = False

    async def find_until_one_ends(ledger: SqliteLedger, key: str) -> JobRecord | None:
        nonlocal ended
        record = await find(ledger, key)
        ended = ended or (record is not None and record.state is JobState.SUCCEEDED)
        if ended:
            raise full
        return record

    async def spent_until_one_ends(ledger: SqliteLedger, name: str) -> Decimal:
        if ended:
            raise full
        return await spent(ledger, name)

    async with emulated(batch, job_limit=2) as emulator:
        with batch.patch.context() as patch:
            patch.setattr(SqliteLedger, "find", find_until_one_ends)
            patch.setattr(SqliteLedger, "spent_or_reserved", spent_until_one_ends)
            said = await batch(file, "--max-credits", "64")
        assert said.code == 3
        assert "the buying stopped: ledger out/jobs.sqlite: the disk is full" in said.err
        assert "8 rows left: run the same command to continue" in said.err
        assert (await batch(file, "--max-credits", "64")).code == 0
        assert (emulator.stats().creates_accepted, emulator.stats().double_charges) == (8, 0)
