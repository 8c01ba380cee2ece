"""Several ledgers on one file: each follows its own jobs, and only the dead are inherited from."""

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
from tests.ledger.contract import NOON, adopted, job, keys_left, running, sent

Opening = Callable[[], Awaitable[SqliteLedger]]
LATER = NOON.replace(hour=13)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "jobs.sqlite"


@pytest.fixture
async def opened(path: Path) -> AsyncIterator[Opening]:
    """Open one more ledger on the same file."""
    async with AsyncExitStack() as stack:

        async def open_one() -> SqliteLedger:
            ledger = SqliteLedger(path)
            await ledger.open()
            stack.push_async_callback(ledger.aclose)
            return ledger

        yield open_one


def locks(path: Path) -> list[Path]:
    return sorted(Owners(path)._folder.glob("*.lock"))


async def test_what_a_living_owner_follows_is_nobody_elses(opened: Opening) -> None:
    mine, theirs = await opened(), await opened()
    await theirs.claim(running())
    assert await keys_left(mine) == []
    assert await adopted(mine, "order-1") is None
    claim = await mine.claim(job())
    assert claim.record == running()
    assert (claim.new, claim.owned) == (False, False)
    assert await mine.count_slots_of_others("mine") == 1
    assert await theirs.count_slots_of_others("mine") == 0
    with pytest.raises(LedgerError, match="does not own it") as caught:
        await mine.advance(running(), running().transition_to(JobState.SUCCEEDED))
    assert not caught.value.safe_to_repeat
    await mine.release("order-1")  # it is not ours to let go
    assert await keys_left(mine) == []


async def test_whoever_closes_leaves_his_jobs_to_the_others(opened: Opening) -> None:
    mine, theirs = await opened(), await opened()
    await theirs.claim(running())
    await theirs.aclose()
    assert await mine.count_slots_of_others("mine") == 1  # nobody follows it, but it runs
    assert await keys_left(mine) == ["order-1"]
    assert (await mine.claim(job())).owned
    assert await mine.count_slots_of_others("mine") == 0


async def test_word_is_left_for_whoever_follows_the_job_and_taken_once(opened: Opening) -> None:
    mine, theirs, nobodys = await opened(), await opened(), await opened()
    await mine.claim(running())
    await theirs.notify_owner("order-1", None)
    await theirs.notify_owner("order-1", "t1")  # the later word counts
    assert await nobodys.take_notices() == []
    assert await mine.take_notices() == [("order-1", "t1")]
    assert await mine.take_notices() == []
    await mine.advance(running(), running().transition_to(JobState.SUCCEEDED))
    await theirs.notify_owner("order-1", "t1")
    assert await mine.take_notices() == []
    assert await theirs.callback_secret() == await mine.callback_secret()


async def test_of_two_heirs_one_inherits(opened: Opening) -> None:
    dead, one, other = await opened(), await opened(), await opened()
    await dead.claim(running())
    await dead.aclose()
    assert await adopted(one, "order-1") == running()
    assert await adopted(other, "order-1") is None
    with pytest.raises(LedgerError):
        await other.advance(running(), running().transition_to(JobState.SUCCEEDED))


async def test_a_stale_owner_is_fenced(opened: Opening) -> None:
    stale, heir = await opened(), await opened()
    first = sent()
    await stale.claim(first)
    await stale.release("order-1")
    assert await adopted(heir, "order-1") == first
    after = first.transition_to(JobState.RUNNING, task_id="t1")
    with pytest.raises(LedgerError, match="changed by somebody else"):
        await stale.advance(first, after)  # the revision is still the one that it saw
    await heir.advance(first, after)


async def test_what_has_ended_may_be_moved_on_by_anybody_who_saw_it(opened: Opening) -> None:
    one, other = await opened(), await opened()
    first = sent()
    await one.claim(first)
    refused = first.transition_to(JobState.REFUSED, ended_at=NOON)
    await one.advance(first, refused)
    assert await other.find("order-1") == refused
    assert not (await other.claim(job())).owned
    again = refused.next_generation(body=b"{new}", created_at=LATER)
    await other.advance(refused, again)
    assert await other.find("order-1") == again
    with pytest.raises(LedgerError, match="changed by somebody else"):
        await one.advance(refused, again)


async def test_ones_own_uncertain_job_is_counted_by_the_others(opened: Opening) -> None:
    one, other = await opened(), await opened()
    first = sent()
    await one.claim(first)
    await one.advance(first, first.transition_to(JobState.UNCERTAIN, in_doubt=True))
    assert await one.count_slots_of_others("mine") == 0  # whoever parked it counts it itself
    assert await other.count_slots_of_others("mine") == 1


async def test_slots_of_long_ago_can_be_left_out(opened: Opening) -> None:
    one, other = await opened(), await opened()
    for record in (sent("a"), running("b"), running("c", "t2"), job("d", state=JobState.UNCERTAIN, created_at=LATER)):
        await one.claim(record)
    assert await other.count_slots_of_others("mine", since=NOON) == 4
    assert await other.count_slots_of_others("mine", since=LATER) == 1


async def test_a_killed_process_is_inherited_from_and_a_living_one_is_not(path: Path, opened: Opening) -> None:
    mine = await opened()
    async with child.at(path, "hold", "a") as one, child.at(path, "hold", "b") as other:
        assert (await child.line(one), await child.line(other)) == ("held", "held")
        assert await keys_left(mine) == []
        assert await adopted(mine, "a") is None
        os.kill(one.pid, signal.SIGSTOP)  # it sleeps, it is not dead
        assert await adopted(mine, "a") is None
        one.kill()
        await one.wait()
        assert await keys_left(mine) == ["a"]
        assert (await mine.claim(job("a"))).owned
        assert await adopted(mine, "b") is None
        assert len(locks(path)) == 3  # what the dead left is swept when somebody opens
        await opened()
        assert len(locks(path)) == 3


async def test_many_processes_share_a_new_file(path: Path) -> None:
    async with AsyncExitStack() as stack:
        children = [await stack.enter_async_context(child.at(path, "share", str(number))) for number in range(4)]
        won: list[str] = []
        for process in children:
            while not (said := await child.line(process)).endswith("done"):
                won.append(said)
        assert sorted(won) == sorted(f"{number} True" for number in range(child.CLAIMS))


async def test_the_last_to_leave_removes_the_folder(path: Path, opened: Opening) -> None:
    one, other = await opened(), await opened()
    assert len(locks(path)) == 2
    assert {file.stat().st_mode & 0o777 for file in locks(path)} == {0o600}
    await one.aclose()
    assert len(locks(path)) == 1
    await other.aclose()
    assert [file.name for file in path.parent.iterdir()] == ["jobs.sqlite"]


async def test_links_to_one_file_are_one_ledger(path: Path, opened: Opening, tmp_path: Path) -> None:
    one = await opened()
    await one.claim(running())
    link = tmp_path / "elsewhere"
    link.symlink_to(path)
    other = SqliteLedger(link)
    await other.open()
    try:
        assert await adopted(other, "order-1") is None
    finally:
        await other.aclose()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
async def test_a_forked_child_keeps_nobody_alive(path: Path, opened: Opening) -> None:
    mine = await opened()
    async with child.at(path, "fork", "a") as process:
        assert await child.line(process) == "forked"
        assert await adopted(mine, "a") is None
        process.kill()
        async with asyncio.timeout(5):
            # Though its child lives on, and was born with the lock.
            while await adopted(mine, "a") is None:  # noqa: ASYNC110 - it dies when it dies
                await asyncio.sleep(0.01)


async def test_another_process_is_told_to_open_it_again(
    path: Path, opened: Opening, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = await opened()
    with monkeypatch.context() as patched:
        patched.setattr(os, "getpid", lambda: -1)
        with pytest.raises(LedgerError, match="forked: open it again here") as caught:
            await ledger.claim(job())
        assert caught.value.safe_to_repeat
        child_s = SqliteLedger(path)
        child_s.__dict__.update(ledger.__dict__)
        await child_s.aclose()  # what is the parent's is left to it
        child_s.__dict__.update(ledger.__dict__)
        del child_s
    assert (await ledger.claim(job())).new


async def test_what_does_not_belong_into_the_folder_is_left_alone(path: Path, opened: Opening) -> None:
    folder = path.with_name("jobs.sqlite-owners")
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    (folder / "dead.lock").touch()
    ledger = await opened()
    assert not (folder / "dead.lock").exists()
    await ledger.aclose()
    assert [file.name for file in folder.iterdir()] == ["notes.txt"]


async def test_the_files_are_for_this_user_only(path: Path, opened: Opening) -> None:
    ledger = await opened()
    await ledger.claim(job())
    files = [path, *path.parent.glob("jobs.sqlite-[sw]*")]
    assert len(files) == 3
    assert {file.stat().st_mode & 0o777 for file in files} == {0o600}
    assert path.with_name("jobs.sqlite-owners").stat().st_mode & 0o777 == 0o700
