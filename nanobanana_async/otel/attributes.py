"""Convert jobs and errors to attributes. Only `messages` contains prompts or URLs; none has the gateway's messages."""

import json
from typing import Any

from nanobanana_async.errors import GatewayError
from nanobanana_async.jobs import JobRecord, JobState
from nanobanana_async.models import ImageRequest
from nanobanana_async.otel.names import (
    CHOICE_COUNT,
    ERROR_TYPE,
    HTTP_STATUS,
    IMAGE_ASPECT_RATIO,
    IMAGE_FORMAT,
    IMAGE_REFERENCES,
    IMAGE_RESOLUTION,
    JOB_ATTEMPTS,
    JOB_CREDITS,
    JOB_STATE,
    RESPONSE_ID,
    RESPONSE_MODEL,
)

Attributes = dict[str, str | int | float | bool]


def without_none(facts: dict[str, Any]) -> Attributes:
    """Return the facts that are not None."""
    return {name: value for name, value in facts.items() if value is not None}


def error_attributes(error: Exception) -> Attributes:
    """Return the class and status of an error, without its message, which may quote the prompt."""
    return without_none({ERROR_TYPE: type(error).__name__, HTTP_STATUS: getattr(error, "status", None)})


def error_type(record: JobRecord) -> str | None:
    """Return the error class that a job ended with; None if it did not end badly."""
    match record.state:
        case JobState.FAILED:
            return "JobFailed"
        case JobState.UNCERTAIN:
            return "JobUncertain"
        case JobState.REFUSED:
            return GatewayError.__name__ if record.failure is None else record.failure.kind
        case _:
            return None


def end_attributes(record: JobRecord) -> Attributes:
    """Return the attributes that are set when the session stops tracking the job."""
    return without_none(
        {
            RESPONSE_ID: record.task_id,
            RESPONSE_MODEL: record.model,
            JOB_STATE: record.state.value,
            JOB_ATTEMPTS: record.attempts,
            JOB_CREDITS: None if record.credits is None else float(record.credits),
        }
    )


def request_attributes(request: ImageRequest) -> dict[str, Any]:
    """Return the attributes of a request, without its prompt."""
    return {
        CHOICE_COUNT: request.num_images if request.num_images != 1 else None,
        IMAGE_RESOLUTION: request.resolution,
        IMAGE_ASPECT_RATIO: request.aspect_ratio,
        IMAGE_FORMAT: request.output_format,
        IMAGE_REFERENCES: len(request.images) or None,
    }


def input_messages(request: ImageRequest) -> str:
    """Return prompt and reference URLs in the shape of the semantic conventions, as JSON for a span attribute."""
    parts = [{"type": "text", "content": request.prompt}]
    parts += [{"type": "uri", "modality": "image", "uri": str(image)} for image in request.images]
    return json.dumps([{"role": "user", "parts": parts}], ensure_ascii=False)
