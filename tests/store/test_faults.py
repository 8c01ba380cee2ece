"""A store that spoils a fifth of the requests: a row ends with its object or a reason, and the next run saves it."""

from pathlib import Path

import pytest

pytest.importorskip("obstore", reason="obstore is not installed: pip install 'nanobanana-async[store]'")

from nanobanana_async import Outcome, SaveError
from tests.store.server import FAULTS, Fault, at_random, bucket, emulated, environment_of
from tests.store.shelves import digest
from tests.support.loopback import charged, quick

pytestmark = pytest.mark.slow

ROWS = [{"prompt": f"a fox {number}", "key": f"fox-{number}"} for number in range(24)]
SHARE = 0.2


@pytest.mark.parametrize("kinds", [(fault,) for fault in FAULTS] + [FAULTS], ids=lambda kinds: "+".join(kinds))
async def test_failing_store_loses_no_row(
    kinds: tuple[Fault, ...], s3_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with bucket(s3_url) as s3, emulated() as emulator:
        for name, value in environment_of(s3).items():
            monkeypatch.setenv(name, value)

        async def run() -> list[Outcome]:
            async with quick(emulator, ledger=tmp_path / "jobs.sqlite") as session:
                batch = session.generate_many(ROWS, batch="spring", save_to=f"s3://{s3.bucket}/images")
                return [outcome async for outcome in batch]

        faults = at_random(SHARE, 7, kinds)
        # The check before the first purchase is spared: it would stop the run, which is another test.
        s3.faults = lambda method, name: None if "check-" in name else faults(method, name)
        outcomes = await run()
        assert len(outcomes) == len(ROWS)
        for outcome in outcomes:
            assert bool(outcome.saved) == (outcome.error is None)
            assert outcome.result is not None
            assert outcome.error is None or (isinstance(outcome.error, SaveError) and outcome.error.one_image)
        spoilt = [status for *_, status in s3.requests if status in (0, 403, 503, 507)]
        assert spoilt or kinds == ("slow",)
        if kinds == ("no permission",):  # the others are tried again by the store's client
            assert any(outcome.error for outcome in outcomes)

        s3.faults = lambda *_: None
        again = await run()
        assert [outcome.error for outcome in again] == [None] * len(ROWS)
        images = await s3.images()
        assert len(images) == len(ROWS)
        assert {f"s3://{s3.bucket}/{name}" for name in images} == {url for each in again for url in each.saved}
        assert all(facts["sha256"] == digest(content) for content, facts in images.values())
        assert charged(emulator.stats(), len(ROWS))
