"""Numbers in public calls: values out of range are refused before anything is bought, and no timer stops."""

import asyncio
import math
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from nanobanana_async import (
    Batch,
    ConcurrencyPolicy,
    ConfigurationError,
    InvalidRequest,
    JobState,
    JobUnfinished,
    PollPolicy,
    RetryPolicy,
    Session,
    SqliteLedger,
    Timeouts,
    callers,
)
from nanobanana_async.engine.tracked_job import NEVER, TrackedJob
from nanobanana_async.events import Event, UnknownStatus
from nanobanana_async.testing import FakeTransport
from tests.support import replies
from tests.support.fakes import FakeGateway, apimall, apimall_now, now, virtually
from tests.support.rows import each_row

BAD = [math.nan, -1, -math.inf, 10**400, Decimal("1E+1000000"), Decimal("sNaN"), True, "5", [5]]


@pytest.mark.parametrize("bad", BAD, ids=[f"bad{place}" for place in range(len(BAD))])
@virtually
async def test_invalid_timeout_is_refused_before_buying(bad: Any) -> None:
    gateway = FakeGateway()
    async with apimall(FakeTransport(gateway.answer)) as session:
        with pytest.raises(ConfigurationError, match="timeout must be a number of at least 0"):
            await session.generate("a fox", timeout=bad)
        assert gateway.tasks == {}
        job = await session.submit("a fox")
        with pytest.raises(ConfigurationError, match="timeout must be a number of at least 0"):
            await job.result(timeout=bad)
        await asyncio.sleep(0.1)  # the timers of the event loop still ring
        assert (await job).task_id == "t1"


@pytest.mark.parametrize("good", [None, math.inf, 60, Decimal(60), Fraction(121, 2)])
@virtually
async def test_sufficient_or_no_timeout_returns_the_result(good: Any) -> None:
    async with apimall(FakeTransport(FakeGateway().answer)) as session:
        assert (await session.generate("a fox", timeout=good)).task_id == "t1"


@virtually
async def test_zero_timeout_buys_nothing() -> None:
    gateway = FakeGateway()
    async with apimall(FakeTransport(gateway.answer)) as session:
        with pytest.raises(
            JobUnfinished, match="was not sent within 0 s and was withdrawn: nothing was bought"
        ) as caught:
            await session.generate("a fox", timeout=0)
        assert caught.value.safe_to_repeat
        await asyncio.sleep(10.0)
    assert gateway.sold == 0


@pytest.mark.parametrize("timeout", [0, 1e-6, 0.001])
async def test_short_timeout_reports_what_became_of_the_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, timeout: float
) -> None:
    monkeypatch.setattr(callers, "WITHDRAWAL_WAIT_S", 60.0)  # the file is written, however busy the machine is
    gateway = FakeGateway()
    ledger = SqliteLedger(tmp_path / "jobs.sqlite")
    async with apimall(FakeTransport(gateway.answer), ledger=ledger) as session:
        with pytest.raises(JobUnfinished) as caught:
            await session.generate("a fox", idempotency_key="order-1", timeout=timeout)
        job = await session.job("order-1")
        assert job is not None
        withdrawn = job.state is JobState.WITHDRAWN
        assert caught.value.safe_to_repeat is withdrawn
        assert ("was withdrawn: nothing was bought" in str(caught.value)) is withdrawn
        assert withdrawn or timeout
    assert gateway.sold == (0 if withdrawn else 1)


@virtually
async def test_zero_timeout_returns_a_result_that_exists() -> None:
    gateway = FakeGateway()
    async with apimall(FakeTransport(gateway.answer)) as session:
        await session.generate("a fox", idempotency_key="order-1")
        assert (await session.generate("a fox", idempotency_key="order-1", timeout=0)).task_id == "t1"
    assert gateway.sold == 1


async def test_zero_timeout_finds_a_result_in_the_ledger(tmp_path: Path) -> None:
    gateway = FakeGateway(job_s=0.0)
    path = tmp_path / "jobs.sqlite"
    async with apimall_now(FakeTransport(gateway.answer), ledger=path) as session:
        await session.generate("a fox", idempotency_key="order-1")
    async with apimall_now(FakeTransport(gateway.answer), ledger=path) as session:
        assert (await session.generate("a fox", idempotency_key="order-1", timeout=0)).task_id == "t1"
    assert gateway.sold == 1


OUT_OF_RANGE = [math.nan, -1, 0, 10**400, Decimal("1E+1000000"), True, "5"]


@each_row("bad", [*OUT_OF_RANGE, None])
@each_row(
    ("kind", "names"),
    [
        (Timeouts, ["connect_s", "create_s", "query_s", "close_s"]),
        (PollPolicy, ["min_gap_s", "max_gap_s"]),
        (RetryPolicy, ["max_attempts", "max_wait_s", "first_backoff_s", "max_backoff_s"]),
        (ConcurrencyPolicy, ["max_requests"]),
    ],
)
def test_setting_out_of_range_is_refused_by_name(kind: Any, names: list[str], bad: object) -> None:
    for name in names:
        with pytest.raises(ConfigurationError, match=f"^{name} must be a .*number .* and at most "):
            kind(**{name: bad})


@each_row("bad", OUT_OF_RANGE)
def test_optional_setting_out_of_range_is_refused(bad: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"^target_delay_s must be a .*number .* and at most "):
        PollPolicy(target_delay_s=bad)
    with pytest.raises(ConfigurationError, match=r"^job_s must be a .*number .* and at most "):
        Timeouts(job_s=bad)


def test_min_gap_above_max_gap_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="min_gap_s is 9, more than max_gap_s, 8"):
        PollPolicy(min_gap_s=9, max_gap_s=8)
    with pytest.raises(ConfigurationError, match="min_gap_s is 61, more than max_gap_s, 60"):
        PollPolicy(min_gap_s=61)


@pytest.mark.parametrize("name", ["retry_uncertain", "retry_unkeyed_5xx"])
def test_non_boolean_retry_uncertain_is_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match=f"{name} must be True or False, not 'no'"):
        RetryPolicy(**{name: "no"})  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="learn must be True or False"):
        ConcurrencyPolicy(learn=None)  # type: ignore[arg-type]


@virtually
async def test_non_boolean_batch_option_is_refused() -> None:
    async with apimall(FakeTransport(FakeGateway().answer)) as session:
        for name in ("ordered", "retry_failed", "progress"):
            with pytest.raises(ConfigurationError, match=f"{name} must be True or False"):
                session.generate_many(["a fox"], **{name: "no"})  # type: ignore[arg-type]


def test_infinity_is_accepted_only_as_no_limit() -> None:
    for name in ("connect_s", "create_s", "query_s", "job_s", "close_s"):
        assert getattr(Timeouts(**{name: math.inf}), name) == math.inf
    assert RetryPolicy(max_wait_s=math.inf).max_wait_s == math.inf
    kinds: list[tuple[Any, str]] = [
        (PollPolicy, "min_gap_s"),
        (PollPolicy, "max_gap_s"),
        (RetryPolicy, "max_backoff_s"),
    ]
    for kind, name in kinds:
        with pytest.raises(ConfigurationError, match=f"{name} must be"):
            kind(**{name: math.inf})


@virtually
async def test_session_without_time_limits_works() -> None:
    endless = Timeouts(connect_s=math.inf, create_s=math.inf, query_s=math.inf, job_s=math.inf, close_s=math.inf)
    async with apimall(FakeTransport(FakeGateway().answer), timeouts=endless) as session:
        assert (await session.generate("a fox")).task_id == "t1"


@pytest.mark.parametrize("due", [NEVER, math.nan, 1e300])
@virtually
async def test_running_job_with_any_due_time_is_kept(due: float, monkeypatch: pytest.MonkeyPatch) -> None:
    gateway = FakeGateway()
    async with apimall(FakeTransport(gateway.answer), timeouts=Timeouts(job_s=math.inf)) as session:
        engine = session._session_task.engine
        assert engine is not None
        begin = engine.poller.begin_polling

        def never(job: TrackedJob) -> float:
            begin(job)
            return due

        monkeypatch.setattr(engine.poller, "begin_polling", never)
        result = await session.generate("a fox", idempotency_key="order-1")
        assert result.task_id == "t1"
        assert 86_000 < now() < 90_000


@virtually
async def test_bought_job_is_never_reported_as_not_bought(monkeypatch: pytest.MonkeyPatch) -> None:
    async with apimall(FakeTransport(FakeGateway(job_s=1e9).answer)) as session:
        job = await session.submit("a fox")
        await job.wait_for_task_id()
        monkeypatch.setattr(TrackedJob, "is_followed", False)  # however it came to that
        with pytest.raises(JobUnfinished, match="is running and no longer polled here: await it again") as caught:
            await job._wait_for_change()
        assert caught.value.safe_to_repeat is False
        monkeypatch.undo()


@pytest.mark.parametrize("limit", [-1, 1.5, True, "5", 10**400])
async def test_invalid_ledger_arguments_are_refused(tmp_path: Path, limit: Any) -> None:
    ledger = SqliteLedger(tmp_path / "jobs.sqlite")
    await ledger.open()
    with pytest.raises(ConfigurationError, match="limit must be a whole number of at least 0"):
        await anext(ledger.jobs(limit=limit))
    for moment in (5, "2026-01-01", None):
        with pytest.raises(ConfigurationError, match="older_than must be a datetime with a time zone"):
            await ledger.prune(moment)  # type: ignore[arg-type]
        with pytest.raises(ConfigurationError, match="older_than must be a datetime with a time zone"):
            await ledger.count_prunable(moment)  # type: ignore[arg-type]
    await ledger.aclose()


@each_row("bad", [math.nan, math.inf, -1, 1e7, True, "5", None])
def test_ledger_lock_timeout_out_of_range_is_refused(bad: Any) -> None:
    with pytest.raises(ConfigurationError, match="busy_timeout_s must be a number of at least 0 and at most"):
        SqliteLedger("jobs.sqlite", busy_timeout_s=bad)


def test_object_refused_by_its_constructor_has_a_repr() -> None:
    assert repr(Session.__new__(Session)) == "<Session not built>"
    assert repr(Batch.__new__(Batch)) == "<Batch not built>"
    ledger = SqliteLedger.__new__(SqliteLedger)
    with pytest.raises(ConfigurationError):
        SqliteLedger.__init__(ledger, ":memory:")
    assert repr(ledger) == "SqliteLedger('...')"


@pytest.mark.parametrize("task_id", ["日本", "img 1", "x" * 300, "img_1", "täsk", "a/b?c=d&e"])
@virtually
async def test_printable_task_id_can_be_attached(task_id: str) -> None:
    asked: list[str] = []

    def answer(request: Any) -> Any:
        asked.append(request.url)
        return replies.completed(task_id)

    async with apimall(FakeTransport(answer)) as session:
        job = await session.attach(task_id)
        assert (await job).task_id == task_id
        assert job.key.startswith("task-")
        assert len(job.key) <= 255
        assert (job.key == f"task-{task_id}") is (task_id in ("img_1", "a/b?c=d&e"))
    assert len(asked) == 1


@pytest.mark.parametrize("task_id", ["", "a\nb", "\ud800", None, 5])
@virtually
async def test_invalid_task_id_is_refused(task_id: Any) -> None:
    async with apimall(FakeTransport(FakeGateway().answer)) as session:
        with pytest.raises(InvalidRequest, match="task_id must be printable text"):
            await session.attach(task_id)


@virtually
async def test_unknown_statuses_are_reported_once_and_bounded() -> None:
    events: list[Event] = []
    words = iter(f"{'very ' * 50}strange" if number % 2 else f"odd {number // 4}" for number in range(10_000))
    polls = 0

    def answer(request: Any) -> Any:
        nonlocal polls
        if request.method == "POST":
            return replies.created("t1")
        polls += 1
        return replies.task(next(words), "t1") if polls < 400 else replies.completed("t1")

    polling = PollPolicy(target_delay_s=0.5, max_gap_s=2.0)
    async with apimall(FakeTransport(answer), observers=[events.append], polling=polling) as session:
        await session.generate("a fox")
    reported = [event.status for event in events if isinstance(event, UnknownStatus)]
    assert len(reported) == len(set(reported)) == 50
    assert max(map(len, reported)) == 60


@virtually
async def test_long_unknown_status_is_logged_truncated(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG", "nanobanana_async")
    answers = iter([replies.created("t1"), replies.task("x" * 5000, "t1"), replies.completed("t1")])
    async with apimall(FakeTransport(lambda _: next(answers))) as session:
        await session.generate("a fox")
    assert "status.unknown" in caplog.text
    assert "x" * 61 not in caplog.text


def test_evolved_settings_are_validated() -> None:
    with pytest.raises(ConfigurationError, match="job_s"):
        evolve(Timeouts(), job_s=math.nan)
    assert JobState.RUNNING.value == "running"
