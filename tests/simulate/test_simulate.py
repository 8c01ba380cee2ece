"""The simulation in short, and the mutation control.

The long forms are `python -m tests.simulate --seeds 1000` and `python -m tests.simulate --mutations`.
"""

import functools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from nanobanana_async.engine import routing
from nanobanana_async.engine.route import Rest, Route
from nanobanana_async.engine.routing import Router
from nanobanana_async.policy.retry import RetryAction, RetryDecision
from tests.simulate import __main__ as command
from tests.simulate.mutations import MUTATIONS, SeedMutation
from tests.simulate.plan import SCENES, plan_of
from tests.simulate.seed import Report, play
from tests.support.mutations import patched

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quiet_log")]

SEEDS = 20
COMPARED = 4
HASHED = 3
WITH_TWO_ACCOUNTS = range(100, 106)
FORGETFUL = 9
"""A seed in which the gateway forgets a key too soon and charges twice."""
ROOT = Path(os.path.abspath(__file__)).parents[2]


@functools.cache
def report_of(seed: int) -> Report:
    """Play a seed once for all tests."""
    return play(seed)


def test_twenty_seeds_break_no_promise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "play", lambda seed, *, accounts: report_of(seed))
    said: list[str] = []
    broken = command.run(range(SEEDS), said.append)
    assert not broken, "\n".join(said)


def test_same_seed_gives_the_same_trace() -> None:
    traces = [(report_of(seed).trace, play(seed).trace) for seed in range(COMPARED)]
    assert all(first == second for first, second in traces)
    assert len({trace for trace, _ in traces}) == COMPARED


def test_trace_does_not_depend_on_hash_seed() -> None:
    code = f"from tests.simulate.seed import play\nfor seed in range({HASHED}): print(play(seed).digest)"
    other = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONHASHSEED": "7"},
        cwd=ROOT,
        check=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert other.stdout.decode().split() == [report_of(seed).digest for seed in range(HASHED)]


def test_seeds_cover_every_scene_and_fault() -> None:
    plans = [plan_of(seed) for seed in range(SEEDS)]
    assert {plan.scene for plan in plans} == set(SCENES)
    assert any(plan.moves_clock for plan in plans)
    assert any(plan.fills_disk for plan in plans)
    assert any(plan.outages for plan in plans)
    reports = [report_of(seed) for seed in range(SEEDS)]
    for met in ("kills", "in doubt", "repeats", "resolved", "by hand", "succeeded", "failed", "uncertain", "refused"):
        assert any(report.counts[met] for report in reports), met


def test_table_counts_double_charges_of_a_forgetful_gateway() -> None:
    report = report_of(FORGETFUL)
    assert report.scene == "apimall short"
    assert report.counts["doubles"] > 0
    assert not any(violation.rule == "double" for violation in report.violations)


@pytest.mark.parametrize("number", range(len(MUTATIONS)), ids=[mutation.name for mutation in MUTATIONS])
def test_a_deliberate_bug_is_caught(number: int) -> None:
    said: list[str] = []
    mutation = MUTATIONS[number]
    assert command.check(number, mutation, said.append, first=mutation.seed, play_without=report_of), said


def test_harmless_mutation_is_reported_as_not_caught() -> None:
    said: list[str] = []
    assert not command.check(0, SeedMutation("no bug", list, ("double",), within=3), said.append)
    assert said == [" 0 no bug: NOT CAUGHT within 3 seeds"]


def test_broken_seed_prints_its_replay_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--seed", "0", "--verbose", "--mutation", "0"]) == 1
    said = capsys.readouterr().out
    assert "replay: python -m tests.simulate --seed 0 --verbose" in said
    assert "ORACLE   unwritten" in said


def test_seeds_with_two_accounts_break_no_promise() -> None:
    reports = [play(seed, accounts=True) for seed in WITH_TWO_ACCOUNTS]
    assert not [violation for report in reports for violation in report.violations]
    assert sum(report.counts["moved"] for report in reports) > 0
    assert sum(report.counts["kills"] for report in reports) > 0


def test_move_of_a_job_in_doubt_is_caught() -> None:
    def take_for_a_refusal(
        self: Router, engine: Any, job: Any, error: Any, decision: RetryDecision, sent_before: bool
    ) -> tuple[RetryDecision, Any]:
        del sent_before
        job.route = job.route or Route()
        if not decision.in_doubt:
            return decision, error
        engine.rest = Rest(engine.clock() + 60.0, error)
        return evolve(decision, action=RetryAction.REQUEUE, in_doubt=False), error

    def may_always_move(job: Any) -> bool:
        return job.may_buy and job.record.task_id is None and job.record.request is not None

    lost_is_refused = (Router, "after_failed_create", take_for_a_refusal)
    found: set[str] = set()
    for seed in range(103, 108):
        with patched([lost_is_refused, (routing, "may_move", may_always_move)]):
            found |= {violation.rule for violation in play(seed, accounts=True).violations}
    assert found & {"double", "repeated without a key"}
