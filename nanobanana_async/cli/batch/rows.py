"""What is written about a row: made of what the ledger knows, and of how this run ended it."""

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from attrs import evolve

from nanobanana_async import ConfigurationError, Gateway, IdempotencyConflict, Outcome
from nanobanana_async.batch.rows import RowInput
from nanobanana_async.cli.batch.input_file import FIELDS, FileRow
from nanobanana_async.cli.batch.results import Result, Results
from nanobanana_async.errors import NanoBananaError
from nanobanana_async.jobs import JobRecord, JobState
from nanobanana_async.models import ImageRequest, same_request, with_model
from nanobanana_async.report import ReportRow, Status

_STATUSES: dict[JobState, Status] = {
    JobState.SUCCEEDED: "succeeded",
    JobState.FAILED: "failed",
    JobState.REFUSED: "refused",
    JobState.UNCERTAIN: "uncertain",
}

# Refusals that speak of the row: sent again as it is it would hear the same. Others spoke of that moment.
_OF_THE_ROW = frozenset({"InvalidRequest", "PromptBlocked", "IdempotencyConflict"})

YIELD_EVERY = 200  # rows that are passed over before others get their turn


class PendingRows:
    """The rows that are not in the results, as a batch takes them."""

    def __init__(self, rows: Iterator[FileRow], results: Results) -> None:
        self._rows = rows
        self._results = results

    def __aiter__(self) -> "PendingRows":
        return self

    async def __anext__(self) -> RowInput:
        for number, row in enumerate(self._rows, 1):
            if row.error is not None:
                raise ConfigurationError(f"line {row.line}: {row.error} (the file has changed meanwhile)")
            if row.key not in self._results:
                return row.item
            if number % YIELD_EVERY == 0:
                await asyncio.sleep(0)
        raise StopAsyncIteration

    def close(self) -> None:
        """Close the file."""
        close = getattr(self._rows, "close", None)
        if close is not None:
            close()


def is_same(row: FileRow, record: JobRecord, gateway: Gateway) -> bool:
    """Tell whether the ledger speaks of this very row: its key may have stood for another row or model before."""
    if row.request is None or record.request is None:
        return False
    return same_request(with_model(row.request, gateway.model), record.request)


def is_over(record: JobRecord, *, retry_failed: bool) -> bool:
    """Tell whether a row that brought no pictures is left as it is."""
    match record.state:
        case JobState.UNCERTAIN:
            return True
        case JobState.FAILED:
            return not retry_failed
        case JobState.REFUSED:
            return not retry_failed and record.failure is not None and record.failure.kind in _OF_THE_ROW
        case _:
            return False


def result_from_record(row: FileRow, record: JobRecord, gateway: Gateway) -> Result:
    """Return the line of a row by what the ledger knows of its job."""
    kind, why = _reason(record)
    sent = record.first_sent_at is not None or record.running_since is not None
    report = evolve(
        unfinished(row),
        status=_STATUSES.get(record.state, "unfinished"),
        settings=_settings(row.request, record.model),
        credits=record.credits,
        task_id=record.task_id,
        error=why,
        error_kind=kind,
        created_at=_utc(record.created_at),
        sent_at=_utc(record.may_run_since) if sent else None,
        ended_at=_utc(record.ended_at),
        slots=1 if row.request is None else gateway.slots_for(row.request),
    )
    return Result(row=report, line=row.line, row_key=row.own_key)


def result_from_outcome(row: FileRow, outcome: Outcome, record: JobRecord | None, gateway: Gateway) -> Result:
    """Return the line of a row that has just ended."""
    if record is None or not is_same(row, record, gateway):
        result = Result(row=unfinished(row), line=row.line, row_key=row.own_key)
    else:
        result = result_from_record(row, record, gateway)
    error = outcome.error
    if error is None:
        return result
    if isinstance(error, IdempotencyConflict) and error.status is None:  # found here: the row was never sent
        return _with(result, error, "invalid")
    if outcome.result is not None or result.row.error is None:  # bought, and its pictures not saved; or still running
        return _with(result, error, "unfinished" if record is not None else "invalid")
    return result


def unfinished(row: FileRow) -> ReportRow:
    """Return a row of which nothing is known yet."""
    prompt = "" if row.request is None else row.request.prompt
    settings = _settings(row.request, None)
    return ReportRow(
        index=row.index, key=row.key, status="unfinished", prompt=prompt, settings=settings, metadata=row.metadata
    )


def at_new_position(result: Result, row: FileRow) -> Result:
    """Return a line for the row where it now stands: lines may have been put in before it."""
    report = evolve(result.row, index=row.index, metadata=row.metadata)
    return evolve(result, row=report, line=row.line, row_key=row.own_key)


def _with(result: Result, error: NanoBananaError, status: Status) -> Result:
    return evolve(result, row=evolve(result.row, status=status, error=str(error), error_kind=type(error).__name__))


def _reason(record: JobRecord) -> tuple[str | None, str | None]:
    why = record.failure
    said = "the gateway did not say why" if why is None else why.message
    match record.state:
        case JobState.FAILED:
            return "JobFailed", said
        case JobState.REFUSED:
            return "GatewayError" if why is None else why.kind, said
        case JobState.UNCERTAIN:
            return "JobUncertain", "it may have been bought" if why is None else f"it may have been bought: {said}"
        case _:
            return None, None


def _settings(request: ImageRequest | None, model: str | None) -> dict[str, Any]:
    """Return what was given beside the prompt, and the model that answered."""
    if request is None:
        return {}
    default = ImageRequest(request.prompt)
    given = {name: getattr(request, name) for name in FIELDS[1:] if getattr(request, name) != getattr(default, name)}
    return given if model is None else {**given, "model": model}


def _utc(when: datetime | None) -> datetime | None:
    return None if when is None else when.astimezone(UTC)
