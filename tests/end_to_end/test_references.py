"""Local reference images over real sockets: uploaded to API Mall, inside requests to defapi, or published."""

import asyncio
import logging
from pathlib import Path

import pytest

from nanobanana_async import (
    ApiMall,
    ConfigurationError,
    GenerationResult,
    InvalidRequest,
    JobState,
    NanoBananaError,
    Outcome,
    Session,
    SqliteLedger,
)
from nanobanana_async.emulator import Emulator, Script
from nanobanana_async.emulator.composition import ImageSpec
from nanobanana_async.emulator.faults import Fault, cut, error, garbage, html, reset
from nanobanana_async.emulator.images import plain_png
from nanobanana_async.errors import AuthenticationError, JobUnfinished
from tests.support.loopback import BOTH, GatewayName, charged, emulated, gateway_of, quick, until
from tests.support.references import large_png, sha256, written

PNG = plain_png(ImageSpec("a cat", 0, 0, 8, 8, True))
LARGE = large_png(5 << 20)
"""Too large for an upload in one request."""


@pytest.fixture
def cat(tmp_path: Path) -> Path:
    return written(tmp_path / "cat.png", PNG)


def references(emulator: Emulator) -> list[list[str | None]]:
    return [list(job.reference_digests) for job in emulator.jobs()]


def uploads(emulator: Emulator) -> tuple[int, int]:
    """Return how many contents were uploaded, and how often one was uploaded again."""
    stats = emulator.stats()
    assert stats.credential_leaks == 0
    return len(stats.uploads), stats.duplicate_uploads


def read_files(folder: Path) -> bytes:
    return b"".join(file.read_bytes() for file in folder.iterdir() if file.is_file())


@pytest.mark.parametrize("name", BOTH)
async def test_every_kind_of_local_image_arrives_by_its_content(name: GatewayName, cat: Path) -> None:
    async with emulated(check_references=True, data_uris=True) as emulator, quick(emulator, name) as session:
        first = await session.generate("a fox", images=[cat])
        second = await session.generate("an owl", images=[PNG, first, first.images[0]])
        made = sha256(await session.download(first.images[0]))
        assert first.request is not None
        assert first.request.images == (f"sha256:{sha256(PNG)}",)
        assert references(emulator)[0] == [sha256(PNG)]
        assert references(emulator)[1][0] == sha256(PNG)
        if name == "defapi":  # its results are data URIs here, so local images too
            assert references(emulator)[1][1:] == [made, made]
            assert second.request is not None
            assert second.request.images[1:] == (f"sha256:{made}",) * 2
        else:
            assert uploads(emulator) == (1, 0)


@pytest.mark.slow
@pytest.mark.parametrize("name", BOTH)
async def test_thirty_megabytes_arrive_whole(name: GatewayName, tmp_path: Path) -> None:
    content = large_png(30 << 20)
    async with emulated(check_references=True) as emulator, quick(emulator, name) as session:
        await session.generate("a fox", images=[written(tmp_path / "large.png", content)])
        assert references(emulator) == [[sha256(content)]]
        assert charged(emulator.stats(), 1)


async def test_same_content_under_another_name_in_a_second_run_is_neither_uploaded_nor_bought(tmp_path: Path) -> None:
    one, other = written(tmp_path / "cat.png", LARGE), written(tmp_path / "copy.png", LARGE)
    async with emulated() as emulator:
        for image in (one, other):
            async with quick(emulator, ledger=tmp_path / "jobs.sqlite") as session:
                await session.generate("a fox", images=[image], idempotency_key="order-1")
                if image is other:
                    await session.generate("an owl", images=[image])
        assert charged(emulator.stats(), 2)
        assert uploads(emulator) == (1, 0)


async def test_other_content_under_the_same_name_is_another_request(cat: Path) -> None:
    async with emulated() as emulator, quick(emulator) as session:
        await session.generate("a fox", images=[cat], idempotency_key="order-1")
        written(cat, LARGE)
        with pytest.raises(NanoBananaError, match="images differs"):
            await session.generate("a fox", images=[cat], idempotency_key="order-1")
        assert uploads(emulator) == (1, 0)


async def test_concurrent_jobs_share_one_upload(cat: Path) -> None:
    async with emulated(job_limit=3) as emulator, quick(emulator) as session, asyncio.TaskGroup() as group:
        for number in range(20):
            group.create_task(session.generate(f"fox {number}", images=[cat, PNG]))
    assert charged(emulator.stats(), 20)
    assert uploads(emulator) == (1, 0)


@pytest.mark.parametrize(
    "faults",
    [
        (reset(), reset(processed=True)),
        (error(503), error(429)),
        (html(502), garbage(), cut()),
    ],
)
@pytest.mark.parametrize("content", [PNG, LARGE], ids=["small", "large"])
async def test_upload_is_repeated_after_what_may_pass(faults: tuple[Fault, ...], content: bytes) -> None:
    async with emulated(script=Script({"apimall.upload": [*faults]})) as emulator, quick(emulator) as session:
        await session.generate("a fox", images=[content])
        assert references(emulator) == [[sha256(content)]]
        assert charged(emulator.stats(), 1)


@pytest.mark.parametrize("fault", [error(503), error(403)])
async def test_put_is_repeated_with_a_new_url(fault: Fault) -> None:
    async with emulated(script=Script({"apimall.put": [fault]})) as emulator, quick(emulator) as session:
        await session.generate("a fox", images=[LARGE])
        assert emulator.stats().requests["apimall.upload"] == 2
        assert charged(emulator.stats(), 1)


@pytest.mark.parametrize("fault", [reset(), reset(processed=True)])
async def test_lost_answer_to_a_put_loses_nothing(fault: Fault) -> None:
    async with emulated(script=Script({"apimall.put": [fault]})) as emulator, quick(emulator) as session:
        await session.generate("a fox", images=[LARGE])
        assert references(emulator) == [[sha256(LARGE)]]
        assert charged(emulator.stats(), 1)
        assert emulator.stats().credential_leaks == 0


async def test_refused_upload_buys_nothing_and_can_be_repeated(cat: Path, tmp_path: Path) -> None:
    refusals = Script({"apimall.upload": [error(401)]})
    async with emulated(script=refusals) as emulator, quick(emulator, ledger=tmp_path / "jobs.sqlite") as session:
        with pytest.raises(AuthenticationError) as caught:
            await session.generate("a fox", images=[cat], idempotency_key="order-1")
        assert caught.value.safe_to_repeat
        job = await session.job("order-1")
        assert job is not None
        assert job.state is JobState.PENDING
        await session.generate("a fox", images=[cat], idempotency_key="order-1")
        assert charged(emulator.stats(), 1)


async def test_upload_costs_no_slot(cat: Path) -> None:
    stalled = Script({"apimall.upload": [error(503)] * 10})
    async with emulated(job_limit=1, script=stalled) as emulator, quick(emulator) as session:
        waiting = await session.submit("a fox", images=[cat])
        await until(lambda: emulator.stats().requests.get("apimall.upload", 0) > 0)
        await session.generate("an owl")
        assert not waiting._tracked.done
        await waiting
        assert charged(emulator.stats(), 2)


async def test_timeout_during_an_upload_withdraws_the_job(cat: Path) -> None:
    async with emulated(script=Script({"apimall.upload": [error(503)] * 1000})) as emulator:
        async with quick(emulator) as session:
            with pytest.raises(JobUnfinished, match="nothing was bought") as caught:
                await session.generate("a fox", images=[cat], timeout=0.1)
            assert caught.value.safe_to_repeat
        assert charged(emulator.stats(), 0)


async def test_closing_during_an_upload_leaves_the_job_pending(cat: Path, tmp_path: Path) -> None:
    ledger = tmp_path / "jobs.sqlite"
    async with emulated(script=Script({"apimall.upload": [error(503)] * 8})) as emulator:
        async with quick(emulator, ledger=ledger) as session:
            await session.submit("a fox", images=[cat], idempotency_key="order-1")
            await until(lambda: emulator.stats().requests.get("apimall.upload", 0) > 0)
        async with quick(emulator, ledger=ledger) as session:
            (job,) = await session.resume(buy=True)
            with pytest.raises(NanoBananaError, match=r"not at hand.*Request the job again") as caught:
                await job
            assert caught.value.safe_to_repeat
            await session.generate("a fox", images=[PNG], idempotency_key="order-1")
        assert charged(emulator.stats(), 1)
        assert uploads(emulator) == (1, 0)


async def test_resumed_job_uses_the_upload_of_an_earlier_session(cat: Path, tmp_path: Path) -> None:
    ledger = tmp_path / "jobs.sqlite"
    async with emulated(job_limit=1) as emulator:
        async with quick(emulator, ledger=ledger) as session:
            await session.generate("an owl", images=[cat])
        async with quick(emulator, ledger=ledger, max_credits=0) as session:
            with pytest.raises(NanoBananaError):
                await session.generate("a fox", images=[cat], idempotency_key="order-1")
        async with quick(emulator, ledger=ledger) as session:
            await session.generate("a fox", images=[f"sha256:{sha256(PNG)}"], idempotency_key="order-1")
        assert charged(emulator.stats(), 2)
        assert uploads(emulator) == (1, 0)


async def test_old_upload_is_made_again(cat: Path, tmp_path: Path) -> None:
    async with emulated() as emulator:
        for _ in range(2):
            gateway = gateway_of(emulator, "apimall", upload_lifetime_s=0.0)
            async with quick(emulator, gateway=gateway, ledger=tmp_path / "jobs.sqlite") as session:
                await session.generate("a fox", images=[cat])
        assert uploads(emulator) == (1, 1)


async def test_neither_ledger_nor_log_nor_result_holds_the_content(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mark = b"visible in no file"
    content = large_png(10) + mark
    caplog.set_level(logging.DEBUG)
    for name in BOTH:
        async with emulated() as emulator, quick(emulator, name, ledger=tmp_path / f"{name}.sqlite") as session:
            result = await session.generate("a fox", images=[content])
            assert references(emulator) == [[sha256(content)]]
            assert "visible" not in repr((result, result.raw, result.to_dict()))
        stored = read_files(tmp_path)
        assert b"a fox" in stored
        assert mark not in stored
        assert b"base64" not in stored
    assert "base64" not in caplog.text


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, "does not exist"),
        (b"", "is empty"),
        (b"a text", "is no image of a known format"),
        ("folder", "is a folder"),
    ],
)
async def test_bad_file_is_refused_before_anything_is_sent(
    name: GatewayName, content: bytes | str | None, why: str, tmp_path: Path
) -> None:
    path = tmp_path / "cat.png"
    if content == "folder":
        path.mkdir()
    elif isinstance(content, bytes):
        path.write_bytes(content)
    async with emulated() as emulator, quick(emulator, name) as session:
        with pytest.raises(InvalidRequest, match=f"{path} {why}"):
            await session.generate("a fox", images=[path])
        with pytest.raises(InvalidRequest, match="a data URI"):
            await session.generate("a fox", images=["data:image/png;base64,?"])
        assert sum(emulator.stats().requests.values()) == 0


async def test_image_over_the_limit_of_defapi_names_the_publisher(tmp_path: Path) -> None:
    async with emulated() as emulator:
        async with quick(emulator, gateway=gateway_of(emulator, "defapi", max_inline_bytes=1000)) as session:
            with pytest.raises(
                InvalidRequest, match=r"2 MiB, more than the limit of 1,?000 bytes .*references="
            ) as found:
                await session.generate("a fox", images=[written(tmp_path / "a.png", large_png(2 << 20))])
            assert found.value.safe_to_repeat
        assert sum(emulator.stats().requests.values()) == 0


async def test_file_that_changes_before_its_upload_buys_nothing(cat: Path) -> None:
    async with emulated(job_limit=1, script=Script({"apimall.upload": [error(503)] * 3})) as emulator:
        async with quick(emulator, "defapi") as session:
            job = await session.submit("a fox", images=[cat])
            written(cat, LARGE)
            with pytest.raises(InvalidRequest, match="was changed after the job was made"):
                await job
        assert charged(emulator.stats(), 0)


async def test_bad_row_is_an_outcome_and_the_others_are_bought(cat: Path, tmp_path: Path) -> None:
    rows = [{"prompt": "a fox", "images": [cat]}, {"prompt": "an owl", "images": [tmp_path / "missing.png"]}]
    async with emulated() as emulator, quick(emulator, ledger=tmp_path / "jobs.sqlite") as session:
        found: list[Outcome] = []
        async with session.generate_many(rows, batch="cats", ordered=True) as outcomes:
            found += [outcome async for outcome in outcomes]
        assert [outcome.ok for outcome in found] == [True, False]
        assert "missing.png does not exist" in str(found[1].error)
        assert charged(emulator.stats(), 1)


async def test_row_with_a_url_that_is_signed_again_is_the_same_row(tmp_path: Path) -> None:
    async with emulated() as emulator, quick(emulator, ledger=tmp_path / "jobs.sqlite") as session:
        for signature in "ab":
            query = f"X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=K&X-Amz-Signature={signature * 64}"
            url = f"https://bucket.example/cat.png?{query}&X-Amz-Date=2026{signature}&version=1"
            async with session.generate_many([{"prompt": "a fox", "images": [url]}], batch="cats") as outcomes:
                assert [outcome.ok async for outcome in outcomes] == [True]
        assert charged(emulator.stats(), 1)


async def test_three_generations_chain() -> None:
    async with emulated(check_references=True) as emulator, quick(emulator) as session:
        result: GenerationResult | None = None
        for prompt in ("a cat", "as a watercolour", "at night"):
            result = await session.generate(prompt, images=[result] if result else [])
        assert charged(emulator.stats(), 3)
        assert [len(each) for each in references(emulator)] == [0, 1, 1]


class Publisher:
    """Publishes at made-up URLs, and counts."""

    def __init__(self, url: str = "https://cdn.example/{}.png") -> None:
        self.url = url
        self.published: list[tuple[bytes, str]] = []

    async def publish(self, content: bytes, digest: str) -> str:
        self.published.append((content, digest))
        return self.url.format(digest)


@pytest.mark.parametrize("name", BOTH)
async def test_publisher_gets_each_content_once(name: GatewayName, cat: Path) -> None:
    publisher = Publisher()
    async with emulated() as emulator, quick(emulator, name, references=publisher) as session:
        async with asyncio.TaskGroup() as group:
            for number in range(5):
                group.create_task(session.generate(f"fox {number}", images=[cat, "https://a.example/b.png"]))
        assert publisher.published == [(PNG, sha256(PNG))]
        assert charged(emulator.stats(), 5)
        assert uploads(emulator) == (0, 0)


@pytest.mark.parametrize("url", ["cat.png", "ftp://a.example/{}", "{}{}"])
async def test_publisher_that_fails_buys_nothing(url: str, cat: Path) -> None:
    async with emulated() as emulator, quick(emulator, references=Publisher(url)) as session:
        with pytest.raises(NanoBananaError, match="publisher") as caught:
            await session.generate("a fox", images=[cat])
        assert caught.value.safe_to_repeat
        assert charged(emulator.stats(), 0)


async def test_object_without_publish_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="references must be an object with"):
        Session(ApiMall(api_key="sk-1"), references=object())  # type: ignore[arg-type]


async def test_remembered_uploads_are_in_the_ledger(cat: Path, tmp_path: Path) -> None:
    async with emulated() as emulator:
        async with quick(emulator, ledger=tmp_path / "jobs.sqlite") as session:
            await session.generate("a fox", images=[cat])
            account = session.gateway.account
        ledger = SqliteLedger(tmp_path / "jobs.sqlite", read_only=True)
        await ledger.open()
        upload = await ledger.find_upload(account, sha256(PNG))
        await ledger.aclose()
        assert upload is not None
        assert (upload.digest, upload.size) == (sha256(PNG), len(PNG))
        assert upload.url.startswith(emulator.url)
