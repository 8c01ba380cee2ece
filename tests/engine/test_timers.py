"""The heap of due times and its one timer; the line in which jobs wait."""

import asyncio
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanobanana_async.engine.dispatcher import SubmitQueue
from nanobanana_async.engine.timers import TICK_S, Timers
from nanobanana_async.engine.tracked_job import NEVER, TrackedJob
from nanobanana_async.jobs import JobRecord
from tests.support.fakes import now, virtually


def entry(number: int = 0) -> TrackedJob:
    record = JobRecord(
        key=f"order-{number}",
        gateway="g",
        account="a",
        request=None,
        body=b"",
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
    )
    seat = TrackedJob(record, 1)
    seat.place = number
    return seat


class Bell:
    """Notes when it rings."""

    def __init__(self) -> None:
        self.rang_at: list[float] = []
        self.timers = Timers(asyncio.get_running_loop(), lambda: self.rang_at.append(now()))


@virtually
async def test_what_is_due_comes_in_the_order_of_its_time() -> None:
    timers, entries = Bell().timers, [entry(number) for number in range(4)]
    for seat, due in zip(entries, (3.0, 1.0, 2.0, 9.0), strict=True):
        timers.set(seat, due)
    assert [seat.place for seat in timers.due(3.0)] == [1, 2, 0]
    assert [seat.place for seat in timers.due(3.0)] == []
    assert entries[0].due == NEVER


@virtually
async def test_an_entry_that_is_set_anew_is_due_once_at_its_new_time() -> None:
    timers, seat = Bell().timers, entry()
    for due in (1.0, 5.0, 2.0):
        timers.set(seat, due)
    assert list(timers.due(1.5)) == []
    assert list(timers.due(2.0)) == [seat]
    assert list(timers.due(9.0)) == []


@virtually
async def test_what_is_due_within_a_tick_is_due_now() -> None:
    timers, seat = Bell().timers, entry()
    timers.set(seat, 1.0)
    assert list(timers.due(1.0 - 2 * TICK_S)) == []
    assert list(timers.due(1.0 - TICK_S / 2)) == [seat]


@virtually
async def test_the_bell_rings_at_the_first_due_time_or_sooner_if_told() -> None:
    bell = Bell()
    bell.timers.set(entry(1), 30.0)
    bell.timers.arm(now())
    bell.timers.set(entry(2), 10.0)
    bell.timers.arm(now())
    await asyncio.sleep(15.0)
    assert bell.rang_at == [10.0]
    list(bell.timers.due(now()))
    bell.timers.arm(now(), also_at=20.0)
    bell.timers.arm(now(), also_at=25.0)
    await asyncio.sleep(100.0)
    assert bell.rang_at == [10.0, 20.0]


@virtually
async def test_a_stopped_bell_is_silent_and_one_with_nothing_to_ring_for_too() -> None:
    bell = Bell()
    bell.timers.arm(now())
    bell.timers.set(entry(), 10.0)
    bell.timers.arm(now())
    bell.timers.stop()
    await asyncio.sleep(100.0)
    assert bell.rang_at == []


@virtually
async def test_the_bell_never_rings_twice_within_a_tick() -> None:
    bell = Bell()
    bell.timers.set(entry(), 0.0)
    bell.timers.arm(now())
    await asyncio.sleep(1.0)
    assert bell.rang_at == [TICK_S]


@given(st.lists(st.integers(0, 50), unique=True))
def test_the_line_serves_by_number_whoever_came_back_when(numbers: list[int]) -> None:
    line = SubmitQueue()
    assert not line
    for number in numbers:
        line.append(entry(number))
    assert sorted(seat.place for seat in line) == sorted(numbers)
    served: list[int] = []
    while line:
        first = line.first()
        assert line.popleft() is first
        served.append(first.place)
    assert served == sorted(numbers)


def test_an_entry_has_no_room_for_what_it_does_not_know() -> None:
    with pytest.raises(AttributeError):
        entry().anything = 1  # type: ignore[attr-defined]
