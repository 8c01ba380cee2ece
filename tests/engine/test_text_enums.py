"""Members of `class X(str, Enum)` wherever text is taken: their value counts, never the name of the member."""

import json
from enum import Enum
from pathlib import Path

import pytest

from nanobanana_async import ApiMall, ImageRequest, MemoryLedger, Session
from nanobanana_async.gateways.contract import HttpRequest
from nanobanana_async.http.tls_and_proxies import to_proxy_secret
from nanobanana_async.images.addresses import to_networks
from nanobanana_async.images.headers import download_headers
from nanobanana_async.images.names import NameFacts, NameTemplate
from nanobanana_async.images.target import as_target
from nanobanana_async.keys import batch_key_prefix
from nanobanana_async.models import same_request
from nanobanana_async.testing import FakeTransport, Reply
from nanobanana_async.validators import as_file, as_folder
from tests.support.fakes import apimall_now
from tests.support.images import make_image
from tests.support.replies import completed, created


class Text(str, Enum):  # noqa: UP042 - `str()` of a StrEnum is its value
    """Text as apps with fixed choices keep it."""

    PROMPT = "a fox"
    IMAGE = "https://a.example/fox.png"
    CALLBACK = "https://a.example/done"
    RATIO = "16:9"
    SIZE = "2K"
    FORMAT = "png"
    TYPE = "image-to-image"
    MODEL = "nano-banana"
    KEY = "order-1"
    TASK = "img_77"
    FOLDER = "images"
    BATCH = "spring"
    NAME = "{metadata[shelf]}-{row}"
    URL = "http://gateway.example:3128"
    NETWORK = "10.0.0.5/32"
    HEADER = "Referer"
    SEED = "seed"


def test_request_has_the_values() -> None:
    given = ImageRequest(
        Text.PROMPT,
        images=[Text.IMAGE],
        aspect_ratio=Text.RATIO,
        resolution=Text.SIZE,  # type: ignore[arg-type]
        output_format=Text.FORMAT,  # type: ignore[arg-type]
        model=Text.MODEL,
        task_type=Text.TYPE,  # type: ignore[arg-type]
        callback_url=Text.CALLBACK,
        extra={Text.SEED: Text.SIZE},
    )
    plain = ImageRequest(
        "a fox",
        images=["https://a.example/fox.png"],
        aspect_ratio="16:9",
        resolution="2K",
        output_format="png",
        model="nano-banana",
        task_type="image-to-image",
        callback_url="https://a.example/done",
        extra={"seed": "2K"},
    )
    assert given == plain
    assert same_request(given, plain)
    assert repr(given) == repr(plain)
    assert "Text." not in f"{given.prompt} {given.images[0]} {given.callback_url} {given.aspect_ratio} {given.model}"
    assert json.dumps(given.to_dict()) == json.dumps(plain.to_dict())


class Inline(str, Enum):  # noqa: UP042
    """A data URI."""

    IMAGE = "data:image/png;base64,AAAA"


def test_data_uri_has_its_value() -> None:
    (image,) = ImageRequest("a fox", images=[Inline.IMAGE]).images
    assert image == ImageRequest("a fox", images=["data:image/png;base64,AAAA"]).images[0]
    assert type(image.source) is str  # type: ignore[union-attr]


async def test_create_and_keys_have_the_values() -> None:
    bodies: list[bytes] = []

    def answer(request: HttpRequest) -> Reply:
        if request.method == "GET":
            return completed(request.url.rpartition("/")[2])
        bodies.append(request.body or b"")
        assert request.headers["Idempotency-Key"] == "order-1"
        return created()

    async with apimall_now(FakeTransport(answer, latency_s=0.0), ledger=MemoryLedger()) as session:
        result = await session.generate(Text.PROMPT, images=[Text.IMAGE], idempotency_key=Text.KEY)
        assert result.key == "order-1"
        assert await session.job(Text.KEY) is not None
        attached = await session.attach(Text.TASK)
        assert attached.key == "task-img_77"
        assert (await attached).task_id == "img_77"
    (body,) = bodies
    assert json.loads(body)["image_urls"] == ["https://a.example/fox.png"]
    assert b"Text." not in body


async def test_resolved_job_and_task_have_the_values() -> None:
    def answer(request: HttpRequest) -> Reply:
        if request.method == "GET":
            return completed(request.url.rpartition("/")[2])
        return created()

    async with apimall_now(FakeTransport(answer, latency_s=0.0)) as session:
        await session.generate("a fox", idempotency_key="order-1")
        with pytest.raises(ValueError, match="job order-1 is succeeded: there is nothing to resolve"):
            await session.resolve(Text.KEY, task_id=Text.TASK)


@pytest.mark.parametrize("read", [as_folder, as_file, as_target])
def test_paths_have_the_values(read: object) -> None:
    assert read("save_to", Text.FOLDER) == Path("images")  # type: ignore[operator]


def test_settings_have_the_values() -> None:
    gateway = ApiMall(api_key=Text.PROMPT.replace(" ", "-"), account=Text.BATCH, model=Text.MODEL)
    assert (gateway.account, gateway.model) == ("apimall:spring", "nano-banana")
    assert batch_key_prefix(Text.BATCH) == batch_key_prefix("spring")
    assert [str(each) for each in to_networks([Text.NETWORK])] == ["10.0.0.5/32"]
    proxy = to_proxy_secret(Text.URL)
    assert proxy.reveal() == "http://gateway.example:3128"  # type: ignore[union-attr]
    assert type(download_headers({Text.HEADER: Text.IMAGE})["Referer"]) is str
    template = NameTemplate("names", Text.NAME)
    assert template.stem(NameFacts(row=3, key=None, prompt="a fox", metadata={"shelf": Text.SIZE})) == "2K-3"


async def test_batch_rows_have_the_values(tmp_path: Path) -> None:
    def answer(request: HttpRequest) -> Reply:
        return created() if request.method == "POST" else completed()

    gateway = ApiMall(api_key="sk-1")
    async with Session(gateway, ledger=tmp_path / "jobs.sqlite", http=FakeTransport(answer, latency_s=0.0)) as session:
        rows = [{"prompt": Text.PROMPT, "key": Text.KEY}]
        (outcome,) = [each async for each in session.generate_many(rows, batch=Text.BATCH)]
        job = await session.job("order-1", batch="spring")
        assert job is not None
        assert outcome.key == job.key


def test_local_bytes_are_untouched() -> None:
    png = make_image()
    (image,) = ImageRequest("a fox", images=[png]).images
    assert image.source == png  # type: ignore[union-attr]
