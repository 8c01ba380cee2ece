"""Batches over several hosts: one feeds the rows, each draws and buys some of them."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from nanobanana_async import BatchStopped, Budget, FeedReport, GenerationResult, JobState, Outcome
from nanobanana_async.errors import (
    ConfigurationError,
    CreditLimitReached,
    DownloadError,
    IdempotencyConflict,
    InvalidRequest,
    JobUncertain,
    LedgerError,
    SessionClosed,
    TransportError,
)
from nanobanana_async.image_saver import ImageSaver
from tests.batch.fakes import PromptGateway, all_of, slots, until_stopped
from tests.support.fakes import apimall, defapi, now, virtually
from tests.support.replies import refused
from tests.support.shared_ledger import FakeProcess, SharedLedger

PROMPTS = [f"image {number}" for number in range(40)]


@asynccontextmanager
async def host(shared: SharedLedger, gateway: PromptGateway, **settings: Any) -> AsyncIterator[FakeProcess]:
    """Run a host with eight slots."""
    settings = {"session_of": apimall, "concurrency": slots(8), **settings}
    async with FakeProcess(shared, gateway.answer, **settings) as process:
        yield process


async def fed(shared: SharedLedger, rows: Any, **options: Any) -> FeedReport:
    """Feed rows from a host of its own."""
    async with host(shared, PromptGateway()) as process:
        return await process.session.feed(rows, batch="spring", **options)


async def worked(shared: SharedLedger, gateway: PromptGateway, **settings: Any) -> list[Outcome]:
    """Work until the batch has ended, on a host of its own."""
    async with host(shared, gateway, **settings) as process:
        return await all_of(process.session.work("spring"))


@virtually
async def test_two_hosts_buy_each_row_once() -> None:
    shared, gateway = SharedLedger(), PromptGateway(limit=16)
    assert await fed(shared, PROMPTS) == FeedReport(batch="spring", new=40)
    async with asyncio.TaskGroup() as group:
        hosts = [group.create_task(worked(shared, gateway)) for _ in range(2)]
    one, two = (task.result() for task in hosts)
    assert sorted(gateway.sold) == sorted(PROMPTS)
    assert min(len(one), len(two)) >= 10
    assert sorted(outcome.index for outcome in (*one, *two)) == list(range(40))
    assert all(outcome.unwrap().url for outcome in (*one, *two))


@virtually
async def test_rows_of_a_killed_host_are_finished_by_the_other() -> None:
    shared, gateway = SharedLedger(), PromptGateway()
    await fed(shared, PROMPTS)
    seen: list[Outcome] = []
    async with host(shared, gateway) as first, host(shared, gateway) as second:

        async def take() -> None:
            async for outcome in first.session.work("spring"):
                seen.append(outcome)  # noqa: PERF401 - they count when it is killed

        taking = asyncio.Task(take())
        others = asyncio.Task(all_of(second.session.work("spring")))
        await asyncio.sleep(5.0)
        first.kill()
        rest = await others
        taking.cancel()
        await asyncio.wait([taking])
    assert sorted(gateway.sold) == sorted(PROMPTS)
    counts = Counter(outcome.index for outcome in (*seen, *rest))
    assert sorted(counts) == list(range(40))
    # The outcome that the killed host was using when it died is taken again, and no other one.
    assert counts.total() - 40 <= 8 + 1


@virtually
async def test_host_waits_for_the_last_rows_of_another_one() -> None:
    shared, gateway = SharedLedger(), PromptGateway()
    await fed(shared, ["100 s"])
    async with host(shared, gateway) as first, host(shared, gateway) as second:
        others = asyncio.Task(all_of(first.session.work("spring")))
        await asyncio.sleep(10.0)
        waiting = asyncio.Task(all_of(second.session.work("spring")))
        await asyncio.sleep(10.0)
        assert not waiting.done()
        first.kill()
        (outcome,) = await waiting
        others.cancel()
        await asyncio.wait([others])
    assert outcome.ok
    assert gateway.sold == ["100 s"]


@virtually
async def test_row_that_ended_on_a_host_that_died_is_delivered_by_another() -> None:
    shared, gateway = SharedLedger(), PromptGateway()
    await fed(shared, ["a fox"])
    async with host(shared, gateway) as first:
        batch = first.session.work("spring")
        assert (await anext(batch)).ok  # its loop never comes back for the next one
        first.kill()
    (again,) = await worked(shared, gateway)
    assert again.ok
    assert gateway.sold == ["a fox"]
    assert await worked(shared, gateway) == []


@virtually
async def test_outcome_has_what_was_fed_beside_the_request(tmp_path: Path) -> None:
    shared, gateway = SharedLedger(), PromptGateway()
    rows = [{"prompt": "a fox", "key": "order-7", "metadata": {"shelf": [1, "ä"]}}, "an owl"]
    await fed(shared, rows, names="{row:03}-{slug}")
    outcomes = sorted(await worked(shared, gateway), key=lambda outcome: outcome.index)
    assert [(each.index, each.row_key, each.metadata) for each in outcomes] == [
        (0, "order-7", {"shelf": [1, "ä"]}),
        (1, None, None),
    ]
    assert [row.row.name for row in shared.fed_rows.values()] == ["001-a-fox", "002-an-owl"]


@virtually
async def test_input_that_was_interrupted_and_has_grown_is_fed_to_its_end() -> None:
    shared, gateway = SharedLedger(), PromptGateway()

    async def breaking() -> AsyncIterator[str]:
        for prompt in PROMPTS[:10]:
            yield prompt
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        await fed(shared, breaking())
    assert len(shared.fed_rows) == 10
    report = await fed(shared, PROMPTS)
    assert (report.new, report.known) == (30, 10)
    assert len(await worked(shared, gateway)) == 40
    report = await fed(shared, [*PROMPTS, "one more"])
    assert (report.new, report.known) == (1, 40)
    (outcome,) = await worked(shared, gateway)
    assert outcome.index == 40
    assert sorted(gateway.sold) == sorted([*PROMPTS, "one more"])


@virtually
async def test_rows_that_repeat_are_bought_as_often() -> None:
    shared, gateway = SharedLedger(), PromptGateway()
    rows = ["fog", "fog", "rain", "fog"]
    await fed(shared, rows)
    assert (await fed(shared, rows)).new == 0
    await worked(shared, gateway)
    assert Counter(gateway.sold) == {"fog": 3, "rain": 1}


@virtually
async def test_second_part_without_keys_is_refused_and_nothing_of_it_is_bought() -> None:
    shared, gateway = SharedLedger(), PromptGateway()
    await fed(shared, ["a fox", "an owl"])
    for part in (["a hare", "a fox"], ["a fox", "a hare"], ["an owl"]):
        with pytest.raises(ConfigurationError, match="rows without a key are distinguished by their order") as caught:
            await fed(shared, part)
        assert "`key`" in str(caught.value)
    await worked(shared, gateway)
    assert sorted(gateway.sold) == ["a fox", "an owl"]


@virtually
async def test_parts_with_keys_are_fed_from_several_hosts() -> None:
    shared, gateway = SharedLedger(), PromptGateway()
    parts = [[{"prompt": "fog", "key": f"{part}-{number}"} for number in range(3)] for part in "ab"]
    for part in parts:
        assert (await fed(shared, part)).new == 3
    outcomes = await worked(shared, gateway)
    assert sorted(outcome.row_key or "" for outcome in outcomes) == ["a-0", "a-1", "a-2", "b-0", "b-1", "b-2"]
    assert gateway.sold == ["fog"] * 6


@virtually
async def test_key_with_another_request_is_refused() -> None:
    shared = SharedLedger()
    await fed(shared, [{"prompt": "a fox", "key": "one"}])
    with pytest.raises(IdempotencyConflict, match="row 2: key one of batch 'spring' belongs to another request"):
        await fed(shared, [{"prompt": "an owl", "key": "two"}, {"prompt": "a hare", "key": "one"}])
    assert (await fed(shared, [{"prompt": "an owl", "key": "two"}])).known == 1


@virtually
async def test_key_twice_in_one_input_with_another_request_is_refused() -> None:
    shared = SharedLedger()
    with pytest.raises(IdempotencyConflict, match="row 2: key one"):
        await fed(shared, [{"prompt": "a fox", "key": "one"}, {"prompt": "a hare", "key": "one"}])


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"prompt": "a fox", "aspect_ratio": "wide"}, "row 2: aspect_ratio"),
        ({"prompt": "a fox", "images": [b"\x89PNG\r\n\x1a\n"]}, "row 2: .* pass its URL"),
        ({"prompt": "a fox", "images": [Path("fox.png")]}, "row 2: .*fox.png.* pass its URL"),
    ],
)
@virtually
async def test_row_that_no_host_can_buy_is_refused_and_those_before_it_are_stored(row: Any, why: str) -> None:
    shared = SharedLedger()
    with pytest.raises(InvalidRequest, match=why):
        await fed(shared, ["an owl", row])
    assert (await fed(shared, ["an owl"])).known == 1


@virtually
async def test_cap_is_stored_when_the_batch_is_fed_and_held_by_all_hosts() -> None:
    shared, gateway = SharedLedger(), PromptGateway()
    report = await fed(shared, PROMPTS, max_credits=80)
    assert report.max_credits == 80
    assert (await fed(shared, PROMPTS)).max_credits == 80

    async def until_the_cap() -> int:
        async with host(shared, gateway) as process:
            outcomes, stopped = await until_stopped(process.session.work("spring"))
        assert isinstance(stopped.cause, CreditLimitReached)
        return sum(outcome.ok for outcome in outcomes)

    async with asyncio.TaskGroup() as group:
        hosts = [group.create_task(until_the_cap()) for _ in range(2)]
    assert sum(task.result() for task in hosts) == len(gateway.sold) == 10
    # A higher cap goes on, without any row lost.
    await fed(shared, PROMPTS, max_credits=10_000)
    assert len(await worked(shared, gateway)) == 30
    assert sorted(gateway.sold) == sorted(PROMPTS)


@virtually
async def test_cap_that_is_raised_holds_for_workers_that_run() -> None:
    shared, gateway = SharedLedger(), PromptGateway()
    await fed(shared, PROMPTS, max_credits=200)
    async with host(shared, gateway) as process:
        working = asyncio.Task(all_of(process.session.work("spring")))
        await asyncio.sleep(3.0)
        await fed(shared, PROMPTS, max_credits=1000)
        assert len(await working) == 40


REFUSED_INPUTS = {
    "another input": (["a hare"], ConfigurationError),
    "key of another request": ([{"prompt": "a hare", "key": "one"}], IdempotencyConflict),
    "key twice": ([{"prompt": "a bear", "key": "one"}, {"prompt": "a hare", "key": "one"}], IdempotencyConflict),
    "invalid value": (["a fox", {"prompt": "a hare", "aspect_ratio": "wide"}], InvalidRequest),
    "local image": (["a fox", {"prompt": "a hare", "images": [Path("fox.png")]}], InvalidRequest),
    "empty prompt": (["a fox", ""], InvalidRequest),
    "unknown field": (["a fox", {"promt": "a hare"}], InvalidRequest),
}


@pytest.mark.parametrize("cap", [1, 1000])
@pytest.mark.parametrize("refused_input", REFUSED_INPUTS)
@virtually
async def test_refused_feed_leaves_cap_and_expected_credits_of_a_batch(refused_input: str, cap: int) -> None:
    shared, gateway = SharedLedger(), PromptGateway()
    rows = ["a fox", "an owl", {"prompt": "a bear", "key": "one"}]
    await fed(shared, rows, max_credits=16, expected_credits=8)
    (before,) = shared.fed_batches.values()
    wrong, error = REFUSED_INPUTS[refused_input]
    with pytest.raises(error):
        await fed(shared, wrong, max_credits=cap, expected_credits=2)
    (after,) = shared.fed_batches.values()
    assert after == before
    assert after.max_credits == 16
    assert after.expected_credits == 8
    async with host(shared, gateway) as process:
        await until_stopped(process.session.work("spring"))
    assert len(gateway.sold) == 2
    report = await fed(shared, rows, max_credits=1000)
    assert report.max_credits == 1000
    assert len(await worked(shared, gateway)) >= 1


@virtually
async def test_refused_feed_of_a_new_batch_leaves_no_batch() -> None:
    shared = SharedLedger()
    with pytest.raises(InvalidRequest):
        await fed(shared, [{"prompt": "a fox", "aspect_ratio": "wide"}], max_credits=1000)
    assert shared.fed_batches == {}


@virtually
async def test_rows_are_under_the_cap_of_their_feed_from_the_first_one_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nanobanana_async.batch.feeding.CHUNK", 2)
    shared = SharedLedger()
    caps: list[Decimal | None] = []

    async def rows(number: int) -> AsyncIterator[str]:
        for prompt in PROMPTS[:number]:
            await asyncio.sleep(1.0)
            caps.extend(facts.max_credits for facts in shared.fed_batches.values())
            yield prompt
        raise OSError("the disk is gone")

    for number, cap, kept in ((4, 80, 80), (8, 160, 80), (8, 16, 80), (12, 16, 16)):
        caps.clear()
        with pytest.raises(OSError, match="the disk is gone"):
            await fed(shared, rows(number), max_credits=cap)
        assert caps[-1] == kept
        assert [facts.max_credits for facts in shared.fed_batches.values()] == [kept]
    assert (await fed(shared, PROMPTS[:12], max_credits=160)).max_credits == 160
    assert (await fed(shared, PROMPTS[:12], max_credits=16)).max_credits == 16


@virtually
async def test_feed_without_rows_changes_the_cap() -> None:
    shared = SharedLedger()
    assert (await fed(shared, [], max_credits=80)).max_credits == 80
    await fed(shared, PROMPTS)
    assert (await fed(shared, [], max_credits=160)).max_credits == 160
    assert (await fed(shared, [], max_credits=16)).max_credits == 16


@virtually
async def test_lower_cap_holds_for_rows_that_a_refused_feed_begins_again() -> None:
    shared, gateway = SharedLedger(), PromptGateway()
    await fed(shared, ["fine", "fail"], max_credits=80)
    await worked(shared, gateway)
    for rows in (["fine", ""], ["fine", "fail", ""]):
        (before,) = shared.fed_batches.values()
        assert before.max_credits == 80
        with pytest.raises(InvalidRequest):
            await fed(shared, rows, max_credits=9, retry_failed=True)
    (after,) = shared.fed_batches.values()
    assert after.max_credits == 9


@virtually
async def test_rows_that_were_not_sent_are_left_for_others_when_a_worker_stops() -> None:
    shared, gateway = SharedLedger(), PromptGateway(job_s=20.0)
    await fed(shared, PROMPTS)
    async with host(shared, gateway) as process:
        async with process.session.work("spring"):
            await asyncio.sleep(5.0)
        await asyncio.sleep(1.0)
        assert set(shared.states().values()) == {JobState.RUNNING, JobState.PENDING}
        assert sum(row.worker is not None for row in shared.fed_rows.values()) == 0
        assert len(await worked(shared, gateway)) == 40  # also those that run here
    assert sorted(gateway.sold) == sorted(PROMPTS)


@virtually
async def test_drained_worker_delivers_what_runs_and_leaves_the_rest() -> None:
    shared, gateway = SharedLedger(), PromptGateway(job_s=20.0)
    await fed(shared, PROMPTS)
    async with host(shared, gateway) as process:
        batch = process.session.work("spring")
        taking = asyncio.Task(all_of(batch))
        await asyncio.sleep(5.0)
        await batch.aclose()
        outcomes = await taking
    assert len(outcomes) == 8
    assert all(outcome.ok for outcome in outcomes)
    assert len(await worked(shared, gateway)) == 32


@virtually
async def test_row_that_was_refused_for_a_passing_reason_is_bought_by_the_next_worker() -> None:
    shared = SharedLedger()
    gateway = PromptGateway(says=lambda _: refused(402, "insufficient_credits", "top up"))
    await fed(shared, PROMPTS)
    with pytest.raises(BatchStopped):
        await worked(shared, gateway)
    gateway.says = lambda _: None
    assert len(await worked(shared, gateway)) == 40
    assert sorted(gateway.sold) == sorted(PROMPTS)


@pytest.mark.parametrize("method", ["draw", "deliver"])
@virtually
async def test_failing_ledger_stops_a_worker_and_what_runs_is_delivered(
    method: str, caplog: pytest.LogCaptureFixture
) -> None:
    shared, gateway = SharedLedger(), PromptGateway(job_s=20.0)
    await fed(shared, ["5 s", *PROMPTS])
    async with host(shared, gateway) as process:
        taking = asyncio.Task(until_stopped(process.session.work("spring")))
        await asyncio.sleep(2.0)
        process.ledger.fails[method] = 1
        outcomes, stopped = await taking
        assert isinstance(stopped.cause, LedgerError)
        assert stopped.cause.message == "the disk is full"
        assert len(outcomes) == len(gateway.sold) < 20
        assert all(outcome.ok for outcome in outcomes)
        assert [record.message for record in caplog.records if "ledger.failed" in record.message] == [
            "ledger.failed batch=spring error=the disk is full"
        ]
        # What failed was written later: nothing is left to this worker, and no outcome comes twice.
        assert all(row.worker is None for row in shared.fed_rows.values())
        rest = await worked(shared, gateway)
    assert sorted(outcome.index for outcome in (*outcomes, *rest)) == list(range(41))
    assert sorted(gateway.sold) == sorted(["5 s", *PROMPTS])


@pytest.mark.parametrize("methods", [["draw"], ["deliver"], ["draw", "deliver"]])
@virtually
async def test_ledger_that_goes_on_failing_ends_a_worker_and_no_row_is_lost(methods: list[str]) -> None:
    shared, gateway = SharedLedger(), PromptGateway()
    await fed(shared, PROMPTS)
    async with host(shared, gateway) as process:
        taking = asyncio.Task(until_stopped(process.session.work("spring")))
        await asyncio.sleep(3.0)
        for method in methods:
            process.ledger.fails[method] = 10_000
        outcomes, stopped = await taking
        assert isinstance(stopped.cause, LedgerError)
        assert all(outcome.ok for outcome in outcomes)
    rest = await worked(shared, gateway)
    assert {outcome.index for outcome in (*outcomes, *rest)} == set(range(40))
    assert sorted(gateway.sold) == sorted(PROMPTS)


@virtually
async def test_drained_worker_whose_deliveries_fail_ends_and_says_why() -> None:
    shared, gateway = SharedLedger(), PromptGateway()
    await fed(shared, PROMPTS)
    async with host(shared, gateway) as process:
        batch = process.session.work("spring")
        taking = asyncio.Task(until_stopped(batch))
        await asyncio.sleep(1.0)
        process.ledger.fails["deliver"] = 10_000
        await batch.aclose()
        outcomes, stopped = await taking
    assert isinstance(stopped.cause, LedgerError)
    assert len(outcomes) == len(gateway.sold) == 8


@virtually
async def test_worker_that_left_its_loop_can_not_be_kept_by_failing_deliveries() -> None:
    shared, gateway = SharedLedger(), PromptGateway()
    await fed(shared, PROMPTS)
    async with host(shared, gateway) as process, process.session.work("spring") as batch:
        assert (await anext(batch)).ok
        process.ledger.fails["deliver"] = 10_000
    assert len(await worked(shared, gateway)) == 40


@virtually
async def test_row_whose_doubt_could_not_be_written_is_drawn_again() -> None:
    shared, gateway = SharedLedger(), PromptGateway()
    await fed_for_defapi(shared, ["fine", "lost", *PROMPTS[:3]])
    async with host(shared, gateway, session_of=defapi, concurrency=slots(1)) as process:

        def lose_answer(prompt: str) -> TransportError | None:
            process.ledger.fails["advance"] = prompt == "lost"
            return TransportError("lost", possibly_sent=True) if prompt == "lost" else None

        gateway.says = lose_answer
        outcomes, stopped = await until_stopped(process.session.work("spring"))
        assert isinstance(stopped.cause, LedgerError)
        assert [type(outcome.error) for outcome in outcomes] == [type(None), LedgerError]
    rest = await worked(shared, gateway, session_of=defapi)
    assert [(outcome.index, outcome.ok) for outcome in rest] == [(1, False), (2, True), (3, True), (4, True)]
    assert isinstance(rest[0].error, JobUncertain)
    assert gateway.posts == ["fine", "lost", *PROMPTS[:3]]


@virtually
async def test_ledger_that_fails_at_the_start_stops_a_worker() -> None:
    for method in ("fed_batch", "draw_unsaved", "draw"):
        shared, gateway = SharedLedger(), PromptGateway()
        await fed(shared, PROMPTS)
        async with host(shared, gateway) as process:
            process.ledger.fails[method] = 1
            outcomes, stopped = await until_stopped(process.session.work("spring"))
            assert isinstance(stopped.cause, LedgerError)
            assert (outcomes, gateway.posts) == ([], [])


@virtually
async def test_session_that_closes_before_all_outcomes_are_taken_ends_the_loop() -> None:
    shared, gateway = SharedLedger(), PromptGateway()
    await fed(shared, PROMPTS)
    async with host(shared, gateway) as process:
        batch = process.session.work("spring")
        assert (await anext(batch)).ok
        await asyncio.sleep(30.0)  # more outcomes wait
    with pytest.raises(SessionClosed):
        await all_of(batch)
    assert {outcome.index for outcome in await worked(shared, gateway)} >= set(range(8, 40))


@virtually
async def test_failed_rows_are_bought_again_only_when_they_are_fed_with_retry_failed() -> None:
    shared, gateway = SharedLedger(), PromptGateway()
    rows = ["fine", "fail"]
    await fed(shared, rows)
    assert sorted(outcome.ok for outcome in await worked(shared, gateway)) == [False, True]
    assert (await fed(shared, rows)).again == 0
    assert await worked(shared, gateway) == []
    assert (await fed(shared, rows, retry_failed=True)).again == 1
    (outcome,) = await worked(shared, gateway)
    assert not outcome.ok
    assert gateway.sold == ["fine", "fail", "fail"]


@virtually
async def test_uncertain_row_is_reported_and_not_sent_again() -> None:
    shared = SharedLedger()
    gateway = PromptGateway(
        says=lambda prompt: TransportError("lost", possibly_sent=True) if prompt == "lost" else None
    )
    await fed_for_defapi(shared, ["lost", "fine"])
    outcomes = await worked(shared, gateway, session_of=defapi)
    assert [type(outcome.error) for outcome in outcomes if outcome.error] == [JobUncertain]
    assert await worked(shared, gateway, session_of=defapi) == []
    assert gateway.posts.count("lost") == 1


async def fed_for_defapi(shared: SharedLedger, rows: list[str]) -> None:
    async with host(shared, PromptGateway(), session_of=defapi) as process:
        await process.session.feed(rows, batch="spring")


@virtually
async def test_batch_of_another_account_is_refused() -> None:
    shared, gateway = SharedLedger(), PromptGateway()
    await fed(shared, PROMPTS)
    with pytest.raises(ConfigurationError, match=r"batch 'spring' was fed for account .* of apimall"):
        await worked(shared, gateway, session_of=defapi)
    with pytest.raises(ConfigurationError, match="was fed for account"):
        await fed_for_defapi(shared, PROMPTS)
    assert gateway.sold == []


@virtually
async def test_batch_that_was_not_fed_is_an_error_that_says_so() -> None:
    with pytest.raises(ConfigurationError, match="no batch 'spring' was fed"):
        await worked(SharedLedger(), PromptGateway())


@virtually
async def test_row_that_generate_many_bought_is_not_bought_again() -> None:
    shared, gateway = SharedLedger(), PromptGateway()
    async with host(shared, gateway) as process:
        await all_of(process.session.generate_many(PROMPTS[:10], batch="spring"))
    report = await fed(shared, PROMPTS)
    assert (report.new, report.known) == (30, 10)
    assert len(await worked(shared, gateway)) == 40
    assert sorted(gateway.sold) == sorted(PROMPTS)


@virtually
async def test_waiting_rows_are_not_resumed() -> None:
    shared, gateway = SharedLedger(), PromptGateway()
    await fed(shared, PROMPTS)
    async with host(shared, gateway) as process:
        assert await process.session.resume(buy=True) == []


@virtually
async def test_images_that_could_not_be_saved_are_saved_by_the_next_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared, gateway = SharedLedger(), PromptGateway()
    await fed(shared, ["a fox", "an owl"])
    names: list[str] = []

    async def saved(_: ImageSaver, result: GenerationResult, __: object, name: str, **___: object) -> tuple[Path]:
        names.append(name)
        if len(names) == 1:
            raise DownloadError("the host is away")
        return (tmp_path / f"{name}.png",)

    monkeypatch.setattr(ImageSaver, "save", saved)
    for rows in (2, 1, 0):
        async with host(shared, gateway) as process:
            assert len(await all_of(process.session.work("spring", save_to=tmp_path))) == rows
    assert sorted(names) == sorted(["0001-a-fox", "0002-an-owl", names[0]])
    assert gateway.sold == ["a fox", "an owl"]


@pytest.mark.parametrize("number", [8, 9])
@virtually
async def test_rows_of_a_worker_that_has_lost_its_way_are_bought_by_others(number: int) -> None:
    shared, gateway = SharedLedger(), PromptGateway()
    cut_off = PromptGateway(says=lambda prompt: TransportError("no route to host", possibly_sent=False))
    await fed(shared, PROMPTS[:number])
    async with host(shared, cut_off) as lost, host(shared, gateway) as other:
        waiting = asyncio.Task(all_of(lost.session.work("spring")))
        await asyncio.sleep(1.0)  # it has drawn all that it may by now
        outcomes = await all_of(other.session.work("spring"))
        await waiting  # it ends with the batch
    assert sorted(gateway.sold) == sorted(PROMPTS[:number])
    assert sorted(outcome.index for outcome in outcomes) == list(range(number))
    assert lost.creates < 60


@virtually
async def test_worker_buys_its_rows_when_its_way_to_the_gateway_is_back() -> None:
    shared, gateway = SharedLedger(), PromptGateway()
    away_until = now() + 600.0
    gateway.says = lambda _: TransportError("no route to host", possibly_sent=False) if now() < away_until else None
    await fed(shared, PROMPTS)
    async with host(shared, gateway) as alone:
        outcomes = await all_of(alone.session.work("spring"))
    assert sorted(gateway.sold) == sorted(PROMPTS)
    assert len(outcomes) == 40
    assert all(outcome.ok for outcome in outcomes)


@virtually
async def test_hosts_that_generate_the_same_named_rows_share_them() -> None:
    shared, gateway = SharedLedger(), PromptGateway(limit=16)

    async def generated() -> tuple[int, list[Outcome]]:
        async with host(shared, gateway) as process:
            outcomes = await all_of(process.session.generate_many(PROMPTS, batch="spring", ordered=True))
            return process.creates, outcomes

    async with asyncio.TaskGroup() as group:
        hosts = [group.create_task(generated()) for _ in range(2)]
    assert sorted(gateway.sold) == sorted(PROMPTS)
    for task in hosts:
        creates, outcomes = task.result()
        assert creates >= 10  # each has bought a part of them
        assert [outcome.index for outcome in outcomes] == list(range(40))  # and gets all, those of the other too
        assert all(outcome.ok for outcome in outcomes)


@virtually
async def test_budget_of_a_feed_counts_its_rows_on_each_worker() -> None:
    shared, gateway = SharedLedger(), PromptGateway()
    budget = Budget(name="alice", max_credits=80)
    await fed(shared, PROMPTS[:12], budget=budget)
    async with host(shared, gateway) as process:
        outcomes, stopped = await until_stopped(process.session.work("spring"))
        assert (len(gateway.sold), len([each for each in outcomes if each.ok])) == (10, 10)
        assert isinstance(stopped.cause, CreditLimitReached)
        assert (stopped.cause.budget, stopped.cause.left) == ("alice", Decimal(0))
        await process.session.budgets()
    await fed(shared, PROMPTS[:12], budget=Budget(name="alice", max_credits=800))
    assert len(await worked(shared, gateway)) == 2
    assert len(gateway.sold) == 12
