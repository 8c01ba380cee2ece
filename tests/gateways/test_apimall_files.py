"""Uploads of reference images to API Mall."""

import base64
import json
from typing import Any

import pytest

from nanobanana_async.errors import AuthenticationError, ConfigurationError, InvalidRequest, UnexpectedResponse
from nanobanana_async.gateways import ApiMall, HttpResponse
from nanobanana_async.gateways.apimall_files import MAX_BASE64_UPLOAD_BYTES
from nanobanana_async.gateways.capabilities import HasUploads, TakesInlineImages, UploadAnswer
from tests.support.rows import each_row

mall: ApiMall = ApiMall(api_key="mall-key-0123456789")
URL, PUT = "https://files.example/a.png", "https://bucket.example/a.png?X-Amz-Signature=1"


def reply(data: object, status: int = 200, **envelope: Any) -> HttpResponse:
    body = {"success": status == 200, "data": data, "request_id": "req_1", **envelope}
    return HttpResponse(status=status, body=json.dumps(body).encode())


def test_gateway_has_uploads_and_takes_no_inline_images() -> None:
    assert isinstance(mall, HasUploads)
    assert not isinstance(mall, TakesInlineImages)
    assert (mall.max_upload_bytes, mall.upload_lifetime_s) == (104_857_600, 86400)
    with pytest.raises(ConfigurationError, match="upload_lifetime_s"):
        ApiMall(api_key="k-123456789", upload_lifetime_s=-1)


def test_small_image_is_uploaded_in_one_request() -> None:
    request = mall.build_upload(b"\x89PNG", content_type="image/png", filename="a.png")
    assert (request.method, request.url) == ("POST", "https://gateway.apimall.ai/api/v1/files/base64")
    assert json.loads(request.body or b"") == {
        "data": base64.b64encode(b"\x89PNG").decode(),
        "filename": "a.png",
        "content_type": "image/png",
    }
    assert "x89" not in repr(request)


def test_large_image_gets_a_presigned_url() -> None:
    request = mall.build_upload(bytes(MAX_BASE64_UPLOAD_BYTES + 1), content_type="image/png", filename="a.png")
    assert request.url == "https://gateway.apimall.ai/api/v1/files/upload-url"
    assert json.loads(request.body or b"") == {
        "filename": "a.png",
        "content_type": "image/png",
        "file_size": MAX_BASE64_UPLOAD_BYTES + 1,
        "expires_in": 900,
    }
    at_most = mall.build_upload(bytes(MAX_BASE64_UPLOAD_BYTES), content_type="image/png", filename="a.png")
    assert at_most.url.endswith("/base64")


@each_row(
    ("data", "answer"),
    [
        ({"url": URL, "key": "a", "content_type": "image/png", "file_size": 7}, UploadAnswer(url=URL, size=7)),
        ({"url": URL}, UploadAnswer(url=URL)),
        (
            {"upload_url": PUT, "public_url": URL, "key": "a", "expires_in": 900, "max_file_size": 9},
            UploadAnswer(url=URL, put_url=PUT, size=9),
        ),
        (
            {"upload_url": PUT, "public_url": URL, "content_type": "image/png"},
            UploadAnswer(url=URL, put_url=PUT, content_type="image/png"),
        ),
        ({"upload_url": "ftp://a.example", "public_url": URL}, UploadAnswer(url=URL, put_url="ftp://a.example")),
        ({"upload_url": PUT, "public_url": URL, "max_file_size": "9"}, UploadAnswer(url=URL, put_url=PUT, size=9)),
        ({"url": URL, "file_size": 0}, UploadAnswer(url=URL, size=0)),
    ],
)
def test_answer_says_where_the_image_is_or_goes(data: object, answer: UploadAnswer) -> None:
    assert mall.read_upload(reply(data)) == answer


@each_row(
    "data",
    [None, [], {}, {"url": "files/a.png"}, {"url": 5}, {"upload_url": PUT}, {"upload_url": " ", "public_url": URL}],
)
def test_answer_without_a_url_is_unexpected(data: object) -> None:
    with pytest.raises(UnexpectedResponse, match="data"):
        mall.read_upload(reply(data))


@each_row("size", ["0", "-1", "7.5", "1e999999999", "-1e999999999", "NaN", "1" * 5000, "true", '"big"'])
def test_senseless_size_states_no_limit(size: str) -> None:
    body = f'{{"success": true, "data": {{"upload_url": "{PUT}", "public_url": "{URL}", "max_file_size": {size}}}}}'
    assert mall.read_upload(HttpResponse(status=200, body=body.encode())).size is None


@pytest.mark.parametrize(("status", "kind"), [(400, InvalidRequest), (401, AuthenticationError), (413, InvalidRequest)])
def test_refusal_is_raised(status: int, kind: type[Exception]) -> None:
    refused = reply(None, status, error={"code": "no", "message": "no such thing"})
    with pytest.raises(kind, match="no such thing"):
        mall.read_upload(refused)
