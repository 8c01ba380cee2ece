"""Whose a task in the history is: decided where it is proven, and never against the truth."""

from decimal import Decimal
from typing import Any

import pytest
from attrs import evolve, frozen
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nanobanana_async.policy.reconcile import (
    ZONE_STEP_S,
    ClaimedTask,
    ClockOffset,
    FoundTask,
    HistoryEvidence,
    JobInDoubt,
    NotBought,
    UnclaimedTask,
    Undecided,
    decide_doubts,
    estimate_lateness_s,
    estimate_offset,
    ready_after_s,
)
from tests.support.rows import each_row

DELAY_S = 40.0
LATE_S = 2.0
EXACT = ClockOffset(0.0, 0.0)


def doubt(key: str = "A", sent_at: float = 1000.0, lost_at: float = 1001.0, **facts: Any) -> JobInDoubt:
    usual: dict[str, Any] = {"processed": True, "request": key, "model": "nano", "price_class": "1K"}
    return JobInDoubt(key=key, sent_at=sent_at, lost_at=lost_at, **{**usual, **facts})


def task(task_id: str, created_at: float, **facts: Any) -> UnclaimedTask:
    usual: dict[str, Any] = {"model": "nano"}
    return UnclaimedTask(task_id=task_id, created_at=created_at, **{**usual, **facts})


def read(*unclaimed: UnclaimedTask, read_at: float = 2000.0, **facts: Any) -> HistoryEvidence:
    usual: dict[str, Any] = {"complete_since": 0.0, "offset": EXACT, "delay_s": DELAY_S, "lateness_s": LATE_S}
    return HistoryEvidence(read_at=read_at, unclaimed=unclaimed, **{**usual, **facts})


def test_processed_job_gets_the_only_task_of_its_window() -> None:
    tasks = (task("before", 998.9), task("own", 1000.5), task("after", 1003.1))
    assert decide_doubts([doubt()], read(*tasks)) == {"A": FoundTask("own")}


@pytest.mark.parametrize("created_at", [999.0, 1000.0, 1001.0, 1003.0])
def test_window_reaches_a_second_back_and_the_lateness_on(created_at: float) -> None:
    assert decide_doubts([doubt()], read(task("own", created_at))) == {"A": FoundTask("own")}


def test_window_is_moved_to_the_gateways_clock() -> None:
    hour_ahead = ClockOffset(3600.0, 3600.5)
    tasks = (task("own", 4600.5), task("other", 1000.5))
    assert decide_doubts([doubt()], read(*tasks, offset=hour_ahead)) == {"A": FoundTask("own")}


def test_job_that_may_still_be_in_progress_is_left_undecided() -> None:
    job = doubt(processed=False, in_progress=True)
    assert decide_doubts([job], read()) == {"A": Undecided((), may_change=False)}
    assert decide_doubts([job], read(task("a", 1000.5))) == {"A": Undecided(("a",), may_change=False)}


def test_two_tasks_in_the_window_leave_the_job_undecided() -> None:
    tasks = (task("a", 1000.1), task("b", 1000.9))
    assert decide_doubts([doubt()], read(*tasks)) == {"A": Undecided(("a", "b"), may_change=False)}


def test_many_candidates_are_those_nearest_to_the_send() -> None:
    tasks = [task(f"t{number}", 1100.0 - number) for number in range(200)]
    job = doubt(processed=False, sent_at=1000.0, lost_at=1100.0)
    near = [f"t{number}" for number in range(101, 81, -1)]  # from a second before the send on, as the window
    assert decide_doubts([job], read(*tasks)) == {"A": Undecided(tuple(near), may_change=False)}
    few = tasks[81:101]
    undecided = decide_doubts([job], read(*few))["A"]
    assert isinstance(undecided, Undecided)
    assert len(undecided.candidates) == len(few)


def test_unprocessed_job_gets_no_task_but_a_candidate() -> None:
    verdict = decide_doubts([doubt(processed=False)], read(task("a", 1000.5)))
    assert verdict == {"A": Undecided(("a",), may_change=False)}


def test_processed_job_without_a_task_is_undecided() -> None:
    assert decide_doubts([doubt()], read()) == {"A": Undecided((), may_change=False)}


def test_unprocessed_job_without_a_task_was_not_bought() -> None:
    tasks = (task("long before", 870.0), task("long after", 1200.0))
    assert decide_doubts([doubt(processed=False)], read(*tasks)) == {"A": NotBought()}


@pytest.mark.parametrize("created_at", [880.0, 1121.0])
def test_task_near_the_window_forbids_not_bought(created_at: float) -> None:
    verdict = decide_doubts([doubt(processed=False)], read(task("near", created_at)))
    assert verdict == {"A": Undecided(("near",), may_change=False)}


def test_task_that_another_job_must_have_does_not_forbid_not_bought() -> None:
    doubts = [doubt("A"), doubt("B", processed=False)]
    assert decide_doubts(doubts, read(task("a", 1000.5))) == {"A": FoundTask("a"), "B": NotBought()}


@pytest.mark.parametrize(("processed", "after_s"), [(True, LATE_S + DELAY_S), (False, 3 * DELAY_S)])
def test_reading_too_soon_after_the_loss_decides_nothing(processed: bool, after_s: float) -> None:
    tasks = [task("own", 1000.5)] if processed else []
    job = doubt(processed=processed)
    early, late = (
        decide_doubts([job], read(*tasks, read_at=1001.0 + wait_s))["A"] for wait_s in (after_s - 0.1, after_s)
    )
    assert early == Undecided(tuple(each.task_id for each in tasks), may_change=True)
    assert isinstance(late, FoundTask if processed else NotBought)
    assert ready_after_s(LATE_S, DELAY_S, processed=processed) == after_s


@pytest.mark.parametrize(("processed", "since"), [(True, 999.5), (False, 900.0)])
def test_reading_not_far_enough_back_decides_nothing(processed: bool, since: float) -> None:
    verdict = decide_doubts([doubt(processed=processed)], read(complete_since=since))
    assert verdict == {"A": Undecided((), may_change=False)}


def test_undecided_job_may_change_while_a_related_one_is_recent() -> None:
    doubts = [doubt("A"), doubt("B", 1000.2, 1950.0, processed=False)]
    verdicts = decide_doubts(doubts, read(task("a", 1000.1), task("b", 1000.9)))
    assert verdicts["A"] == Undecided(("a", "b"), may_change=True)


def test_alike_jobs_may_have_their_tasks_in_any_order() -> None:
    doubts = [doubt("A", request="fox"), doubt("B", request="fox")]
    verdicts = decide_doubts(doubts, read(task("a", 1000.1), task("b", 1000.9)))
    assert {verdict.task_id for verdict in verdicts.values() if isinstance(verdict, FoundTask)} == {"a", "b"}


# Models, prices and clocks


def claimed(created_at: float = 0.0, **facts: Any) -> ClaimedTask:
    return ClaimedTask(created_at=created_at, **facts)


KNOWN = (
    claimed(model="nano", requested_model="nano", price_class="1K", credits=Decimal(8)),
    claimed(model="nano", requested_model="nano", price_class="4K", credits=Decimal(16)),
    claimed(),
)


@pytest.mark.parametrize("facts", [{"model": "z-image"}, {"credits": Decimal(16)}])
def test_task_of_another_model_or_price_is_left_out(facts: dict[str, Any]) -> None:
    tasks = (task("own", 1000.5, credits=Decimal(8)), task("other", 1000.6, **facts))
    assert decide_doubts([doubt()], read(*tasks, claimed=KNOWN)) == {"A": FoundTask("own")}


@each_row(
    ("facts", "job"),
    [
        ({"model": None}, {}),
        ({"model": "z-image"}, {"model": "unknown to the history"}),
        ({"model": "z-image"}, {"model": None}),
        ({"credits": Decimal(9)}, {}),
        ({"credits": Decimal(16)}, {"price_class": "unknown"}),
        ({"credits": None}, {}),
    ],
)
def test_task_of_an_unknown_model_or_price_may_be_the_jobs(facts: dict[str, Any], job: dict[str, Any]) -> None:
    verdict = decide_doubts([doubt(**job)], read(task("a", 1000.5, **facts), claimed=KNOWN))
    assert verdict == {"A": FoundTask("a")}


def test_model_of_other_jobs_is_left_out_before_the_own_one_is_seen() -> None:
    verdict = decide_doubts([doubt(model="pro", processed=False)], read(task("a", 1000.5), claimed=KNOWN))
    assert verdict == {"A": NotBought()}


def test_price_does_not_make_a_job_not_bought() -> None:
    verdict = decide_doubts([doubt(processed=False)], read(task("a", 1000.5, credits=Decimal(16)), claimed=KNOWN))
    assert verdict == {"A": Undecided(("a",), may_change=False)}


def bounds(tasks: list[ClaimedTask]) -> tuple[float, float]:
    offset = estimate_offset(tasks, None)
    assert offset is not None
    return offset.least, offset.most


def test_offset_is_bounded_by_every_task_with_known_times() -> None:
    tasks = [claimed(110.0, sent_at=10.0, answered_at=12.0), claimed(120.0, sent_at=20.5, answered_at=20.6), claimed()]
    assert bounds(tasks) == pytest.approx((99.4, 100.5))


def test_contradicting_bounds_of_the_offset_are_all_possible() -> None:
    tasks = [claimed(10.0, sent_at=10.0, answered_at=10.1), claimed(25.0, sent_at=20.0, answered_at=20.1)]
    assert bounds(tasks) == pytest.approx((-0.1, 6.0))


def test_dates_of_the_answers_widen_an_offset_that_they_contradict() -> None:
    tasks = [claimed(10.0, sent_at=10.0, answered_at=10.1)]
    assert estimate_offset(tasks, ClockOffset(-3600.0, -3599.0)) == ClockOffset(-3600.0, 1.0)


def test_job_after_the_last_known_offset_is_left_undecided() -> None:
    for job, tasks in ((doubt(), [task("own", 1000.5)]), (doubt(processed=False), [])):
        verdict = decide_doubts([job], read(*tasks, offset_known_until=1000.9))["A"]
        assert isinstance(verdict, Undecided)


def test_offset_without_such_tasks_is_that_of_the_answers() -> None:
    assert estimate_offset([claimed()], ClockOffset(1.0, 2.0)) == ClockOffset(1.0, 2.0)
    assert estimate_offset([], None) is None


HOUR_S = 3600.0


@pytest.mark.parametrize("zone_s", [-5 * HOUR_S, 5.75 * HOUR_S, 8 * HOUR_S])
def test_task_of_another_zone_may_be_the_jobs_while_the_zone_is_unknown(zone_s: float) -> None:
    tasks, job = [task("own", 1000.5 + zone_s)], doubt(processed=False)
    unknown, known = (
        decide_doubts([job], read(*tasks, zone_known=zone_known, complete_since=-1e6))["A"]
        for zone_known in (False, True)
    )
    assert unknown == Undecided(("own",), may_change=False)
    assert known == NotBought()


def test_two_tasks_are_possible_if_one_is_of_another_zone() -> None:
    tasks = (task("a", 1000.5), task("b", 1000.7 + HOUR_S))
    assert decide_doubts([doubt()], read(*tasks, zone_known=False, read_at=5000.0)) == {
        "A": Undecided(("a", "b"), False)
    }


def test_newest_task_shows_that_the_zone_is_not_behind() -> None:
    tasks = (task("earlier", 1000.5 - HOUR_S), task("own", 1000.5))
    assert decide_doubts([doubt()], read(*tasks, zone_known=False, read_at=1060.0)) == {"A": FoundTask("own")}
    verdict = decide_doubts([doubt()], read(*tasks, zone_known=False, read_at=9000.0, complete_since=-1e6))["A"]
    assert verdict == Undecided(("earlier", "own"), may_change=False)


def test_reading_must_reach_back_by_the_zone_as_well() -> None:
    job = doubt(processed=False)
    for complete_since, verdict in ((-1e6, NotBought()), (0.0, Undecided((), may_change=False))):
        assert decide_doubts([job], read(zone_known=False, complete_since=complete_since)) == {"A": verdict}


EDIT = "nano-edit"


def test_names_of_a_model_are_known_by_price_class() -> None:
    edit = claimed(model=EDIT, requested_model="nano", price_class="edit")
    tasks = (task("a", 1000.5), task("b", 1000.6, model=EDIT), task("c", 1000.7, model="z-image"))
    for price_class, marks, left in (
        ("edit", KNOWN, ("a", "b", "c")),
        ("1K", (*KNOWN, edit), ("a",)),
        ("2K", (*KNOWN, edit), ("a", "b", "c")),
        ("edit", (*KNOWN, edit), ("a", "b")),
    ):
        job = doubt(price_class=price_class, processed=False)
        assert decide_doubts([job], read(*tasks, claimed=marks)) == {"A": Undecided(left, may_change=False)}


@pytest.mark.parametrize(("longest_s", "late_s"), [(None, 40.0), (0.1, 2.0), (3.0, 9.0), (60.0, 40.0)])
def test_lateness_follows_the_longest_answer(longest_s: float | None, late_s: float) -> None:
    assert estimate_lateness_s(longest_s, DELAY_S) == late_s


# The truth


@frozen
class Truth:
    """One job in doubt and what became of it, which only the gateway knows."""

    doubt: JobInDoubt
    created_at: float | None
    """When its task was created, by our clock; None if it never was."""


@st.composite
def truths(draw: st.DrawFn) -> list[Truth]:
    jobs = []
    for number in range(draw(st.integers(1, 5))):
        sent_at = 1000.0 + draw(st.floats(0.0, 12.0))
        lost_at = sent_at + draw(st.floats(0.01, 3.0))
        bought = draw(st.booleans())
        created_at = draw(st.floats(sent_at, lost_at + LATE_S)) if bought else None
        request = draw(st.sampled_from(["fox", "crow", f"prompt {number}"]))
        processed = bought and draw(st.booleans())
        jobs.append(Truth(doubt(f"job {number}", sent_at, lost_at, request=request, processed=processed), created_at))
    return jobs


@settings(max_examples=600)
@given(
    truths(),
    st.lists(st.floats(995.0, 1020.0), max_size=4),
    st.floats(-5.0, 5.0),
    st.floats(0.0, 1.0),
    st.booleans(),
    st.none() | st.integers(-20, 32),
)
@example(  # the end of the first one's time is met but for the rounding of floats
    [
        Truth(doubt("late", 1001.9542828283054, 1004.2782248536527), 1006.2782248536525),
        Truth(doubt("early", 1000.0, 1001.0), 1001.0),
    ],
    *([], 0.0, 0.0, False, 8),
)
def test_no_verdict_contradicts_the_truth(
    jobs: list[Truth], foreign: list[float], shift: float, slack: float, whole_seconds: bool, zone: int | None
) -> None:
    def dated(at: float) -> float:
        return (float(int(at + shift)) if whole_seconds else at + shift) + ZONE_STEP_S * (zone or 0)

    own = {f"of {job.doubt.key}": job for job in jobs if job.created_at is not None}
    tasks = [task(task_id, dated(job.created_at or 0.0)) for task_id, job in own.items()]
    tasks += [task(f"foreign {number}", dated(at)) for number, at in enumerate(foreign)]
    offset = ClockOffset(shift - slack, shift + slack)
    facts: dict[str, Any] = {"offset": offset, "zone_known": zone is None, "complete_since": -1e9}
    verdicts = decide_doubts([job.doubt for job in jobs], read(*tasks, **facts))
    given_tasks = [verdict.task_id for verdict in verdicts.values() if isinstance(verdict, FoundTask)]
    assert len(given_tasks) == len(set(given_tasks))
    for job in jobs:
        verdict = verdicts[job.doubt.key]
        if isinstance(verdict, FoundTask):
            assert verdict.task_id in own, "another client's task"
            assert own[verdict.task_id].doubt.request == job.doubt.request
            assert job.created_at is not None
        if isinstance(verdict, NotBought):
            assert job.created_at is None
        if isinstance(verdict, Undecided) and job.created_at is not None and f"of {job.doubt.key}" not in given_tasks:
            assert f"of {job.doubt.key}" in verdict.candidates


@given(truths())
def test_separate_processed_jobs_all_get_their_own_task(jobs: list[Truth]) -> None:
    apart = [
        evolve(job.doubt, sent_at=1000.0 + 20 * n, lost_at=1002.0 + 20 * n, processed=True)
        for n, job in enumerate(jobs)
    ]
    tasks = [task(f"of {each.key}", each.sent_at + 1.0) for each in apart]
    assert decide_doubts(apart, read(*tasks)) == {each.key: FoundTask(f"of {each.key}") for each in apart}
