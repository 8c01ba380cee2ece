"""What the demo prints while it runs, on a terminal of 80 columns that has neither colours nor UTF-8."""

import io
from decimal import Decimal
from types import SimpleNamespace
from typing import Any, cast

import pytest
from attrs import evolve
from rich.console import Console

from nanobanana_async import JobState
from nanobanana_async.cli.demo_display import DemoDisplay
from nanobanana_async.emulator import Emulator
from nanobanana_async.errors import TransportError
from nanobanana_async.events import CreateFailed, JobStateChanged
from tests.cli.test_batch_display import STATS
from tests.support.ledger_contract import job
from tests.support.reports import limits_changed


def plain_console(output: io.BytesIO) -> Console:
    return Console(
        file=io.TextIOWrapper(output, encoding="ascii", write_through=True),
        width=80,
        force_terminal=True,
        color_system=None,
    )


async def test_events_and_board_fit_an_ascii_terminal_of_80_columns() -> None:
    output = io.BytesIO()
    async with Emulator() as emulator:
        display = DemoDisplay(24, emulator, plain_console(output))
        lost = TransportError("the connection broke", possibly_sent=True)
        running = evolve(job(), state=JobState.RUNNING)
        for _ in range(2):  # each event is worth one line only
            display(limits_changed(6, 1))
            display(CreateFailed(record=job(), error=lost, action="repeat", wait_s=0.4, in_doubt=True))
            display(JobStateChanged(before=JobState.SUBMITTING, record=running))
        stats = evolve(STATS, job_limit=6, slots_held=5, credits_spent=Decimal(96), credits_remaining=Decimal(1104))
        display.console.print(display._render_board(stats))
        display.print_summary(stats, [0.1, 0.2, 0.4])
    printed = output.getvalue().decode("ascii")
    assert all(len(line.rstrip()) <= 80 for line in printed.splitlines())
    text = " ".join(printed.split())
    for sentence in (
        "The gateway refuses more than 6 jobs at once (429, no charge): the limit is learned",
        "It is sent again under the same key, so that it can't be bought twice.",
        "The gateway knows the key: the job is found again and was paid for once.",
        "running 5 of 6, the learned limit",
        "credits 96 spent, 1,104 left",
        "time left about 2 min",
        "ends seen at most 0.2 s after a job's end (median)",
    ):
        assert text.count(sentence) == 1, text


@pytest.mark.parametrize(
    ("delay_s", "said"),
    [
        (1.0, "10 (a fixed interval with the same mean delay would have made 26)"),
        (5.0, "10"),  # a fixed interval would have made 6
        (0.0, "10"),
    ],
)
def test_polls_are_compared_with_a_fixed_interval_of_the_same_delay(delay_s: float, said: str) -> None:
    jobs = [SimpleNamespace(polls=5, created_at=10.0, ends_at=35.0, first_seen_done_at=36.0) for _ in range(2)]
    running = SimpleNamespace(polls=3, created_at=10.0, ends_at=90.0, first_seen_done_at=None)
    seen: Any = SimpleNamespace(
        jobs=lambda: [*jobs, running], stats=lambda: SimpleNamespace(notice_delay_mean_s=delay_s)
    )
    assert DemoDisplay.describe_polls(cast(Emulator, seen)) == said
