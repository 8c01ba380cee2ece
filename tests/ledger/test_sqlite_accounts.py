"""`hand_over`: move the jobs of one account to another after its API key changed."""

from pathlib import Path

import pytest

from nanobanana_async.errors import LedgerError
from nanobanana_async.jobs import JobState
from tests.ledger.test_sqlite_file import ledger_at
from tests.support.ledger_contract import job, keys_left, running, sent


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "jobs.sqlite"


async def test_hand_over_moves_exactly_the_jobs_of_the_account(path: Path) -> None:
    async with ledger_at(path) as ledger:
        for record in (
            running("a", "t1", account="old"),
            job("b", account="old", state=JobState.SUCCEEDED),
            job("c", account="old"),
            running("d", "t2", account="third"),
            running("e", "t3", account="old", gateway="defapi"),
        ):
            await ledger.claim(record)
        for key in "acde":
            await ledger.release(key)
        assert await ledger.hand_over("apimall", "old", "apimall:studio") == 3
        assert await ledger.accounts() == {
            ("apimall", "apimall:studio"): 3,
            ("apimall", "third"): 1,
            ("defapi", "old"): 1,
        }
        assert await keys_left(ledger, "apimall:studio") == ["a", "c"]
        found = await ledger.find_task("apimall:studio", "t1")
        assert found is not None
        assert (found.key, found.revision) == ("a", 1)
        assert await ledger.find_task("old", "t1") is None
        assert await ledger.hand_over("apimall", "old", "apimall:studio") == 0


async def test_hand_over_is_refused_while_an_open_session_owns_a_job(path: Path) -> None:
    async with ledger_at(path) as living, ledger_at(path) as ledger:
        await living.claim(running("a", "t1", account="old"))
        await ledger.claim(job("b", account="old"))
        await ledger.release("b")
        with pytest.raises(
            LedgerError, match="an open session still owns jobs of account old: close that session first"
        ):
            await ledger.hand_over("apimall", "old", "new")
        assert await ledger.accounts() == {("apimall", "old"): 2}
        await living.aclose()
        assert await ledger.hand_over("apimall", "old", "new") == 2


async def test_stale_record_is_rejected_after_hand_over(path: Path) -> None:
    async with ledger_at(path) as stale, ledger_at(path) as ledger:
        doubtful = sent("a", account="old").transition_to(JobState.UNCERTAIN, in_doubt=True)
        await stale.claim(doubtful)
        assert await ledger.hand_over("apimall", "old", "new") == 1
        with pytest.raises(LedgerError, match="was changed by another owner"):
            await stale.advance(doubtful, doubtful.transition_to(JobState.REFUSED))
        with pytest.raises(LedgerError, match="was changed by another owner"):
            await stale.advance(doubtful, doubtful.next_generation(body=b"{}", created_at=doubtful.created_at))
        found = await ledger.find("a")
        assert found is not None
        assert (found.account, found.state) == ("new", JobState.UNCERTAIN)
