"""The progress display, read from events."""

import io
from datetime import UTC, datetime

import pytest
from rich.console import Console

from nanobanana_async import ApiMall, ImageRequest, JobState
from nanobanana_async.cli.display import JobsDisplay, shorten
from nanobanana_async.events import JobStateChanged
from nanobanana_async.jobs import JobRecord


def moves(key: str, *states: JobState) -> list[JobStateChanged]:
    gateway = ApiMall(api_key="k")
    wish = ImageRequest(f"a fox\n{key}")
    record = JobRecord(
        key=key,
        gateway="apimall",
        account=gateway.account,
        request=wish,
        body=gateway.encode(wish),
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
    )
    events = [JobStateChanged(before=None, record=record)]
    for state in states:
        before, record = record, record.transition_to(state, task_id=f"task-{key}")
        events.append(JobStateChanged(before=before.state, record=record))
    return events


S = JobState
ENDED = (S.SUBMITTING, S.RUNNING, S.SUCCEEDED)


def test_without_a_terminal_each_end_is_one_line() -> None:
    page = io.StringIO()
    with JobsDisplay(2, Console(file=page, width=80)) as board:
        for event in [*moves("one", *ENDED), *moves("two", S.SUBMITTING, S.UNCERTAIN)]:
            board(event)
    assert page.getvalue() == "1/2 succeeded: a fox one\n2/2 uncertain: a fox two\n"
    assert board.done == 2


def test_on_a_terminal_the_picture_tells_all_jobs_at_once() -> None:
    page = io.StringIO()
    with JobsDisplay(3, Console(file=page, width=80, force_terminal=True)) as board:
        for event in [*moves("one", *ENDED), *moves("two", S.SUBMITTING, S.RUNNING), *moves("three")]:
            board(event)
    assert "1 waiting, 0 being sent, 1 running, 1 done" in page.getvalue()
    assert "succeeded:" not in page.getvalue()


def test_what_is_paid_for_and_runs_can_be_named() -> None:
    board = JobsDisplay(2, Console(file=io.StringIO()))
    for event in [*moves("one", *ENDED), *moves("two", S.SUBMITTING, S.RUNNING)]:
        board(event)
    assert board.running_task_ids == ["task-two"]


@pytest.mark.parametrize(("prompt", "short"), [("a  fox\n", "a fox"), ("x" * 61, "x" * 57 + "...")])
def test_a_prompt_is_shown_on_one_short_line(prompt: str, short: str) -> None:
    assert shorten(prompt) == short


def test_what_a_terminal_would_obey_is_spelt_out() -> None:
    assert shorten("a fox\x1b[2J\x07 in\u202e fog") == "a fox\\x1b[2J\\x07 in\\u202e fog"
