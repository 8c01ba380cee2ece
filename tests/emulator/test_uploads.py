"""Uploads to API Mall over real sockets: inline, by a pre-signed URL and by URL; and the files that they leave."""

import asyncio
import base64
import hashlib
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from nanobanana_async.emulator import API_KEY, Emulator, Fixed, RandomFault, faults
from nanobanana_async.emulator.composition import ImageSpec
from nanobanana_async.emulator.images import plain_png
from tests.emulator.calling import Caller

KEY = {"Authorization": f"Bearer {API_KEY}"}
PNG = plain_png(ImageSpec("a fox", 0, 0, 8, 8, True))
SHA256 = hashlib.sha256(PNG).hexdigest()
ENCODED = base64.b64encode(PNG).decode()
DATA_URI = f"data:image/png;base64,{ENCODED}"
PLACE = {"filename": "fox.png", "content_type": "image/png", "file_size": len(PNG)}


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


async def post(http: aiohttp.ClientSession, emulator: Emulator, path: str, **fields: Any) -> tuple[int, Any]:
    async with http.post(f"{emulator.url}/api/v1/{path}", json=fields, headers=KEY) as response:
        body = await response.json()
        return response.status, body["data"] if body["success"] else body["error"]["message"]


async def put(http: aiohttp.ClientSession, url: str, body: bytes = PNG, **headers: str) -> int:
    sent = {"Content-Type": "image/png", **{name.replace("_", "-"): value for name, value in headers.items()}}
    async with http.put(url, data=body, headers=sent) as response:
        return response.status


async def place(http: aiohttp.ClientSession, emulator: Emulator, **fields: Any) -> Any:
    status, data = await post(http, emulator, "files/upload-url", **{**PLACE, **fields})
    assert status == 200
    return data


@pytest.mark.parametrize(
    ("fields", "content_type"),
    [
        ({"data": ENCODED}, "image/png"),
        ({"data": DATA_URI}, "image/png"),
        ({"data": ENCODED, "filename": "fox.jpg"}, "image/jpeg"),
        ({"data": DATA_URI, "content_type": "image/webp"}, "image/webp"),
        ({"data": base64.b64encode(b"no image").decode()}, "application/octet-stream"),
    ],
)
async def test_inline_upload_is_stored_and_served(
    nanobanana_emulator: Emulator, http: aiohttp.ClientSession, fields: dict[str, str], content_type: str
) -> None:
    status, data = await post(http, nanobanana_emulator, "files/base64", **fields)
    assert (status, set(data)) == (200, {"url", "key", "content_type", "file_size"})
    assert data["content_type"] == content_type
    async with http.get(data["url"]) as response:
        body = await response.read()
        assert (response.status, response.content_type, len(body)) == (200, content_type, data["file_size"])
    assert nanobanana_emulator.stats().uploads == {hashlib.sha256(body).hexdigest(): 1}


@pytest.mark.parametrize(
    ("path", "fields", "complaint"),
    [
        ("base64", {}, "data is required"),
        ("base64", {"data": "not base64!"}, "data must be base64"),
        ("base64", {"data": "data:image/png,plain"}, "data must be base64"),
        ("base64", {"data": ENCODED[:-3]}, "data must be base64"),
        ("base64", {"data": "data:image/png;base64,"}, "data must be base64"),
        ("base64", {"data": ENCODED, "filename": "../fox.png"}, "filename must be a file name"),
        ("base64", {"data": ENCODED, "content_type": "png"}, "content_type must be a media type"),
        ("base64", {"data": ENCODED, "folder": "x"}, "folder is not a parameter"),
        ("upload-url", {"filename": "a.png", "content_type": "image/png"}, "file_size is required"),
        ("upload-url", {**PLACE, "file_size": 0}, "file_size must be between 1"),
        ("upload-url", {**PLACE, "expires_in": 59}, "expires_in must be between 60 and 3600"),
        ("from-url", {"url": "ftp://example.com/a.png"}, "url must be an http or https URL"),
        ("from-url", {"url": "http://127.0.0.1:1/a.png"}, "url must not point at a private address"),
        ("from-url", {"url": "http://10.0.0.1/a.png"}, "url must not point at a private address"),
        ("from-url", {"url": "http://printer.local/a.png"}, "url must not point at a private address"),
    ],
)
async def test_wrong_upload_is_400_and_stores_nothing(
    nanobanana_emulator: Emulator, http: aiohttp.ClientSession, path: str, fields: dict[str, Any], complaint: str
) -> None:
    status, message = await post(http, nanobanana_emulator, f"files/{path}", **fields)
    assert status == 400
    assert message.startswith(complaint)
    assert nanobanana_emulator.stats().uploads == {}


@pytest.mark.emulator(max_upload_bytes=len(PNG) - 1)
async def test_file_above_the_limit_is_413(nanobanana_emulator: Emulator, http: aiohttp.ClientSession) -> None:
    assert (await post(http, nanobanana_emulator, "files/base64", data=ENCODED))[0] == 413
    assert (await post(http, nanobanana_emulator, "files/upload-url", **PLACE))[0] == 413
    assert (await place(http, nanobanana_emulator, file_size=5))["max_file_size"] == len(PNG) - 1


async def test_put_to_the_pre_signed_url_stores_the_file(
    nanobanana_emulator: Emulator, http: aiohttp.ClientSession
) -> None:
    data = await place(http, nanobanana_emulator)
    assert (data["expires_in"], data["content_type"], data["max_file_size"]) == (900, "image/png", 104_857_600)
    async with http.get(data["public_url"]) as response:
        assert response.status == 404
    assert await put(http, data["upload_url"]) == 200
    async with http.get(data["public_url"]) as response:
        assert await response.read() == PNG
    stats = nanobanana_emulator.stats()
    assert (stats.uploads, stats.upload_bytes, stats.duplicate_uploads) == ({SHA256: 1}, len(PNG), 0)
    assert (stats.credential_leaks, stats.requests["apimall.put"]) == (0, 1)


async def test_put_with_the_api_key_is_400_and_counts_as_a_leak(
    nanobanana_emulator: Emulator, http: aiohttp.ClientSession
) -> None:
    data = await place(http, nanobanana_emulator)
    assert await put(http, data["upload_url"], Authorization="Bearer x") == 400
    assert (nanobanana_emulator.stats().credential_leaks, nanobanana_emulator.stats().uploads) == (1, {})


async def test_put_that_differs_from_what_was_signed_is_refused(
    nanobanana_emulator: Emulator, http: aiohttp.ClientSession
) -> None:
    url = (await place(http, nanobanana_emulator))["upload_url"]
    assert await put(http, url, Content_Type="image/jpeg") == 403
    assert await put(http, url, PNG[:-1]) == 400
    assert await put(http, url[:-1]) == 403
    assert await put(http, f"{nanobanana_emulator.url}/storage/nothing?X-Amz-Signature=x") == 403
    assert nanobanana_emulator.stats().uploads == {}


@pytest.mark.emulator(put_urls_expire_after_s=0.0)
async def test_put_after_expiry_is_403(nanobanana_emulator: Emulator, http: aiohttp.ClientSession) -> None:
    assert await put(http, (await place(http, nanobanana_emulator))["upload_url"]) == 403


async def test_upload_by_url_copies_a_file_of_the_emulator(
    nanobanana_emulator: Emulator, http: aiohttp.ClientSession
) -> None:
    _, first = await post(http, nanobanana_emulator, "files/base64", data=ENCODED)
    status, copy = await post(http, nanobanana_emulator, "files/from-url", url=first["url"])
    assert (status, copy["file_size"], copy["url"] != first["url"]) == (200, len(PNG), True)
    assert (await post(http, nanobanana_emulator, "files/from-url", url="https://example.com/a.png"))[0] == 200
    stats = nanobanana_emulator.stats()
    assert (stats.uploads[SHA256], stats.duplicate_uploads, len(stats.uploads)) == (2, 1, 2)


@pytest.mark.emulator(duration=Fixed(0.0), image_scale=0.05)
async def test_upload_by_url_copies_an_image_of_a_job(
    nanobanana_emulator: Emulator, http: aiohttp.ClientSession
) -> None:
    _, job = await post(http, nanobanana_emulator, "images/generate", model="nano-banana-pro", prompt="x")
    async with http.get(f"{nanobanana_emulator.url}/api/v1/images/{job['task_id']}", headers=KEY) as response:
        url = (await response.json())["data"]["primary_url"]
    async with http.get(url) as response:
        image = await response.read()
    await post(http, nanobanana_emulator, "files/from-url", url=url)
    assert nanobanana_emulator.stats().uploads == {hashlib.sha256(image).hexdigest(): 1}


@pytest.mark.parametrize(
    ("asked", "status", "part"),
    [
        ("bytes=0-3", 206, PNG[:4]),
        ("bytes=4-", 206, PNG[4:]),
        ("bytes=-4", 206, PNG[-4:]),
        ("bytes=0-99999", 206, PNG),
        ("bytes=99999-", 416, b""),
        ("bytes=-", 200, PNG),
        ("lines=1-2", 200, PNG),
    ],
)
async def test_stored_file_is_served_in_parts(
    nanobanana_emulator: Emulator, http: aiohttp.ClientSession, asked: str, status: int, part: bytes
) -> None:
    _, data = await post(http, nanobanana_emulator, "files/base64", data=ENCODED)
    async with http.get(data["url"], headers={"Range": asked}) as response:
        assert (response.status, await response.read()) == (status, part)
    async with http.head(data["url"]) as response:
        assert (response.status, response.content_length) == (200, len(PNG))


async def test_large_upload_arrives_whole(nanobanana_emulator: Emulator, http: aiohttp.ClientSession) -> None:
    body = bytes(range(256)) * 2560  # aiohttp warns of 1 MiB and more
    await post(http, nanobanana_emulator, "files/base64", data=base64.b64encode(body).decode())
    assert await put(http, (await place(http, nanobanana_emulator, file_size=len(body)))["upload_url"], body) == 200
    assert nanobanana_emulator.stats().uploads == {hashlib.sha256(body).hexdigest(): 2}


async def test_urls_of_uploads_name_the_host_that_the_client_used(
    nanobanana_emulator: Emulator, http: aiohttp.ClientSession
) -> None:
    headers = {**KEY, "Host": "relative.test:8080"}
    async with http.post(f"{nanobanana_emulator.url}/api/v1/files/upload-url", json=PLACE, headers=headers) as response:
        data = (await response.json())["data"]
    urls = data["upload_url"], data["public_url"]
    assert [url.startswith("http://relative.test:8080/") for url in urls] == [True, True]


async def test_uploads_need_the_key_and_count_as_requests(http: aiohttp.ClientSession) -> None:
    async with Emulator(requests_per_day=2) as emulator:
        async with http.post(f"{emulator.url}/api/v1/files/base64", json={"data": ENCODED}) as response:
            assert response.status == 401
        statuses = [(await post(http, emulator, "files/base64", data=ENCODED))[0] for _ in range(3)]
    assert statuses == [200, 200, 429]


async def test_lost_answer_of_an_upload_leaves_the_file_stored(
    nanobanana_emulator: Emulator, http: aiohttp.ClientSession
) -> None:
    nanobanana_emulator.queue_faults("apimall.upload", faults.reset(), None, faults.reset(processed=True))
    with pytest.raises(aiohttp.ClientConnectionError):
        await post(http, nanobanana_emulator, "files/base64", data=ENCODED)
    data = await place(http, nanobanana_emulator)
    with pytest.raises(aiohttp.ClientConnectionError):
        await post(http, nanobanana_emulator, "files/base64", data=ENCODED)
    nanobanana_emulator.queue_faults("apimall.put", faults.error(503), faults.garbage(processed=True))
    assert [await put(http, data["upload_url"]) for _ in range(2)] == [503, 200]
    assert nanobanana_emulator.stats().uploads == {SHA256: 2}


@pytest.mark.emulator(random_faults=[RandomFault(1.0, faults.stall(0.01), "apimall.put")])
async def test_put_may_stall(nanobanana_emulator: Emulator, http: aiohttp.ClientSession) -> None:
    url = (await place(http, nanobanana_emulator))["upload_url"]
    with pytest.raises(aiohttp.ClientConnectionError):
        async with asyncio.timeout(10):
            await put(http, url)


@pytest.mark.emulator(check_references=True)
async def test_create_with_a_reference_that_is_not_there_is_400(
    nanobanana_emulator: Emulator, http: aiohttp.ClientSession
) -> None:
    data = await place(http, nanobanana_emulator)
    create = {"model": "nano-banana-pro", "prompt": "a fox", "image_urls": [data["public_url"]]}
    assert await post(http, nanobanana_emulator, "images/generate", **create) == (
        400,
        f"no such reference image: {data['public_url']}",
    )
    await put(http, data["upload_url"])
    urls = ["https://example.com/a.png", data["public_url"]]
    assert (await post(http, nanobanana_emulator, "images/generate", **{**create, "image_urls": urls}))[0] == 200
    (job,) = nanobanana_emulator.jobs()
    assert job.reference_digests == (None, SHA256)


def test_defapi_takes_images_as_data_uris() -> None:
    caller = Caller()
    assert caller.buy_defapi(images=[DATA_URI, "https://example.com/a.png"]).status == 200
    (job,) = caller.simulator.jobs(0.0)
    assert job.reference_digests == (SHA256, None)


@pytest.mark.parametrize("image", ["data:image/png;base64,bm8gaW1hZ2U=", "data:image/png;base64,?", "data:,x", "x"])
def test_defapi_refuses_a_data_uri_that_is_no_image(image: str) -> None:
    assert Caller().buy_defapi(images=[image]).status == 400


def test_defapi_refuses_inline_images_above_its_limit() -> None:
    caller = Caller(max_inline_bytes=len(PNG) - 1)
    assert caller.buy_defapi(images=[DATA_URI]).status == 413
    assert caller.stats().creates_refused == {413: 1}


def test_apimall_takes_no_data_uris() -> None:
    assert Caller().buy(image_urls=[DATA_URI]).status == 400


async def test_next_emulator_knows_no_file_of_the_last_one(http: aiohttp.ClientSession) -> None:
    keys = []
    for _ in range(2):
        async with Emulator() as emulator:
            _, data = await post(http, emulator, "files/base64", data=ENCODED)
            keys.append(data["key"])
    assert keys[0] != keys[1]
