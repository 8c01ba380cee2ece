"""Build the result of a row from its ledger record and its outcome in this run."""

import asyncio
from collections.abc import Collection, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anyio.to_thread
from attrs import evolve

from nanobanana_async import ConfigurationError, Gateway, IdempotencyConflict, Outcome
from nanobanana_async.batch.rows import RowInput
from nanobanana_async.cli.batch.input_file import FileRow
from nanobanana_async.cli.batch.results import Result, Results, with_files
from nanobanana_async.cli.options import in_cli_words
from nanobanana_async.errors import NanoBananaError
from nanobanana_async.failures import to_failure_kinds
from nanobanana_async.jobs import JobRecord, JobState, has_failed_with
from nanobanana_async.models import REQUEST_FIELDS, ImageRequest, Reference, same_request, with_model
from nanobanana_async.references import LocalImage, image_identity
from nanobanana_async.report import ReportRow, Status
from nanobanana_async.report.row import json_value

_STATUSES: dict[JobState, Status] = {
    JobState.SUCCEEDED: "succeeded",
    JobState.FAILED: "failed",
    JobState.REFUSED: "refused",
    JobState.UNCERTAIN: "uncertain",
}

# Refusals caused by the row itself: the same row would be refused again. Others were temporary.
_PERMANENT_REFUSALS = frozenset({"InvalidRequest", "PromptBlocked", "IdempotencyConflict"})

YIELD_EVERY = 200  # rows skipped before other tasks get a turn


class PendingRows:
    """The rows without a result, as an async iterable for `generate_many`."""

    def __init__(self, rows: Iterator[FileRow], results: Results) -> None:
        self._rows = rows
        self._results = results

    def __aiter__(self) -> "PendingRows":
        return self

    async def __anext__(self) -> RowInput:
        for number, row in enumerate(self._rows, 1):
            if row.error is not None:
                raise ConfigurationError(f"row {row.number}: {row.error}")
            if row.key not in self._results:
                return row.batch_input
            if number % YIELD_EVERY == 0:
                await asyncio.sleep(0)
        raise StopAsyncIteration

    def close(self) -> None:
        """Close the file."""
        close = getattr(self._rows, "close", None)
        if close is not None:
            close()


def is_record_of_row(row: FileRow, record: JobRecord, gateway: Gateway) -> bool:
    """Return True if the record is of this row: its key may have been used for another request or model."""
    if row.request is None or record.request is None:
        return False
    return same_request(with_model(row.request, gateway.model), record.request)


def fields_changed_since(old: ReportRow, row: FileRow) -> Iterator[tuple[str, Any, Any]]:
    """Yield the name of each field in which a row differs from an old result, with what was bought and what is wanted.

    The model is left out: the result has the one that was used, which is not always the name that was asked for.
    """
    request = row.request
    if request is None:
        return
    was = {"prompt": old.prompt, **old.settings}
    now = {"prompt": request.prompt, **json_value(_settings(row, None))}
    for name in [name for name in REQUEST_FIELDS if name not in ("callback_url", "model")]:
        before, wanted = was.get(name), now.get(name)
        if name == "images":
            before = tuple(image_identity(_registered(str(image))) for image in before or ())
            wanted = tuple(map(image_identity, request.images))
        if before != wanted:
            yield name, before, wanted


def _registered(shown: str) -> Reference:
    """Return a reference image that the results show: the inverse of `_image`."""
    return shown.rpartition(" (")[2].removesuffix(")") if shown.endswith(")") else shown


def is_not_bought_again(record: JobRecord, *, retry_failed: bool) -> bool:
    """Return True if a row without images is not bought again."""
    match record.state:
        case JobState.UNCERTAIN:
            return True
        case JobState.FAILED:
            return not has_failed_with(record, to_failure_kinds(retry_failed))
        case JobState.REFUSED:
            return not retry_failed and record.failure is not None and record.failure.kind in _PERMANENT_REFUSALS
        case _:
            return False


def result_from_record(row: FileRow, record: JobRecord, gateway: Gateway) -> Result:
    """Return the result of a row from its record."""
    error_kind, error = _error(record)
    sent = record.first_sent_at is not None or record.running_since is not None
    report = evolve(
        unfinished(row),
        status=_STATUSES.get(record.state, "unfinished"),
        settings=_settings(row, record.model),
        credits=record.credits,
        missing=tuple(f"image {index + 1}: {why}" for index, why in record.missing),
        task_id=record.task_id,
        account=record.account,
        error=error,
        error_kind=error_kind,
        failure_kind=record.failure.failure_kind if record.state is JobState.FAILED and record.failure else None,
        created_at=_utc(record.created_at),
        sent_at=_utc(record.may_run_since) if sent else None,
        ended_at=_utc(record.ended_at),
        slots=1 if row.request is None else gateway.slots_for(row.request),
    )
    return Result(row=report)


def result_from_outcome(
    row: FileRow, outcome: Outcome, record: JobRecord | None, gateway: Gateway, ours: Collection[str] = ()
) -> Result:
    """Return the result of a row that has just ended; `ours` are the accounts of the run, if there are several."""
    if record is None or not is_record_of_row(row, record, gateway):
        result = Result(row=unfinished(row))
    else:
        result = result_from_record(row, record, gateway)
    error = outcome.error
    if error is None:
        return result
    if isinstance(error, IdempotencyConflict) and error.status is None:  # raised by the library: the row was never sent
        other_account = record is not None and record.account not in {gateway.account, *ours}
        return with_error(result, error, "unfinished" if other_account else "invalid")
    if outcome.result is not None or result.row.error is None:  # bought but not saved, or still running
        return with_error(result, error, "unfinished" if record is not None else "invalid")
    return result


def unfinished(row: FileRow) -> ReportRow:
    """Return a row without a result."""
    prompt = "" if row.request is None else row.request.prompt
    settings = _settings(row, None)
    return ReportRow(
        index=row.index,
        number=row.number,
        job_key=row.key,
        key=row.own_key,
        status="unfinished",
        prompt=prompt,
        settings=settings,
        metadata=row.metadata,
    )


async def result_with_files(
    row: FileRow,
    outcome: Outcome,
    record: JobRecord | None,
    gateway: Gateway,
    folder: Path,
    ours: Collection[str] = (),
) -> Result:
    """Return the result of a row that has just ended, with its saved files as they are in the folder."""
    result = result_from_outcome(row, outcome, record, gateway, ours)
    if not outcome.saved:
        return result
    try:
        return await anyio.to_thread.run_sync(with_files, result, outcome.saved, folder, datetime.now(UTC))
    except OSError as error:  # another program moved or removed an image
        report = evolve(result.row, status="unfinished", error=str(error), error_kind=type(error).__name__)
        return evolve(result, row=report)


def at_new_position(result: Result, row: FileRow) -> Result:
    """Return a result with the current position of its row, which moves when lines are inserted before it."""
    report = evolve(result.row, index=row.index, number=row.number, key=row.own_key, metadata=row.metadata)
    if report.changed:  # perhaps it is no longer
        report = evolve(report, changed=(), error=None)
    return evolve(result, row=report)


def with_error(result: Result, error: NanoBananaError, status: Status) -> Result:
    """Return a result with an error."""
    # Of a conflict only the message: its advice is for callers who choose the keys of jobs.
    text = in_cli_words(error.message if isinstance(error, IdempotencyConflict) else error)
    return evolve(result, row=evolve(result.row, status=status, error=text, error_kind=type(error).__name__))


def _error(record: JobRecord) -> tuple[str | None, str | None]:
    failure = record.failure
    message = "the gateway gave no reason" if failure is None else in_cli_words(failure.message)
    match record.state:
        case JobState.FAILED:
            return "JobFailed", message
        case JobState.REFUSED:
            return "GatewayError" if failure is None else failure.kind, message
        case JobState.UNCERTAIN:
            suffix = "" if failure is None else f": {message}"
            return "JobUncertain", f"the job may have been bought{suffix}"
        case _:
            return None, None


def _settings(row: FileRow, model: str | None) -> dict[str, Any]:
    """Return the given fields of a request except the prompt, and the model that was used."""
    request = row.request
    if request is None:
        return {}
    default = ImageRequest(request.prompt)
    names = [name for name in REQUEST_FIELDS if name not in ("prompt", "callback_url")]
    given = {name: getattr(request, name) for name in names if getattr(request, name) != getattr(default, name)}
    if request.images and row.given is not None:
        given["images"] = tuple(map(_image, row.given.images, request.images))
    return given if model is None else {**given, "model": model}


def _image(given: Reference, registered: Reference) -> str:
    """Return a reference image as the results show it: a file by its name and digest."""
    name = given.name if isinstance(given, LocalImage) else ""
    return f"{name} ({registered})" if name else str(registered)


def _utc(when: datetime | None) -> datetime | None:
    return None if when is None else when.astimezone(UTC)
