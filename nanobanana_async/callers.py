"""What the calls that buy have in common: their fields, and the wait for a job as one of its callers.

A job whose last caller leaves before it was sent is withdrawn.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any

from nanobanana_async.engine.engine import Engine
from nanobanana_async.engine.phases import Phase
from nanobanana_async.engine.tracked_job import TrackedJob
from nanobanana_async.errors import ConfigurationError, JobUnfinished, NanoBananaError
from nanobanana_async.handle import Job, in_parentheses, timeout_error
from nanobanana_async.jobs import JobState
from nanobanana_async.misspelt import keywords_of, unknown_fields
from nanobanana_async.models import REQUEST_FIELDS, GenerationResult

WITHDRAWAL_WAIT_S = 1.0
"""How long `generate` waits after its timeout until the ledger has stored that the job is withdrawn."""


async def result_for_caller(engine: Engine, tracked: TrackedJob, timeout: float | None) -> GenerationResult:
    """Wait for a job's result as one of its callers. When the last caller leaves, an unsent job is withdrawn.

    Raises `JobUnfinished` on timeout; its message and `safe_to_repeat` say whether the job was withdrawn.
    """
    job = Job(engine, tracked)
    engine.add_caller(tracked)
    try:
        try:
            if timeout == 0 and not tracked.done:  # leave before the job can be sent
                raise timeout_error(job, tracked, timeout)
            return await job.result(timeout=timeout)
        finally:
            engine.drop_caller(tracked)
    except JobUnfinished:
        if timeout is None or not tracked.is_being_withdrawn:
            raise
    return await _wait_for_withdrawal(engine, tracked, timeout)


async def _wait_for_withdrawal(engine: Engine, tracked: TrackedJob, timeout: float) -> GenerationResult:
    """Wait until a withdrawal is decided, and raise how it ended; return the result of a job that had ended before."""
    job = Job(engine, tracked)
    with suppress(TimeoutError):
        async with asyncio.timeout(WITHDRAWAL_WAIT_S):
            while tracked.is_being_withdrawn and tracked.is_followed:
                await tracked.wait_for_change()
    if tracked.phase is Phase.CLAIMING:
        message = f"job {job.key} was not stored within {timeout:g} s: it is withdrawn, unless it was sent before"
        raise JobUnfinished(f"{message}; `session.job` finds it", job=job, safe_to_repeat=False)
    if tracked.is_being_withdrawn or job.state is JobState.WITHDRAWN:
        why = job.last_failure()
        message = f"job {job.key} was not sent within {timeout:g} s{in_parentheses(why)} and was withdrawn"
        raise JobUnfinished(f"{message}: nothing was bought", job=job, safe_to_repeat=True) from why
    outcome = job.outcome()
    if outcome is None:
        raise timeout_error(job, tracked, timeout)
    if isinstance(outcome, NanoBananaError):
        raise outcome
    return outcome


async def handle_once_stored(engine: Engine, tracked: TrackedJob) -> Job:
    """Return the handle of a job once the ledger has stored it. From then on the job outlives its callers."""
    job = Job(engine, tracked)
    engine.add_caller(tracked)
    try:
        await job.wait_until_stored()
        engine.keep_for_handle(tracked)
    finally:
        engine.drop_caller(tracked)
    return job


_OPTIONS = ("idempotency_key", "timeout", "budget", "priority", "group")
_KEYWORDS = tuple(name for name in REQUEST_FIELDS if name != "prompt")
_DEFAULTS: Mapping[str, object] = {"images": (), "num_images": 1}


def given_fields(**fields: Any) -> dict[str, Any]:
    """Return the fields that are not at their defaults; raise `ConfigurationError` for a name that is no field."""
    if unknown := [name for name in fields if name not in _KEYWORDS]:
        raise ConfigurationError(unknown_fields(unknown, (*_KEYWORDS, *_OPTIONS)))
    return {name: value for name, value in fields.items() if value is not _DEFAULTS.get(name)}


def check_names(call: Callable[..., object], misspelt: Iterable[str]) -> None:
    """Raise `ConfigurationError` for arguments that a call does not have, which says what is meant by them."""
    names = list(misspelt)
    if found := [name for name in names if name in _KEYWORDS]:
        example = f"{{'prompt': 'a fox', '{found[0]}': ...}}"
        raise ConfigurationError(f"{call.__name__}: {', '.join(found)} is a field of each request, as in {example}")
    if names:
        raise ConfigurationError(f"{call.__name__}: {unknown_fields(names, keywords_of(call), 'argument')}")
