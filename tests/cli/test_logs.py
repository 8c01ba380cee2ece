"""What the library logs is shown as plain sentences, once each, or not at all."""

import logging
from decimal import Decimal

import pytest

from nanobanana_async.cli.logs import plain_logs
from nanobanana_async.events import JobStateChanged, PriceAboveEstimate, UnknownStatus, log, log_event, log_failure
from nanobanana_async.jobs import JobState
from tests.cli.batches import Command, emulated
from tests.support.command import Said
from tests.support.ledger_contract import job


def test_events_that_a_command_reports_itself_are_not_shown(capsys: pytest.CaptureFixture[str]) -> None:
    uncertain = job(state=JobState.UNCERTAIN)
    with plain_logs():
        log_event(JobStateChanged(before=JobState.SUBMITTING, record=uncertain))
        log_event(PriceAboveEstimate(record=uncertain, estimate=Decimal(1)))
        log.warning("gateway.unreachable error=x", extra={"event": "gateway.unreachable"})
    assert capsys.readouterr().err == ""


def test_other_records_are_one_plain_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    with plain_logs():
        log.warning("learned.unreadable account=%s error=%s", "a", "ValueError")
        for _ in range(3):
            log.warning("ledger.failed job=%s error=%s", "k", "the disk is full\nnow\x1b[2J")
        log.warning("ledger.away %s: calls wait", "the server can't be reached")
        log_event(UnknownStatus(record=job(), status="moody"))
        log_failure("observer.failed", ValueError("no"), observer="x")
        log.info("create.failed job=k")
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "nanobanana: what earlier runs learned about the account can't be read: this run starts without it",
        "nanobanana: the ledger failed: the disk is full now\\x1b[2J",
        "nanobanana: the server can't be reached: calls wait",
        "nanobanana: the gateway reports an unknown status, 'moody': such jobs are polled until they end",
        "nanobanana: a bug, which ended no job: ValueError: no (observer.failed)",
    ]


def test_records_are_logged_as_before_after_the_command(caplog: pytest.LogCaptureFixture) -> None:
    with plain_logs():
        log.warning("ledger.failed error=%s", "x")
    assert [record.message for record in caplog.records] == ["ledger.failed error=x"]
    assert not [handler for handler in log.handlers if type(handler).__module__ == plain_logs.__module__]
    assert log.level == logging.NOTSET


async def test_no_record_appears_between_the_lines_of_a_batch(batch: Command) -> None:
    async with emulated(batch):
        said = await batch(batch.prompts(2), "--max-credits", "100", "--expected-credits", "1")
    assert said.code == 0
    assert "job=" not in said.err
    assert "price.above_estimate" not in said.err


@pytest.mark.parametrize("rows", [2, 3])
async def test_each_row_is_printed_once_in_a_pipe(batch: Command, rows: int) -> None:
    async with emulated(batch):
        said: Said = await batch(batch.prompts(rows))
    assert len(said.out.splitlines()) == rows
    assert [line for line in said.err.splitlines() if "a fox" in line] == []
    assert f"{rows} rows: {rows} succeeded; {8 * rows} credits spent" in said.err
