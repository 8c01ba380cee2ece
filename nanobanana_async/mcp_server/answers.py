"""What the tools answer: paths, prices and small previews; or an error, with what to do about it."""

import base64
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import anyio.to_thread
from mcp_types import ContentBlock, ImageContent, TextContent

from nanobanana_async import (
    CreditLimitReached,
    IdempotencyConflict,
    InvalidRequest,
    JobFailed,
    JobState,
    JobUncertain,
    NanoBananaError,
    PromptBlocked,
)
from nanobanana_async.commands import resolve_advice
from nanobanana_async.escaping import escape_exactly, one_line
from nanobanana_async.formatting import credit_count, duration, moment, number
from nanobanana_async.images.thumbnail import file_thumbnail
from nanobanana_async.jobs import JobRecord
from nanobanana_async.mcp_server.service import Purchase, Service

PREVIEW_PIXELS = 512
MAX_PREVIEW_BYTES = 512 << 10
"""The most bytes of all previews in an answer: a model reads them, and its context has an end."""
_MOST_PROMPT_CHARACTERS = 100

_STATES = {
    JobState.PENDING: "waits to be sent",
    JobState.SUBMITTING: "is being sent",
    JobState.RUNNING: "is running",
}


async def images_answer(service: Service, purchase: Purchase) -> list[ContentBlock]:
    """Return the price, the paths of the files and previews of a purchase that ended well."""
    result = purchase.result
    cost = "price not stated" if result is None or result.credits is None else credit_count(result.credits)
    lines = [f"{purchase.request_id}: done, {cost}; {await spending_line(service)}"]
    lines += [escape_exactly(str(path)) for path in purchase.saved]
    if result is not None:
        lines += [one_line(f"image {index + 1} is missing: {reason}") for index, reason in result.missing.items()]
    files = [path for path in purchase.saved if isinstance(path, Path)]
    previews = await anyio.to_thread.run_sync(_previews, files)
    return [TextContent(text="\n".join(lines)), *previews]


def _previews(files: Sequence[Path]) -> list[ContentBlock]:
    previews: list[ContentBlock] = []
    left = MAX_PREVIEW_BYTES
    for file in files:
        small = file_thumbnail(file, PREVIEW_PIXELS)
        if small is not None and len(small) <= left:
            left -= len(small)
            previews.append(ImageContent(data=base64.b64encode(small).decode(), mime_type="image/webp"))
    return previews


async def unfinished_answer(service: Service, purchase: Purchase, tool: str) -> list[ContentBlock]:
    """Return the state of a job that goes on, and how to join it."""
    job = await service.job(purchase.request_id)
    state, more = "waits to be stored", ""
    if job is not None:
        state = "is being saved" if job.state is JobState.SUCCEEDED else _STATES.get(job.state, f"is {job.state.value}")
        if job.state is JobState.RUNNING:
            more = f", {round(100 * job.progress)} % done"
            if job.expected_end is not None:
                left_s = (job.expected_end - datetime.now(UTC)).total_seconds()
                more += f", about {duration(max(1.0, left_s), tenths=False)} left"
        elif (why := job.last_failure()) is not None:
            more = f" ({why.message})"
    line = (
        f"{purchase.request_id} {state}{more}. It goes on: call {tool} again with this request_id and the same"
        " arguments. That joins this job and buys nothing twice; a new request_id would buy another image."
    )
    return [TextContent(text=one_line(line))]


async def list_answer(service: Service, limit: int) -> list[ContentBlock]:
    """Return the newest jobs, a line each, and the budget."""
    lines = [_job_line(*each) for each in await service.recent(limit)]
    return [TextContent(text="\n".join([*(lines or ["nothing was asked for yet"]), await spending_line(service)]))]


def _job_line(request_id: str, record: JobRecord, files: Sequence[Path]) -> str:
    prompt = "" if record.request is None else record.request.prompt
    shown = prompt if len(prompt) <= _MOST_PROMPT_CHARACTERS else f"{prompt[:_MOST_PROMPT_CHARACTERS]}..."
    cost = "" if record.credits is None else f", {credit_count(record.credits)}"
    line = f"{request_id}: {record.state.value}{cost}, {moment(record.created_at)}, {shown!r}"
    if files:
        return f"{line}: {', '.join(escape_exactly(str(file)) for file in files)}"
    return f"{line}; get_image saves it" if record.possibly_bought else line


async def spending_line(service: Service) -> str:
    """Return how much of the cap and of the budget is spent."""
    sums: list[str] = []
    if (cap := service.options.max_credits) is not None:
        sums.append(f"{number(await service.spent())} of {credit_count(cap)} of the budget")
    if (state := await service.budget()) is not None:
        day = " of this day" if state.per == "day" else ""
        counted = number(state.spent + state.reserved)
        sums.append(f"{counted} of {credit_count(state.max_credits)}{day} of budget {one_line(state.name)}")
    return f"{' and '.join(sums)} are spent or reserved"


def error_text(service: Service, request_id: str, error: NanoBananaError) -> str:
    """Return what went wrong, whether something was bought, and what to do."""
    same_id = "call again with the same request_id: what was bought is not bought again"
    match error:
        case CreditLimitReached():
            counts, option = f"everything bought as batch {service.options.batch!r}", "--max-credits"
            if error.budget is not None:
                counts, option = f"all that names {error.budget!r} in this ledger", "--budget"
            why = error.message.replace("in a batch expected_credits", "expected_credits")
            why = why.replace("expected_credits", "--expected-credits")
            why = why.replace("max_credits", "--max-credits")
            advice = f"nothing was bought. The budget counts {counts}; only the user can raise it, with {option}"
            return one_line(f"the budget is reached: {why}; {advice} of `nanobanana mcp`")
        case PromptBlocked() | JobFailed(kind="moderation"):
            return one_line(f"the prompt was refused: {error.message}; change it and use a new request_id")
        case JobFailed():
            return one_line(f"{error.message}; this request_id buys nothing more, and a new one is a new purchase")
        case JobUncertain():
            decide = resolve_advice(service.ledger.location, service.job_key(request_id))
            return one_line(f"{error.message}; do not buy it under another request_id, but ask the user to {decide}")
        case IdempotencyConflict(status=None):
            return one_line(
                f"request_id {request_id} belongs to another request, and nothing was bought: use a new request_id for"
                " another image, or the same arguments for the same one"
            )
        case InvalidRequest():
            return one_line(f"this call bought nothing: {error}")
        case _:
            return one_line(f"{error}; {same_id}")
