"""An S3-compatible server: what an object has, what a run asks for, and stores that can't be used."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("obstore", reason="obstore is not installed: pip install 'nanobanana-async[store]'")

from nanobanana_async import BatchStopped, Outcome, SaveError, Session
from nanobanana_async.emulator import Emulator
from nanobanana_async.images.target import as_target
from tests.batch.fakes import slots
from tests.store.server import S3, bucket, emulated, environment_of
from tests.store.shelves import IMAGES, bought, digest, link
from tests.support.images import make_image, opened
from tests.support.loopback import charged, quick

pytestmark = pytest.mark.slow

ONE, TWO, *_ = IMAGES
ROWS = [{"prompt": f"a fox {number}", "key": f"fox-{number}"} for number in range(8)]


@pytest.fixture
async def s3(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[S3]:
    async with bucket(s3_url) as made:
        for name, value in environment_of(made).items():
            monkeypatch.setenv(name, value)
        yield made


async def run(session: Session, s3: S3, rows: Any = ROWS, **options: Any) -> tuple[list[Outcome], BatchStopped | None]:
    outcomes: list[Outcome] = []
    batch = session.generate_many(rows, save_to=f"s3://{s3.bucket}/spring", **options)
    try:
        async for outcome in batch:
            outcomes.append(outcome)  # noqa: PERF401 - those before the error count
    except BatchStopped as stopped:
        return outcomes, stopped
    return outcomes, None


async def test_object_has_its_type_and_digest_and_its_line(s3: S3) -> None:
    target = as_target("save_to", f"s3://{s3.bucket}/spring")
    contents = {kind: make_image(kind) for kind in ("png", "jpeg", "webp")}
    async with opened() as downloader:
        for kind, content in contents.items():
            await downloader.save(link(content), target, kind, bought(kind))
    objects = await s3.objects()
    lines = [json.loads(content) for name, (content, _) in objects.items() if "/.nanobanana/" in name]
    for kind, name in (("png", "png.png"), ("jpeg", "jpeg.jpg"), ("webp", "webp.webp")):
        content, facts = objects[f"spring/{name}"]
        assert content == contents[kind]
        assert (facts["Content-Type"], facts["sha256"]) == (f"image/{kind}", digest(content))
        (line,) = (line for line in lines if line["file_name"] == name)
        assert (line["job_key"], line["sha256"], line["prompt"]) == (kind, digest(content), "a fox")
    assert len(objects) == 6


async def test_image_takes_three_requests_and_two_to_find_it_again(s3: S3) -> None:
    target = as_target("save_to", f"s3://{s3.bucket}/spring")
    async with opened() as downloader:
        assert await downloader.find_saved(target, bought("a")) is None
        await downloader.save(link(ONE), target, "fox", bought("a"))
        assert s3.counts() == {"GET": 1, "PUT": 2}
        s3.requests.clear()
        assert await downloader.find_saved(target, bought("a")) is not None
        assert s3.counts() == {"GET": 1, "HEAD": 1}


async def test_hosts_with_other_names_for_an_image_end_with_one_object(s3: S3) -> None:
    target = as_target("save_to", f"s3://{s3.bucket}/spring")
    async with opened() as one, opened() as two, asyncio.TaskGroup() as group:
        saves = [
            group.create_task(host.save(link(ONE), target, name, bought("a")))
            for host, name in ((one, "0001-fox"), (two, "0002-fox"))
        ]
    assert len({save.result().place for save in saves}) == 1
    assert len(await s3.images()) == 1


async def test_link_that_encodes_an_image_for_each_download_makes_one_object(s3: S3) -> None:
    target = as_target("save_to", f"s3://{s3.bucket}/spring")
    async with opened() as one, opened() as two, asyncio.TaskGroup() as group:
        saves = [
            group.create_task(host.save(link(content), target, name, bought("a")))
            for host, content, name in ((one, ONE, "0001-fox"), (two, TWO, "0002-fox"))
        ]
    assert len({save.result() for save in saves}) == 1
    ((content, _),) = (await s3.images()).values()
    assert digest(content) == saves[0].result().sha256
    async with opened() as three:
        assert await three.find_saved(target, bought("a")) == saves[0].result()


@pytest.mark.parametrize("line", [b"", b"[]", b"{}", b'{"file_name": "../x.png", "sha256": "a"}', b'{"file_name": 5}'])
async def test_line_of_another_program_is_replaced(s3: S3, line: bytes) -> None:
    target = as_target("save_to", f"s3://{s3.bucket}/spring")
    assert not isinstance(target, Path)
    async with opened() as downloader:
        saved = await downloader.save(link(ONE), target, "fox", bought("a"))
        (name,) = (name for name in await s3.objects() if name.endswith(".json"))
        await target.put(name.removeprefix("spring/"), line, "application/json", overwrite=True)
        assert await downloader.find_saved(target, bought("a")) is None
        assert await downloader.save(link(ONE), target, "fox", bought("a")) == saved
        assert await downloader.find_saved(target, bought("a")) == saved
    assert len(await s3.images()) == 1


async def test_kill_between_line_and_image_leaves_no_second_object(s3: S3) -> None:
    target = as_target("save_to", f"s3://{s3.bucket}/spring")
    s3.faults = lambda method, name: "no permission" if method == "PUT" and name.endswith(".png") else None
    async with opened() as downloader:
        with pytest.raises(SaveError, match=r"can't be written: no permission \(HTTP 403, AccessDenied\): set cred"):
            await downloader.save(link(ONE), target, "0001-fox", bought("a"))
        s3.faults = lambda *_: None
        assert await downloader.find_saved(target, bought("a")) is None
        saved = await downloader.save(link(ONE), target, "0002-fox", bought("a"))  # a row was inserted before it
        assert await downloader.find_saved(target, bought("a")) == saved
    assert len(await s3.images()) == 1


async def test_without_the_right_to_list_a_missing_object_is_missing(s3: S3) -> None:
    """S3 answers 403 and not 404 to a client that may not list."""
    known: set[str] = set()

    def denied(method: str, name: str) -> Any:
        known.update([name] if method == "PUT" else [])
        return "no permission" if name not in known and method in ("GET", "HEAD") else None

    s3.faults = denied
    async with emulated() as emulator, quick(emulator) as session:
        outcomes, stopped = await run(session, s3)
    assert stopped is None
    assert all(outcome.ok for outcome in outcomes)
    assert len(await s3.images()) == len(ROWS)


async def test_second_run_on_another_host_puts_nothing(s3: S3, tmp_path: Path) -> None:
    puts: list[int] = []
    async with emulated() as emulator:
        for _ in range(2):
            s3.requests.clear()
            async with quick(emulator, ledger=tmp_path / "jobs.sqlite") as session:
                outcomes, _ = await run(session, s3, batch="spring", ordered=True)
            puts.append(s3.counts()["PUT"])
            saved = [outcome.saved for outcome in outcomes]
            assert saved == [(f"s3://{s3.bucket}/spring/fox-{number}.png",) for number in range(len(ROWS))]
        assert charged(emulator.stats(), len(ROWS))
    assert puts == [2 + 2 * len(ROWS), 0]


async def nothing_is_bought(emulator: Emulator, s3: S3) -> SaveError:
    async with quick(emulator) as session:
        outcomes, stopped = await run(session, s3)
    assert (outcomes, emulator.stats().creates_received) == ([], 0)
    assert stopped is not None
    assert isinstance(stopped.cause, SaveError)
    return stopped.cause


async def test_store_that_refuses_is_found_before_the_first_purchase(s3: S3) -> None:
    async with emulated() as emulator:
        s3.faults = lambda method, _: "no permission" if method == "PUT" else None
        assert "can't be written: no permission (HTTP 403" in str(await nothing_is_bought(emulator, s3))
        s3.faults = lambda method, _: "full" if method == "PUT" else None
        assert "can't be written: it answered with an error (HTTP 507" in str(await nothing_is_bought(emulator, s3))
        s3.faults = lambda method, _: "no permission" if method == "GET" else None
        assert "can't be read: let these credentials read" in str(await nothing_is_bought(emulator, s3))
        s3.faults = lambda *_: None
        s3.drop_header = "If-None-Match"
        assert "the store overwrites objects that exist" in str(await nothing_is_bought(emulator, s3))
        bucket_name, s3.bucket = s3.bucket, "no-such-bucket"
        assert "it has no bucket or container of this name" in str(await nothing_is_bought(emulator, s3))
        s3.bucket = bucket_name
    assert await s3.objects() == {}


async def test_twenty_rows_in_a_row_that_can_not_be_saved_stop_the_batch(s3: S3) -> None:
    s3.faults = lambda method, name: "no permission" if (method, name[-4:]) == ("PUT", ".png") else None
    rows = [f"a fox {number}" for number in range(120)]
    async with emulated() as emulator, quick(emulator, concurrency=slots(5)) as session:
        outcomes, stopped = await run(session, s3, rows)
        assert emulator.stats().creates_accepted == len(outcomes) < 90
    assert stopped is not None
    assert isinstance(stopped.cause, SaveError)
    assert stopped.cause.message.startswith("20 rows in a row were bought and have no saved images for the same reason")
    assert len(outcomes) >= 20


async def test_check_puts_one_object_and_removes_it(s3: S3) -> None:
    async with opened() as downloader:
        await downloader.check_target(as_target("save_to", f"s3://{s3.bucket}/spring"))
    assert s3.counts() == {"PUT": 2, "GET": 1, "POST": 1}  # the second put must fail; S3 deletes by a POST
    assert await s3.objects() == {}


async def test_session_that_closes_does_not_wait_for_a_store(s3: S3) -> None:
    asked = asyncio.Event()

    def hang(method: str, name: str) -> Any:
        if name.endswith(".png"):
            asked.set()
            return "slow"
        return None

    s3.faults = hang
    async with emulated() as emulator:
        session = quick(emulator)
        await session.open()
        result = await session.generate("a fox")
        saving = asyncio.ensure_future(session.save(result, f"s3://{s3.bucket}/x"))  # noqa: TID251 - closed meanwhile
        await asked.wait()
        await session.aclose()
        with pytest.raises(Exception, match="the session is closed"):
            await saving
