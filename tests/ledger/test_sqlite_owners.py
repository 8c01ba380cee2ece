"""Several ledgers on one file: each owns its own jobs, and adopts only those of dead owners."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from nanobanana_async.errors import LedgerError
from nanobanana_async.jobs import JobState
from nanobanana_async.ledger.owners import Owners
from nanobanana_async.ledger.sqlite import SqliteLedger
from tests.ledger import child
from tests.support.ledger_contract import NOON, adopted, job, keys_left, running, sent

Opening = Callable[[], Awaitable[SqliteLedger]]
LATER = NOON.replace(hour=13)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "jobs.sqlite"


@pytest.fixture
async def opened(path: Path) -> AsyncIterator[Opening]:
    """Return a function that opens another ledger on the same file."""
    async with AsyncExitStack() as stack:

        async def open_one() -> SqliteLedger:
            ledger = SqliteLedger(path)
            await ledger.open()
            stack.push_async_callback(ledger.aclose)
            return ledger

        yield open_one


def locks(path: Path) -> list[Path]:
    return sorted(Owners(path)._folder.glob("*.lock"))


async def test_job_of_a_living_owner_is_not_adopted(opened: Opening) -> None:
    mine, theirs = await opened(), await opened()
    await theirs.claim(running())
    assert await keys_left(mine) == []
    assert await adopted(mine, "order-1") is None
    claim = await mine.claim(job())
    assert claim.record == running()
    assert (claim.is_new, claim.is_ours) == (False, False)
    assert await mine.count_foreign_slots("mine") == 1
    assert await theirs.count_foreign_slots("mine") == 0
    with pytest.raises(LedgerError, match="is not owned by this ledger") as caught:
        await mine.advance(running(), running().transition_to(JobState.SUCCEEDED))
    assert not caught.value.safe_to_repeat
    await mine.release("order-1")  # no effect: another ledger owns it
    assert await keys_left(mine) == []


async def test_closed_ledger_leaves_its_jobs_to_other_owners(opened: Opening) -> None:
    mine, theirs = await opened(), await opened()
    await theirs.claim(running())
    await theirs.aclose()
    assert await mine.count_foreign_slots("mine") == 1  # it has no owner, but it runs
    assert await keys_left(mine) == ["order-1"]
    assert (await mine.claim(job())).is_ours
    assert await mine.count_foreign_slots("mine") == 0


async def test_notice_reaches_the_owner_once(opened: Opening) -> None:
    mine, theirs, third = await opened(), await opened(), await opened()
    await mine.claim(running())
    await theirs.notify_owner("order-1", None)
    await theirs.notify_owner("order-1", "t1")  # replaces the earlier notice
    assert await third.take_notices() == []
    assert await mine.take_notices() == [("order-1", "t1")]
    assert await mine.take_notices() == []
    await mine.advance(running(), running().transition_to(JobState.SUCCEEDED))
    await theirs.notify_owner("order-1", "t1")
    assert await mine.take_notices() == []
    assert await theirs.callback_secret() == await mine.callback_secret()


async def test_one_of_two_owners_adopts_a_dead_owners_job(opened: Opening) -> None:
    dead, one, other = await opened(), await opened(), await opened()
    await dead.claim(running())
    await dead.aclose()
    assert await adopted(one, "order-1") == running()
    assert await adopted(other, "order-1") is None
    with pytest.raises(LedgerError):
        await other.advance(running(), running().transition_to(JobState.SUCCEEDED))


async def test_write_after_release_and_adoption_is_rejected(opened: Opening) -> None:
    stale, adopter = await opened(), await opened()
    first = sent()
    await stale.claim(first)
    await stale.release("order-1")
    assert await adopted(adopter, "order-1") == first
    after = first.transition_to(JobState.RUNNING, task_id="t1")
    with pytest.raises(LedgerError, match="is not owned by this ledger"):
        await stale.advance(first, after)  # the revision is unchanged, the owner is not
    await adopter.advance(first, after)


async def test_any_owner_may_update_an_ended_job(opened: Opening) -> None:
    one, other = await opened(), await opened()
    first = sent()
    await one.claim(first)
    refused = first.transition_to(JobState.REFUSED, ended_at=NOON)
    await one.advance(first, refused)
    assert await other.find("order-1") == refused
    assert not (await other.claim(job())).is_ours
    again = refused.next_generation(body=b"{new}", created_at=LATER)
    await other.advance(refused, again)
    assert await other.find("order-1") == again
    with pytest.raises(LedgerError, match="was changed by another owner"):
        await one.advance(refused, again)


async def test_uncertain_job_counts_as_a_slot_for_other_owners(opened: Opening) -> None:
    one, other = await opened(), await opened()
    first = sent()
    await one.claim(first)
    await one.advance(first, first.transition_to(JobState.UNCERTAIN, in_doubt=True))
    assert await one.count_foreign_slots("mine") == 0  # its own session counts it
    assert await other.count_foreign_slots("mine") == 1


async def test_since_leaves_out_older_slots(opened: Opening) -> None:
    one, other = await opened(), await opened()
    for record in (sent("a"), running("b"), running("c", "t2"), job("d", state=JobState.UNCERTAIN, created_at=LATER)):
        await one.claim(record)
    assert await other.count_foreign_slots("mine", since=NOON) == 4
    assert await other.count_foreign_slots("mine", since=LATER) == 1


@pytest.mark.slow
async def test_jobs_of_a_killed_process_are_adopted_of_a_stopped_one_not(path: Path, opened: Opening) -> None:
    mine = await opened()
    async with child.at(path, "hold", "a") as one, child.at(path, "hold", "b") as other:
        assert (await child.line(one), await child.line(other)) == ("held", "held")
        assert await keys_left(mine) == []
        assert await adopted(mine, "a") is None
        os.kill(one.pid, signal.SIGSTOP)  # stopped, not dead
        assert await adopted(mine, "a") is None
        one.kill()
        await one.wait()
        assert await keys_left(mine) == ["a"]
        assert (await mine.claim(job("a"))).is_ours
        assert await adopted(mine, "b") is None
        assert len(locks(path)) == 3  # the dead owner's file is removed at the next opening
        await opened()
        assert len(locks(path)) == 3


@pytest.mark.slow
async def test_each_key_is_claimed_by_one_of_four_processes(path: Path) -> None:
    async with AsyncExitStack() as stack:
        children = [await stack.enter_async_context(child.at(path, "share", str(number))) for number in range(4)]
        owned: list[str] = []
        for process in children:
            while not (output := await child.line(process)).endswith("done"):
                owned.append(output)
        assert sorted(owned) == sorted(f"{number} True" for number in range(child.CLAIMS))


async def test_last_owner_removes_the_folder(path: Path, opened: Opening) -> None:
    one, other = await opened(), await opened()
    assert len(locks(path)) == 2
    assert {file.stat().st_mode & 0o777 for file in locks(path)} == {0o600}
    await one.aclose()
    assert len(locks(path)) == 1
    await other.aclose()
    assert [file.name for file in path.parent.iterdir()] == ["jobs.sqlite"]


async def test_links_to_one_file_open_one_ledger(path: Path, opened: Opening, tmp_path: Path) -> None:
    one = await opened()
    await one.claim(running())
    link = tmp_path / "link"
    link.symlink_to(path)
    other = SqliteLedger(link)
    await other.open()
    try:
        assert await adopted(other, "order-1") is None
    finally:
        await other.aclose()


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
async def test_forked_child_does_not_keep_the_parents_lock(path: Path, opened: Opening) -> None:
    mine = await opened()
    async with child.at(path, "fork", "a") as process:
        assert await child.line(process) == "forked"
        assert await adopted(mine, "a") is None
        process.kill()
        async with asyncio.timeout(5):
            # The forked child lives on, and inherited the descriptor of the lock.
            while await adopted(mine, "a") is None:  # noqa: ASYNC110 - a kill sets no event
                await asyncio.sleep(0.01)


async def test_use_in_another_process_is_refused(path: Path, opened: Opening, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = await opened()
    with monkeypatch.context() as patched:
        patched.setattr(os, "getpid", lambda: -1)
        with pytest.raises(LedgerError, match="forked: open another one") as caught:
            await ledger.claim(job())
        assert caught.value.safe_to_repeat
        in_child = SqliteLedger(path)
        vars(in_child).update(vars(ledger))
        await in_child.aclose()  # leaves the parent's writer alone
        vars(in_child).update(vars(ledger))
        del in_child
    assert (await ledger.claim(job())).is_new


async def test_foreign_files_in_the_folder_are_kept(path: Path, opened: Opening) -> None:
    folder = path.with_name("jobs.sqlite-owners")
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    (folder / "dead.lock").touch()
    ledger = await opened()
    assert not (folder / "dead.lock").exists()
    await ledger.aclose()
    assert [file.name for file in folder.iterdir()] == ["notes.txt"]


def test_ledger_whose_folder_was_removed_has_no_owner(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Owners(tmp_path / "gone" / "jobs.sqlite").acquire()


async def test_files_are_private_to_the_user(path: Path, opened: Opening) -> None:
    ledger = await opened()
    await ledger.claim(job())
    files = [path, *path.parent.glob("jobs.sqlite-[sw]*")]
    assert len(files) == 3
    assert {file.stat().st_mode & 0o777 for file in files} == {0o600}
    assert path.with_name("jobs.sqlite-owners").stat().st_mode & 0o777 == 0o700
