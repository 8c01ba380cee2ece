"""The contract of ledgers from which several workers draw rows, as functions that each take two open views of one."""

from collections.abc import Awaitable, Callable
from decimal import Decimal
from typing import Any

from attrs import evolve

from nanobanana_async.jobs import JobState
from nanobanana_async.keys import batch_key_prefix
from nanobanana_async.ledger.feeding import UNSAVED, FedBatch, FedRow, FeedsRows
from nanobanana_async.models import ImageRequest
from tests.support.ledger_contract import NOON, job

SPRING = batch_key_prefix("spring")
FACTS = FedBatch(batch=SPRING, name="spring", gateway="apimall", account="mine")

Scene = Callable[[FeedsRows, FeedsRows], Awaitable[None]]
SCENES: list[Scene] = []


def scene(play: Scene) -> Scene:
    SCENES.append(play)
    return play


def fed(number: int, *, keyed: bool = False, prompt: str | None = None, **facts: Any) -> FedRow:
    prompt = prompt or f"image {number}"
    key = f"{SPRING}{'k' if keyed else 'p'}-{number if keyed else prompt}"
    return FedRow(
        record=job(key, batch=SPRING, request=ImageRequest(prompt)),
        **{
            "index": number,
            "place": None if keyed else number,
            "own_key": f"order-{number}" if keyed else None,
            "digest": prompt,
            "name": f"{number:04}-{prompt}",
            **facts,
        },
    )


async def opened(ledger: FeedsRows, *rows: FedRow) -> None:
    await ledger.open_batch(FACTS)
    if rows:
        assert (await ledger.feed(SPRING, rows)).new == len(rows)


async def drawn(ledger: FeedsRows, count: int = 8) -> list[int]:
    return [row.index for row in (await ledger.draw(SPRING, count)).rows]


@scene
async def ledger_implements_the_protocol(one: FeedsRows, two: FeedsRows) -> None:
    assert isinstance(one, FeedsRows)
    assert isinstance(two, FeedsRows)


@scene
async def each_row_is_drawn_by_one_worker_in_order(one: FeedsRows, two: FeedsRows) -> None:
    await opened(one, *map(fed, range(5)))
    assert await drawn(one, 2) == [0, 1]
    assert await drawn(two, 2) == [2, 3]
    assert await drawn(one, 2) == [4]
    draw = await two.draw(SPRING, 2)
    assert (draw.rows, draw.unfinished) == ((), True)
    assert draw.batch.rows == 5


@scene
async def drawn_row_has_all_that_was_fed_and_can_be_claimed(one: FeedsRows, two: FeedsRows) -> None:
    row = fed(7, keyed=True, metadata='{"shelf": "\\u0000"}', name="fox \0")
    await opened(one, row)
    assert (await two.draw(SPRING, 8)).rows == (row,)
    claim = await two.claim(row.record)
    assert (claim.record, claim.is_new, claim.is_ours) == (row.record, False, True)


@scene
async def rows_that_wait_are_no_jobs_that_an_owner_left(one: FeedsRows, two: FeedsRows) -> None:
    await opened(one, fed(0), fed(1))
    assert await drawn(one) == [0, 1]
    for number in (0, 1):
        await one.claim(fed(number).record)
    submitting = fed(1).record.transition_to(JobState.SUBMITTING, first_sent_at=NOON)
    await one.advance(fed(1).record, submitting)
    await one.aclose()
    assert [record async for record in two.adoptable_jobs("mine")] == [submitting]


@scene
async def rows_that_are_fed_again_are_known(one: FeedsRows, two: FeedsRows) -> None:
    rows = [fed(0), fed(1, keyed=True), fed(2)]
    await opened(one, *rows)
    again = await two.feed(SPRING, [*rows, fed(3)])
    assert (again.new, again.misplaced, again.other_requests, again.ended) == (1, None, {}, ())
    assert await drawn(two) == [0, 1, 2, 3]
    facts = await one.fed_batch(SPRING)
    assert facts is not None
    assert facts.rows == 4


@scene
async def another_input_is_refused_and_stores_nothing(one: FeedsRows, two: FeedsRows) -> None:
    await opened(one, fed(0), fed(1))
    other = [fed(0), fed(1, prompt="an owl"), fed(2)]
    assert (await two.feed(SPRING, other)).misplaced == 1
    assert await two.find(other[1].record.key) is None
    assert await two.find(other[2].record.key) is None


@scene
async def parts_with_keys_may_be_fed_from_two_places(one: FeedsRows, two: FeedsRows) -> None:
    await opened(one, fed(0, keyed=True), fed(1, keyed=True))
    part = [fed(number, keyed=True, index=number - 10) for number in (10, 11)]
    assert (await two.feed(SPRING, part)).new == 2
    assert await drawn(one) == [0, 0, 1, 1]


@scene
async def key_with_another_request_is_reported_and_not_stored(one: FeedsRows, two: FeedsRows) -> None:
    await opened(one, fed(0, keyed=True))
    found = await two.feed(SPRING, [fed(0, keyed=True, prompt="an owl"), fed(1, keyed=True)])
    assert (found.new, list(found.other_requests)) == (1, [fed(0, keyed=True).record.key])
    assert [row.record.request for row in (await two.draw(SPRING, 8)).rows] == [
        ImageRequest("image 0"),
        ImageRequest("image 1"),
    ]


@scene
async def job_that_was_bought_before_is_fed_if_it_is_the_same(one: FeedsRows, two: FeedsRows) -> None:
    row, other = fed(0), fed(1, keyed=True)
    for each in (row, other):
        await one.claim(each.record)
    submitting = row.record.transition_to(JobState.SUBMITTING, first_sent_at=NOON)
    running = submitting.transition_to(JobState.RUNNING, task_id="t1")
    await one.advance(row.record, submitting)
    await one.advance(submitting, running)
    await one.open_batch(FACTS)
    found = await one.feed(SPRING, [row, fed(1, keyed=True, prompt="an owl")])
    assert (found.new, list(found.other_requests)) == (0, [other.record.key])
    assert [row.record for row in (await two.draw(SPRING, 8)).rows] == [running]


@scene
async def delivered_row_is_not_drawn_again(one: FeedsRows, two: FeedsRows) -> None:
    await opened(one, fed(0), fed(1))
    assert await drawn(one) == [0, 1]
    await two.deliver({fed(0).record.key: 0})  # it has not drawn it
    assert (await one.draw(SPRING, 8)).unfinished
    await one.deliver({fed(0).record.key: 0, fed(1).record.key: None})
    assert await drawn(two) == [1]
    await two.deliver({fed(1).record.key: 0})
    draw = await two.draw(SPRING, 8)
    assert (draw.rows, draw.unfinished) == ((), False)


@scene
async def row_that_is_delivered_with_an_older_record_is_drawn_again(one: FeedsRows, two: FeedsRows) -> None:
    await opened(one, fed(0))
    assert await drawn(one) == [0]
    await two.claim(fed(0).record)
    await two.advance(fed(0).record, fed(0).record.transition_to(JobState.SUBMITTING, first_sent_at=NOON))
    await one.deliver({fed(0).record.key: 0})
    assert await drawn(two) == [0]


@scene
async def row_whose_job_has_changed_is_drawn_again_once_it_is_fed_again(one: FeedsRows, two: FeedsRows) -> None:
    rows = [fed(0), fed(1)]
    await opened(one, *rows)
    assert await drawn(one) == [0, 1]
    await one.deliver({row.record.key: 0 for row in rows})
    await one.claim(rows[1].record)
    await one.advance(rows[1].record, rows[1].record.transition_to(JobState.SUBMITTING, first_sent_at=NOON))
    await two.feed(SPRING, rows)
    assert await drawn(two) == [1]


@scene
async def unsaved_row_is_drawn_again_when_asked_for(one: FeedsRows, two: FeedsRows) -> None:
    await opened(one, fed(0))
    assert await drawn(one) == [0]
    await one.deliver({fed(0).record.key: UNSAVED})
    assert not (await one.draw(SPRING, 8)).unfinished
    await two.draw_unsaved(SPRING)
    assert await drawn(two) == [0]


@scene
async def rows_of_a_closed_worker_are_drawn_in_any_state(one: FeedsRows, two: FeedsRows) -> None:
    rows = [fed(0), fed(1), fed(2)]
    await opened(two, *rows)
    assert await drawn(one) == [0, 1, 2]
    for row in rows:
        await one.claim(row.record)
    submitting = rows[1].record.transition_to(JobState.SUBMITTING, first_sent_at=NOON)
    await one.advance(rows[1].record, submitting)
    running = submitting.transition_to(JobState.RUNNING, task_id="t1")
    await one.advance(submitting, running)
    await one.deliver({rows[2].record.key: 0})
    await one.aclose()
    drawn_rows = (await two.draw(SPRING, 8)).rows
    assert [row.record for row in drawn_rows] == [rows[0].record, running]
    assert all([(await two.claim(row.record)).is_ours for row in drawn_rows])


@scene
async def jobs_without_images_are_reported_when_they_are_fed_again(one: FeedsRows, two: FeedsRows) -> None:
    await opened(one, fed(0), fed(1))
    assert await drawn(one) == [0, 1]
    await one.claim(fed(0).record)
    withdrawn = fed(0).record.transition_to(JobState.WITHDRAWN)
    await one.advance(fed(0).record, withdrawn)
    assert (await two.feed(SPRING, [fed(0), fed(1)])).ended == (withdrawn,)


@scene
async def batch_keeps_its_cap_until_another_one_is_given(one: FeedsRows, two: FeedsRows) -> None:
    assert await one.fed_batch(SPRING) is None
    capped = evolve(FACTS, max_credits=Decimal("80.5"), expected_credits=Decimal(8))
    assert await one.open_batch(capped) == capped
    assert await two.open_batch(FACTS, change=True) == capped
    raised = evolve(FACTS, max_credits=Decimal(100), expected_credits=Decimal(4))
    assert await two.open_batch(raised) == capped
    assert await two.open_batch(raised, change=True) == raised
    await one.feed(SPRING, [fed(0)])
    assert (await one.draw(SPRING, 1)).batch.max_credits == 100
    theirs = evolve(FACTS, account="theirs", max_credits=Decimal(5))
    kept = await one.open_batch(theirs, change=True)
    assert kept.account == "mine"
    assert kept.max_credits == 100


@scene
async def lower_cap_holds_from_the_first_new_row_on_and_a_higher_one_does_not(one: FeedsRows, two: FeedsRows) -> None:
    async def cap_after(*rows: FedRow, cap: int | None) -> Decimal | None:
        await one.feed(SPRING, rows, max_credits=None if cap is None else Decimal(cap))
        facts = await two.fed_batch(SPRING)
        return None if facts is None else facts.max_credits

    await opened(one, fed(0))
    assert await cap_after(fed(0), cap=80) is None
    assert await cap_after(fed(0), fed(1), cap=80) == 80
    assert await cap_after(fed(2), cap=100) == 80
    assert await cap_after(fed(3), cap=None) == 80
    assert await cap_after(fed(0), cap=16) == 80
    assert (await one.feed(SPRING, [fed(4, keyed=True), fed(9, place=0)], max_credits=Decimal(16))).misplaced == 0
    assert await cap_after(fed(0), cap=16) == 80
    bought = fed(4)
    await one.claim(bought.record)
    assert await cap_after(bought, cap=16) == 16


@scene
async def cap_falls_when_asked_and_never_rises(one: FeedsRows, two: FeedsRows) -> None:
    await opened(one, fed(0))
    for cap, stored in ((Decimal("80.5"), Decimal("80.5")), (Decimal(16), Decimal(16)), (Decimal(100), Decimal(16))):
        await two.lower_cap(SPRING, cap)
        assert await one.fed_batch(SPRING) == evolve(FACTS, rows=1, max_credits=stored)
