"""Uploads of reference images to API Mall: small ones inside the request, others by a pre-signed URL."""

import base64

from attrs import frozen
from cattrs.gen import make_dict_structure_fn, override

from nanobanana_async.errors import InvalidRequest
from nanobanana_async.gateways.capabilities import UploadAnswer
from nanobanana_async.gateways.contract import MIB, HttpRequest
from nanobanana_async.gateways.parsing import CONVERTER, GatewayAnswer, parse_count, to_json
from nanobanana_async.references import check_url

MAX_UPLOAD_BYTES = 100 * MIB
"""The limit that the reference states for one file."""

MAX_BASE64_UPLOAD_BYTES = 4 * MIB
"""Up to here an upload is one request; base64 makes it a third longer."""

_PUT_VALID_S = 900
"""How long a pre-signed URL lives: the default of the reference."""


def _url(value: object, _: object = None) -> str:
    try:
        check_url("the URL", value)
    except InvalidRequest as error:
        raise ValueError(error.message) from None
    return str(value)


def _link(value: object, _: object = None) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError("a pre-signed URL is text")
    return value


@frozen
class _Stored:
    url: str
    file_size: int | None = None


@frozen
class _PresignedUpload:
    upload_url: str
    """Checked before the image is sent there: the gateway has answered, even if its storage can't be used."""
    public_url: str
    max_file_size: int | None = None
    content_type: str | None = None


_AS_URL, _AS_LINK, _AS_COUNT = (override(struct_hook=hook) for hook in (_url, _link, parse_count))
CONVERTER.register_structure_hook(_Stored, make_dict_structure_fn(_Stored, CONVERTER, url=_AS_URL, file_size=_AS_COUNT))
CONVERTER.register_structure_hook(
    _PresignedUpload,
    make_dict_structure_fn(
        _PresignedUpload, CONVERTER, upload_url=_AS_LINK, public_url=_AS_URL, max_file_size=_AS_COUNT
    ),
)


def build_upload(base_url: str, content: bytes, *, content_type: str, filename: str) -> HttpRequest:
    """Return the upload, or for a large image the request for a pre-signed URL."""
    large = len(content) > MAX_BASE64_UPLOAD_BYTES
    fields = {
        "data": None if large else base64.b64encode(content).decode(),
        "filename": filename,
        "content_type": content_type,
        "file_size": len(content) if large else None,
        "expires_in": _PUT_VALID_S if large else None,
    }
    return HttpRequest(
        method="POST",
        url=f"{base_url}/api/v1/files/{'upload-url' if large else 'base64'}",
        headers={"Content-Type": "application/json", "Accept": "application/json"},
        body=to_json(fields),
    )


def parse_upload(answer: GatewayAnswer, data: object) -> UploadAnswer:
    """Return where the image is, or is to be sent; raise `UnexpectedResponse` for an answer without that."""
    if isinstance(data, dict) and "upload_url" in data:
        ahead = answer.parse_fields(_PresignedUpload, data, "data")
        most = ahead.max_file_size or None  # no image fits into 0 bytes: that states no limit
        return UploadAnswer(url=ahead.public_url, put_url=ahead.upload_url, content_type=ahead.content_type, size=most)
    stored = answer.parse_fields(_Stored, data, "data")
    return UploadAnswer(url=stored.url, size=stored.file_size)
