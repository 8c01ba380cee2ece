"""API Mall's uploads: inline as base64, by a pre-signed URL, and by URL."""

import mimetypes
import re
from collections.abc import Mapping
from urllib.parse import urlsplit

from nanobanana_async.emulator import apimall, checks, files
from nanobanana_async.emulator import images as cdn
from nanobanana_async.emulator.accounts import Refusal
from nanobanana_async.emulator.addresses import is_private
from nanobanana_async.emulator.bodies import Content, JsonBody, image_type
from nanobanana_async.emulator.composition import ImageSpec
from nanobanana_async.emulator.endpoints import JSON, admission_refusal, refuse
from nanobanana_async.emulator.messages import EmulatedRequest, EmulatedResponse
from nanobanana_async.emulator.state import State

BASE64_PATH = "/api/v1/files/base64"
SIGN_PATH = "/api/v1/files/upload-url"
FROM_URL_PATH = "/api/v1/files/from-url"
_EXPIRE_S = 900

_filename = checks.matching(re.compile(r"[^/\\\x00-\x1f]{1,255}"), "must be a file name of at most 255 characters")
_media_type = checks.matching(re.compile(r"[\w.+-]+/[\w.+-]+", re.ASCII), "must be a media type such as image/png")
_OPTIONAL: dict[str, checks.Check] = {"filename": _filename, "content_type": _media_type}
_FIELDS: Mapping[str, dict[str, checks.Check]] = {
    BASE64_PATH: {"data": checks.text, **_OPTIONAL},
    SIGN_PATH: {**_OPTIONAL, "file_size": checks.whole_number(1, 2**53), "expires_in": checks.whole_number(60, 3600)},
    FROM_URL_PATH: {"url": checks.url, **_OPTIONAL},
}
_REQUIRED: Mapping[str, tuple[str, ...]] = {
    BASE64_PATH: ("data",),
    SIGN_PATH: ("filename", "content_type", "file_size"),
    FROM_URL_PATH: ("url",),
}


def upload(state: State, now: float, request: EmulatedRequest, headers: Mapping[str, str]) -> EmulatedResponse:
    """Return the response to one of the three kinds of upload."""
    outcome = admission_refusal(state, now, "apimall", headers) or _decide(state, now, request)
    if isinstance(outcome, Refusal):
        return refuse(state, now, "apimall", outcome)
    body = apimall.encoded({"success": True, "data": outcome, "request_id": state.request_id()})
    return EmulatedResponse(200, JSON, body)


def _decide(state: State, now: float, request: EmulatedRequest) -> Refusal | dict[str, object]:
    body = request.json
    if isinstance(body, str):
        return _wrong(body)
    if wrong := checks.first_error(_FIELDS[request.path], _REQUIRED[request.path], body.fields):
        return _wrong(wrong)
    if request.path == SIGN_PATH:
        return _sign(state, now, body)
    content = body.file("data") if request.path == BASE64_PATH else _fetched(state, body.fields["url"])
    if content is None:
        is_inline = request.path == BASE64_PATH
        return _wrong("data must be base64" if is_inline else "url must not point at a private address")
    if len(content.data) > state.settings.max_upload_bytes:
        return _too_large(state)
    file = state.files.reserve(_name(body), _type(body, content), len(content.data))
    state.files.fill(file, content)
    return {
        "url": files.public_url(file, state.base_url),
        "key": file.key,
        "content_type": file.content_type,
        "file_size": file.size,
    }


def _sign(state: State, now: float, body: JsonBody) -> Refusal | dict[str, object]:
    if body.fields["file_size"] > state.settings.max_upload_bytes:
        return _too_large(state)
    expire_s = body.fields.get("expires_in", _EXPIRE_S)
    file = state.files.reserve(_name(body), body.fields["content_type"], body.fields["file_size"])
    limit_s = state.settings.put_urls_expire_after_s
    file.expires_at = now + (expire_s if limit_s is None else limit_s)
    return {
        "upload_url": files.put_url(file, state.base_url),
        "key": file.key,
        "public_url": files.public_url(file, state.base_url),
        "expires_in": expire_s,
        "max_file_size": state.settings.max_upload_bytes,
        "content_type": file.content_type,
    }


def _fetched(state: State, url: str) -> Content | None:
    """Return what is at a URL: true for files and images of this emulator, else one made up, as it fetches nothing."""
    here, content = state.files.find_by_url(url, state.base_url)
    if here:
        return content
    link = cdn.read_link(urlsplit(url).path)
    task = state.tasks.get(link.task_id) if link is not None else None
    if link is not None and task is not None and link.index < task.request.image_count:
        return Content.of(cdn.paint(cdn.image_spec(task, link.index, state.settings)))
    if is_private(url):
        return None
    return Content.of(cdn.plain_png(ImageSpec(url, state.settings.seed, 0, 8, 8, True)))


def _name(body: JsonBody) -> str:
    return str(body.fields.get("filename") or urlsplit(body.fields.get("url", "")).path)


def _type(body: JsonBody, content: Content) -> str:
    stated = body.fields.get("content_type") or content.stated_type or mimetypes.guess_type(_name(body))[0]
    return stated or image_type(content.data) or "application/octet-stream"


def _wrong(message: str) -> Refusal:
    return Refusal(400, "invalid_request", message)


def _too_large(state: State) -> Refusal:
    return Refusal(413, "file_too_large", f"A file must not be larger than {state.settings.max_upload_bytes} bytes")
