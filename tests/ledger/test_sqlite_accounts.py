"""`hand_over`: move the jobs of one account to another after its API key changed."""

from decimal import Decimal
from pathlib import Path

import pytest
from attrs import evolve

from nanobanana_async.errors import LedgerError
from nanobanana_async.jobs import JobState
from nanobanana_async.keys import batch_key_prefix
from nanobanana_async.ledger.base import Upload
from nanobanana_async.ledger.sqlite import SqliteLedger
from nanobanana_async.policy.prices import Price
from tests.ledger.test_sqlite_file import asked, ledger_at
from tests.support.ledger_contract import GUESS, NOON, OWL_GUESS, about_to_be_sent, job, keys_left, moved, running, sent


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
        assert await ledger.count_by_account() == {
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
        assert await ledger.count_by_account() == {("apimall", "old"): 2}
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


async def test_new_account_knows_the_prices_of_the_old_one(path: Path) -> None:
    async with ledger_at(path) as ledger:
        await priced(ledger, "a-1", account="old", credits_used=9)
        await priced(ledger, "a-2", account="third", credits_used=5)
        await ledger.hand_over("apimall", "old", "new")
        assert asked(path, "SELECT account, credits FROM prices WHERE account IN ('new', 'third')") == [
            ("new", 9 * 10**9),
            ("third", 5 * 10**9),
        ]


async def test_known_price_of_the_new_account_stays(path: Path) -> None:
    async with ledger_at(path) as ledger:
        await priced(ledger, "a-1", account="old", credits_used=9)
        await priced(ledger, "a-2", account="new", credits_used=5)
        await ledger.hand_over("apimall", "old", "new")
        assert asked(path, "SELECT credits FROM prices WHERE account = 'new'") == [(5 * 10**9,)]


async def test_estimates_of_handed_over_jobs_are_repriced(path: Path) -> None:
    async with ledger_at(path) as ledger:
        for key, estimate in (("b-1", GUESS), ("c-1", OWL_GUESS)):
            record, _ = await about_to_be_sent(ledger, key, estimate, batch=batch_key_prefix(key[0]), account="old")
            record = await moved(ledger, record, JobState.UNCERTAIN, in_doubt=True)
        await priced(ledger, "d-1", account="new", credits_used=9)
        assert [await ledger.spent_or_reserved(batch) for batch in ("b", "c")] == [8, 2]
        await ledger.hand_over("apimall", "old", "new")
        assert [await ledger.spent_or_reserved(batch) for batch in ("b", "c")] == [9, 2]
        await priced(ledger, "d-2", account="new", credits_used=3, estimate=OWL_GUESS)
        assert await ledger.spent_or_reserved("c") == 3


async def priced(ledger: SqliteLedger, key: str, *, account: str, credits_used: int, estimate: Price = GUESS) -> None:
    """Buy a job at a price that the gateway states, and let it end."""
    record, _ = await about_to_be_sent(ledger, key, estimate, batch=batch_key_prefix(key[0]), account=account)
    record = await moved(ledger, record, JobState.RUNNING, task_id=key, credits_used=Decimal(credits_used))
    await moved(ledger, record, JobState.SUCCEEDED)


async def test_hand_over_copies_what_was_learned_unless_the_new_account_has_its_own(path: Path) -> None:
    async with ledger_at(path) as ledger:
        await ledger.remember("old", "facts")
        await ledger.hand_over("apimall", "old", "new")
        assert [await ledger.recall(account) for account in ("old", "new")] == ["facts", "facts"]
        await ledger.remember("new", "later facts")
        await ledger.hand_over("apimall", "old", "new")
        assert await ledger.recall("new") == "later facts"


async def test_hand_over_keeps_the_uploads(path: Path) -> None:
    upload = Upload(digest="a" * 64, url="https://cdn.example/a.png", size=7, uploaded_at=NOON)
    newer = Upload(digest="b" * 64, url="https://cdn.example/b.png", size=7, uploaded_at=NOON)
    async with ledger_at(path) as ledger:
        await ledger.remember_upload("old", upload)
        await ledger.remember_upload("old", newer)
        own = evolve(newer, url="https://cdn.example/own.png")
        await ledger.remember_upload("apimall:studio", own)
        await ledger.hand_over("apimall", "old", "apimall:studio")
        assert await ledger.find_upload("apimall:studio", upload.digest) == upload
        assert await ledger.find_upload("apimall:studio", own.digest) == own
