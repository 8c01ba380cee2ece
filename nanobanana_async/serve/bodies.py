"""Read the bodies of requests, bounded in size: JSON, or a form with reference images."""

import json
from collections.abc import Mapping
from typing import Any

import anyio
from attrs import define, frozen
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import Message, Receive

from nanobanana_async.formatting import byte_count
from nanobanana_async.serve.answers import ApiError
from nanobanana_async.serve.fields import field_error

MAX_JSON_BYTES = 1 << 20
_MAX_FILES, _MAX_FIELDS = 16, 64
_DISCARD_BYTES, _DISCARD_S = 64 << 20, 10.0


@define
class BodyTracker:
    """The `receive` of a request, which knows whether the whole body has come."""

    _receive: Receive
    complete: bool = False

    async def __call__(self) -> Message:
        """Return the next message."""
        message = await self._receive()
        self.complete = self.complete or message["type"] != "http.request" or not message.get("more_body", False)
        return message

    async def discard_rest(self) -> None:
        """Read what is left of the body, within limits: a client that still sends would not see the answer."""
        discarded = 0
        with anyio.move_on_after(_DISCARD_S):
            while not self.complete and discarded < _DISCARD_BYTES:
                discarded += len((await self()).get("body", b""))


@frozen
class Body:
    """The fields of a request, and the contents of its reference images."""

    fields: Mapping[str, Any]
    images: tuple[bytes, ...] = ()


async def read_json(request: Request) -> Body:
    """Return the fields of a JSON object. Raises `ApiError` for any other body."""
    # A web page could send JSON as text/plain to a server on loopback without being asked.
    if _media_type(request) != "application/json":
        raise ApiError(400, "the body must be JSON, with Content-Type: application/json", code="invalid_content_type")
    body = await Request(request.scope, _bounded(request, MAX_JSON_BYTES)).body()
    try:
        fields = json.loads(body, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        raise ApiError(400, "the body is no JSON", code="invalid_json") from None
    if not isinstance(fields, dict):
        raise ApiError(400, "the body must be a JSON object", code="invalid_json")
    return Body(fields)


async def read_form(request: Request, max_bytes: int) -> Body:
    """Return the fields of a multipart form. Raises `ApiError` for any other body, and without an image."""
    if _media_type(request) != "multipart/form-data":
        message = "the body must be multipart/form-data, with the reference images as image or image[]"
        raise ApiError(400, message, code="invalid_content_type")
    fields: dict[str, Any] = {}
    images: list[bytes] = []
    try:
        form = Request(request.scope, _bounded(request, max_bytes)).form(max_files=_MAX_FILES, max_fields=_MAX_FIELDS)
        async with form as parts:
            for given, value in parts.multi_items():
                name = given.removesuffix("[]")
                if name == "image" and isinstance(value, UploadFile):
                    images.append(await value.read())
                elif name == "image" or isinstance(value, UploadFile):
                    raise field_error(name, f"{name[:40]} can't be used: send reference images as files named image")
                elif name in fields:
                    raise field_error(name, f"{name[:40]} is given twice")
                else:
                    fields[name] = value
    except HTTPException as error:  # Starlette makes it of its MultiPartException, in an application
        raise ApiError(400, f"the form can't be read: {error.detail}", code="invalid_form") from None
    if not images:
        raise field_error(
            "image", "image is missing: an edit needs a reference image", code="missing_required_parameter"
        )
    return Body(fields, tuple(images))


def _refuse_constant(name: str) -> None:
    """Refuse NaN and the infinities, which are no JSON."""
    raise ValueError(name)


def _media_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def _bounded(request: Request, max_bytes: int) -> Receive:
    """Return a `receive` that raises `ApiError` once the body is longer."""
    too_large = ApiError(413, f"the body is larger than {byte_count(max_bytes)}", code="body_too_large")
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > max_bytes:
        raise too_large
    received = 0

    async def receive() -> Message:
        nonlocal received
        message = await request.receive()
        received += len(message.get("body", b""))
        if received > max_bytes:
            raise too_large
        return message

    return receive
