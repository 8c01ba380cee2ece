"""Sidecars in a folder: beside each image, with what was asked for and what it cost; the image stays as it is."""

import json
from pathlib import Path

import pytest

from nanobanana_async import ConfigurationError
from nanobanana_async.emulator import Emulator, Fixed
from tests.support.loopback import quick

pytestmark = pytest.mark.slow


async def test_each_image_gets_a_sidecar_and_is_not_changed(tmp_path: Path) -> None:
    async with Emulator(duration=Fixed(0.01), image_scale=0.05) as emulator, quick(emulator) as session:
        result = await session.generate("ein Gewächshaus", num_images=2, aspect_ratio="16:9", resolution="2K")
        plain = await session.save(result, tmp_path / "plain")
        described = await session.save(result, tmp_path / "described", sidecar=True)
    assert [path.read_bytes() for path in plain] == [path.read_bytes() for path in described]
    for number, path in enumerate(described, 1):
        facts = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        assert (facts["file_name"], facts["image"], facts["prompt"]) == (path.name, number, "ein Gewächshaus")
        assert (facts["key"], facts["task_id"], facts["credits"]) == (
            result.key,
            result.task_id,
            result.to_dict()["credits"],
        )
        settings = facts["settings"]
        assert (settings["aspect_ratio"], settings["resolution"], settings["model"]) == (
            "16:9",
            "2K",
            "nano-banana-pro",
        )
        assert f"{facts['sha256']}  {path.name}\n" in (tmp_path / "described" / "SHA256SUMS").read_text()
        assert facts["completed_at"] == result.to_dict()["completed_at"]
    assert {path.suffix for path in (tmp_path / "plain").iterdir()} == {".png", ".jsonl", ""}


async def test_sidecars_of_a_batch_have_the_keys_of_rows_and_come_later_too(tmp_path: Path) -> None:
    rows = [{"prompt": "a fox", "key": "fox"}, {"prompt": "an owl", "key": "owl"}]
    async with Emulator(duration=Fixed(0.01), image_scale=0.05) as emulator:
        for sidecar in (False, True, True):
            async with quick(emulator, ledger=tmp_path / "jobs.sqlite") as session:
                batch = session.generate_many(rows, batch="spring", save_to=tmp_path / "out", sidecar=sidecar)
                assert all([outcome.ok async for outcome in batch])
            found = sorted(path.name for path in (tmp_path / "out").glob("*.json"))
            assert found == (["fox.json", "owl.json"] if sidecar else [])
        assert emulator.stats().creates_accepted == 2
    assert json.loads((tmp_path / "out" / "owl.json").read_text())["row_key"] == "owl"
    assert not list((tmp_path / "out").glob(".nanobanana-*"))


async def test_sidecar_that_is_no_switch_is_refused(tmp_path: Path) -> None:
    async with Emulator(duration=Fixed(0.01), image_scale=0.05) as emulator, quick(emulator) as session:
        result = await session.generate("a fox")
        with pytest.raises(ConfigurationError, match="sidecar must be True or False"):
            await session.save(result, tmp_path, sidecar="yes")  # type: ignore[call-overload]
        with pytest.raises(ConfigurationError, match="sidecar must be True or False"):
            session.generate_many(["a fox"], save_to=tmp_path, sidecar=1)  # type: ignore[arg-type]
