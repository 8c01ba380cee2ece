"""The display of several jobs."""

import io
from datetime import UTC, datetime

import pytest
from rich.console import Console

from nanobanana_async import ApiMall, ImageRequest, JobState, RateLimited, TransportError
from nanobanana_async.cli.display import JobsDisplay, shorten
from nanobanana_async.events import BudgetUsedUp, GatewayUnreachable, JobStateChanged
from nanobanana_async.jobs import JobRecord


def state_changes(key: str, *states: JobState) -> list[JobStateChanged]:
    gateway = ApiMall(api_key="k")
    request = ImageRequest(f"a fox\n{key}")
    record = JobRecord(
        key=key,
        gateway="apimall",
        account=gateway.account,
        request=request,
        body=gateway.encode(request),
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
    )
    events = [JobStateChanged(before=None, record=record)]
    for state in states:
        before, record = record, record.transition_to(state, task_id=f"task-{key}")
        events.append(JobStateChanged(before=before.state, record=record))
    return events


S = JobState
ENDED = (S.SUBMITTING, S.RUNNING, S.SUCCEEDED)


def test_each_ended_job_is_a_line_in_a_pipe() -> None:
    output = io.StringIO()
    with JobsDisplay(2, Console(file=output, width=80)) as display:
        for event in [*state_changes("one", *ENDED), *state_changes("two", S.SUBMITTING, S.UNCERTAIN)]:
            display(event)
    assert output.getvalue() == "1/2 succeeded: a fox one\n"  # the error of the other one is printed in full
    assert display.done == 2


def test_the_live_display_shows_all_jobs() -> None:
    output = io.StringIO()
    with JobsDisplay(3, Console(file=output, width=80, force_terminal=True)) as display:
        for event in [
            *state_changes("one", *ENDED),
            *state_changes("two", S.SUBMITTING, S.RUNNING),
            *state_changes("three"),
        ]:
            display(event)
    assert "1 waiting, 1 running, 1 done" in output.getvalue()
    assert "succeeded:" not in output.getvalue()


def test_live_display_shows_how_much_is_done_and_how_long_it_takes() -> None:
    output = io.StringIO()
    with JobsDisplay(2, Console(file=output, width=80, force_terminal=True)) as display:
        for event in [*state_changes("one", *ENDED), *state_changes("two", S.SUBMITTING, S.RUNNING)]:
            display(event)
        display.running_progress, display.left_s = 0.5, 12.0
    assert "1/2, 75 %" in output.getvalue()
    assert "1 running, 1 done, about 12 s left" in output.getvalue()


def test_time_left_is_not_shown_while_jobs_wait_to_be_sent() -> None:
    output = io.StringIO()
    with JobsDisplay(2, Console(file=output, width=80, force_terminal=True)) as display:
        for event in state_changes("one", S.SUBMITTING, S.RUNNING):
            display(event)
        display.running_progress, display.left_s = 0.9, 12.0
    assert "0/2, 45 %" in output.getvalue()
    assert "left" not in output.getvalue()


def test_jobs_that_are_bought_and_run_are_counted() -> None:
    display = JobsDisplay(4, Console(file=io.StringIO()))
    for event in [
        *state_changes("one", *ENDED),
        *state_changes("two", S.SUBMITTING, S.RUNNING),
        *state_changes("three", S.SUBMITTING),
        *state_changes("four", S.SUBMITTING, S.RUNNING, S.FAILED),
    ]:
        display(event)
    assert display.count_unended_purchases() == 2


@pytest.mark.parametrize("total", [1, 2])
def test_unreachable_gateway_is_one_line(total: int) -> None:
    output = io.StringIO()
    error = TransportError("can't reach gateway.example: Connection\nrefused", possibly_sent=False)
    with JobsDisplay(total, Console(file=output, width=80)) as display:
        display(GatewayUnreachable(record=state_changes("one")[0].record, error=error, for_s=5.8))
    assert output.getvalue() == (
        "nanobanana: can't reach gateway.example: Connection refused; check the address (--base-url,"
        " NANOBANANA_BASE_URL); trying again (for 6 s so far)\n"
    )


def test_used_up_budget_is_one_line() -> None:
    output = io.StringIO()
    with JobsDisplay(1, Console(file=output, width=80)) as display:
        until = datetime(2026, 1, 2, tzinfo=UTC)
        display(BudgetUsedUp(record=state_changes("one")[0].record, error=RateLimited("no more"), until=until))
    assert output.getvalue() == (
        "nanobanana: the account's daily budget of requests is used up; goes on at 2 Jan 2026, 00:00 UTC\n"
    )


@pytest.mark.parametrize(("prompt", "short"), [("a  fox\n", "a fox"), ("x" * 61, "x" * 57 + "...")])
def test_shorten_returns_one_short_line(prompt: str, short: str) -> None:
    assert shorten(prompt) == short


def test_shorten_escapes_control_characters() -> None:
    assert shorten("a fox\x1b[2J\x07 in\u202e fog") == "a fox\\x1b[2J\\x07 in\\u202e fog"
