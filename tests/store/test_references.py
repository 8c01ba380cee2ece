"""Reference images in an S3-compatible server, in sessions and in the commands."""

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("obstore", reason="obstore is not installed: pip install 'nanobanana-async[store]'")

import obstore
from obstore.store import S3Store

from nanobanana_async import BatchStopped, DownloadError, InvalidRequest, JobState, Session
from nanobanana_async.emulator import Emulator
from nanobanana_async.images import store_images
from tests.cli.batches import Command, emulated
from tests.secrecy.canary import Listener, sightings
from tests.store.server import ACCESS_KEY, FAULTS, S3, SECRET_KEY, Fault, at_random, bucket, environment_of
from tests.store.server import emulated as quick_emulator
from tests.support.command import environment, nanobanana
from tests.support.images import make_image
from tests.support.loopback import BOTH, GatewayName, charged, quick
from tests.support.references import large_png, sha256

pytestmark = pytest.mark.slow

CAT, DOG = make_image(seed=1), make_image(seed=2)
SECRETS = (ACCESS_KEY, SECRET_KEY)


@pytest.fixture
async def s3(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[S3]:
    monkeypatch.setattr(store_images, "_contents", store_images._Contents())
    async with bucket(s3_url) as made:
        for name, value in environment_of(made).items():
            monkeypatch.setenv(name, value)
        yield made


async def put(s3: S3, name: str, content: bytes) -> str:
    """Put an object past the proxy, and return its URL."""
    await obstore.put_async(store_of(s3, s3.upstream), name, content)
    return f"s3://{s3.bucket}/{name}"


def store_of(s3: S3, url: str) -> S3Store:
    """Return a store that tries each request once."""
    return S3Store(
        s3.bucket,
        endpoint=url,
        access_key_id=ACCESS_KEY,
        secret_access_key=SECRET_KEY,
        region="us-east-1",
        client_options={"allow_http": True},
        retry_config={"max_retries": 0},
    )


def references(emulator: Emulator) -> set[str | None]:
    return {digest for job in emulator.jobs() for digest in job.reference_digests}


async def refusal(session: Session, image: Any) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        await session.generate("a fox", images=[image])
    return caught.value


@pytest.mark.parametrize("name", BOTH)
async def test_rows_with_one_object_read_it_once_and_upload_it_once(name: GatewayName, s3: S3) -> None:
    cat = await put(s3, "a/cat.png", CAT)
    async with quick_emulator() as emulator, quick(emulator, name) as session:
        rows = [{"prompt": f"fox {number}", "images": [cat]} for number in range(100)]
        outcomes = [outcome async for outcome in session.generate_many(rows)]
        assert all(outcome.ok for outcome in outcomes)
        assert charged(emulator.stats(), 100)
        assert references(emulator) == {sha256(CAT)}
        assert emulator.stats().uploads == ({sha256(CAT): 1} if name == "apimall" else {})
    assert s3.counts()["GET"] == 1


async def test_upload_of_an_earlier_run_is_used_again_and_the_object_read_once_more(s3: S3, tmp_path: Path) -> None:
    cat = await put(s3, "cat.png", CAT)
    async with quick_emulator() as emulator:
        for key in ("one", "two"):
            async with quick(emulator, ledger=tmp_path / "jobs.sqlite") as session:
                await session.generate("a fox", images=[cat], idempotency_key=key)
        assert (charged(emulator.stats(), 2), emulator.stats().uploads) == (True, {sha256(CAT): 1})
    assert s3.counts()["GET"] == 1


async def test_changed_object_is_another_request(s3: S3) -> None:
    cat = await put(s3, "cat.png", CAT)
    async with quick_emulator() as emulator, quick(emulator) as session:
        await session.generate("a fox", images=[cat], idempotency_key="one")
        await put(s3, "cat.png", DOG)
        with pytest.raises(Exception, match="images differs"):
            await session.generate("a fox", images=[cat], idempotency_key="one")
        await session.generate("a fox", images=[cat])
        assert references(emulator) == {sha256(CAT), sha256(DOG)}


async def test_thirty_megabytes_arrive_whole(s3: S3) -> None:
    content = large_png(30 << 20)
    cat = await put(s3, "cat.png", content)
    async with quick_emulator() as emulator, quick(emulator) as session:
        await session.generate("a fox", images=[cat])
        assert references(emulator) == {sha256(content)}
    assert s3.counts()["GET"] == 2  # too large to stay in memory


async def test_slow_store_does_not_hold_up_the_loop(s3: S3) -> None:
    cat = await put(s3, "cat.png", CAT)
    asked = asyncio.Event()
    s3.faults = lambda *_: asked.set() or "slow"  # type: ignore[func-returns-value]
    async with quick_emulator() as emulator, quick(emulator) as session, asyncio.TaskGroup() as group:
        waiting = group.create_task(session.generate("a fox", images=[cat]))
        await asked.wait()  # the proxy runs in this loop: it would not have been asked
        assert not waiting.done()
        await session.generate("an owl")
    assert references(emulator) == {sha256(CAT)}


async def test_object_that_is_not_there_or_not_allowed_is_named_before_anything_is_bought(s3: S3) -> None:
    cat = await put(s3, "a/cat.png", CAT)
    async with quick_emulator() as emulator, quick(emulator) as session:
        root = f"s3://{s3.bucket}"
        assert f"{root}/b.png does not exist" in str(await refusal(session, f"{root}/b.png"))
        assert f"{root}/a is a folder: name the image" in str(await refusal(session, f"{root}/a"))
        assert "does not exist" in str(await refusal(session, "s3://no-such-bucket/cat.png"))
        s3.faults = lambda *_: "no permission"
        denied = await refusal(session, cat)
        assert f"{cat} does not exist, or these credentials may not read it: no permission (HTTP 403" in str(denied)
        assert not sightings(denied, *SECRETS)
        assert emulator.stats().creates_received == 0


async def test_store_that_fails_is_no_fault_of_the_request(s3: S3) -> None:
    await put(s3, "cat.png", CAT)
    image = (store_of(s3, s3.url), "cat.png")
    s3.faults = lambda *_: "full"
    async with quick_emulator() as emulator, quick(emulator) as session:
        with pytest.raises(DownloadError, match=r"cat\.png can't be read: .* \(HTTP 507") as caught:
            await session.generate("a fox", images=[image])
        assert not sightings(caught.value, *SECRETS)
        batch = session.generate_many([{"prompt": f"fox {number}", "images": [image]} for number in range(40)])
        with pytest.raises(BatchStopped, match="20 rows in a row were not bought for the same reason"):
            _ = [each async for each in batch]
        assert emulator.stats().creates_received == 0


@pytest.mark.parametrize("kinds", [(fault,) for fault in FAULTS] + [FAULTS], ids=lambda kinds: "+".join(kinds))
async def test_store_that_fails_at_random_loses_no_row(kinds: tuple[Fault, ...], s3: S3, tmp_path: Path) -> None:
    cats = [await put(s3, f"cat-{number}.png", make_image(seed=number)) for number in range(12)]
    rows = [{"prompt": "a fox", "key": f"{number}", "images": [cat]} for number, cat in enumerate(cats)]
    log, listener = logging.getLogger(), Listener()
    log.addHandler(listener)
    try:
        async with quick_emulator() as emulator:
            for share in (0.2, 0.0):
                s3.faults = at_random(share, 5, kinds)
                async with quick(emulator, ledger=tmp_path / "jobs.sqlite") as session:
                    outcomes = [each async for each in session.generate_many(rows, batch="spring")]
                assert len(outcomes) == len(rows)
                for outcome in outcomes:
                    assert outcome.ok or isinstance(outcome.error, (InvalidRequest, DownloadError))
                    assert not sightings(outcome.error, *SECRETS)
            assert all(outcome.ok for outcome in outcomes)
            assert charged(emulator.stats(), len(rows))
            assert references(emulator) == {sha256(make_image(seed=number)) for number in range(len(rows))}
    finally:
        log.removeHandler(listener)
    assert not [said for said in listener.said if any(secret in said for secret in SECRETS)]
    written = b"".join(file.read_bytes() for file in tmp_path.iterdir())  # noqa: ASYNC240 - nothing else runs
    assert not [secret for secret in SECRETS if secret.encode() in written]


async def test_object_that_is_cut_short_is_read_on(s3: S3) -> None:
    content = large_png(3 << 20)
    cat, faults = await put(s3, "cat.png", content), list[Fault](["reset"])
    s3.faults = lambda method, _: faults.pop() if faults and method == "GET" else None
    async with quick_emulator() as emulator, quick(emulator) as session:
        await session.generate("a fox", images=[cat])
        assert references(emulator) == {sha256(content)}
    assert [status for method, _, status in s3.requests if method == "GET"] == [0, 206]


async def test_session_that_closes_does_not_wait_for_a_reference(s3: S3) -> None:
    cat = await put(s3, "cat.png", CAT)
    asked = asyncio.Event()
    s3.faults = lambda *_: asked.set() or "slow"  # type: ignore[func-returns-value]
    async with quick_emulator() as emulator:
        async with quick(emulator, "apimall") as session:
            waiting = asyncio.ensure_future(session.submit("a fox", images=[cat]))  # noqa: TID251 - closed meanwhile
            await asked.wait()
        with pytest.raises(Exception, match="the session is closed"):
            await waiting
        assert emulator.stats().creates_received == 0


async def test_job_whose_object_is_gone_before_its_create_is_not_bought(s3: S3) -> None:
    content = large_png(9 << 20)  # too large to stay in memory
    cat = await put(s3, "cat.png", content)
    async with quick_emulator() as emulator, quick(emulator, "defapi") as session:
        s3.faults = lambda method, _: "no permission" if s3.counts()["GET"] else None
        job = await session.submit("a fox", images=[cat])
        with pytest.raises(InvalidRequest, match="may not read it"):
            await job
        assert job.state is JobState.PENDING
        s3.faults = lambda *_: None
        await session.generate("a fox", images=[cat], idempotency_key=job.key)
        assert charged(emulator.stats(), 1)


async def test_generate_takes_objects(s3: S3, tmp_path: Path) -> None:
    cat = await put(s3, "a/cat.png", CAT)
    async with quick_emulator() as emulator:
        environ = {**environment(emulator), **environment_of(s3)}
        said = await nanobanana("generate", "a fox", "--image", cat, "-o", "out", environ=environ, folder=tmp_path)
        assert (said.code, said.out) == (0, "out/a-fox.png\n")
        missing = await nanobanana("generate", "a fox", "--image", f"{cat}x", environ=environ, folder=tmp_path)
        assert (missing.code, f"reference image {cat}x does not exist" in missing.err) == (2, True)
        assert references(emulator) == {sha256(CAT)}


@pytest.fixture
def batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    monkeypatch.chdir(tmp_path)
    return Command(tmp_path, monkeypatch, capsys)


@pytest.mark.parametrize("gateway", BOTH)
async def test_column_names_objects_and_each_is_read_once(gateway: str, batch: Command, s3: S3) -> None:
    cat, dog = await put(s3, "a/cat.png", CAT), await put(s3, "dog.png", DOG)
    file = batch.folder / "copy.png"
    file.write_bytes(CAT)
    rows = [f"fox {number},{cat}" for number in range(20)]
    batch.write("rows.csv", "prompt,image", *rows, f"owl,{dog}", "", f"file,{file.as_uri()}")
    async with emulated(batch, gateway) as emulator:
        said = await batch("rows.csv")
        assert said.code == 0
        assert references(emulator) == {sha256(CAT), sha256(DOG)}
        assert s3.counts()["GET"] == 2
        assert batch.lines()["owl"]["settings"]["images"] == [f"dog.png (sha256:{sha256(DOG)})"]
        assert batch.lines()["file"]["settings"]["images"] == [f"copy.png (sha256:{sha256(CAT)})"]
        assert (await batch("rows.csv")).code == 0
        assert emulator.stats().creates_accepted == 22


async def test_bad_objects_are_named_with_their_rows_before_anything_is_bought(batch: Command, s3: S3) -> None:
    root = f"s3://{s3.bucket}"
    await put(s3, "text.png", b"no image")
    images = (f"{root}/missing.png", f"{root}/text.png", f"{root}/a/", f"s3://{ACCESS_KEY}:x@b/c.png", "r2://b/c.png")
    batch.write("rows.csv", "prompt,image", *(f"{number},{image}" for number, image in enumerate(images)), "good,")
    async with emulated(batch) as emulator:
        said = await batch("rows.csv")
        assert (said.code, emulator.stats().creates_received) == (2, 0)
    whys = ("does not exist", "is no image of a known format", "is a folder", "nothing more", "begins with r2://")
    for number, why in enumerate(whys, 2):
        (line,) = (line for line in said.err.splitlines() if f"rows.csv, row {number}: " in line)
        assert why in line
    assert ACCESS_KEY not in said.err
    assert "nothing was bought: correct 5 rows of 6 first" in said.err


async def test_store_that_fails_stops_the_command_at_its_row(batch: Command, s3: S3) -> None:
    cat = await put(s3, "cat.png", CAT)
    s3.faults = lambda *_: "full"
    batch.write("rows.csv", "prompt,image", "owl,", f"fox,{cat}")
    async with emulated(batch) as emulator:
        said = await batch("rows.csv")
        assert (said.code, emulator.stats().creates_received) == (1, 0)
    assert f"row 3: reference image {cat} can't be read: it answered with an error (HTTP 507" in said.err
