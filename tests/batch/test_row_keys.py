"""The user's own keys in a named batch, mappings as requests, and outcomes as JSON."""

import json
from decimal import Decimal
from importlib import import_module
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from nanobanana_async import ConfigurationError, IdempotencyConflict, JobState, SqliteLedger
from nanobanana_async.testing import FakeTransport
from tests.batch.fakes import PromptGateway, all_of, on_file, run_batch, transport_to
from tests.support.fakes import apimall, virtually


async def test_row_of_a_named_batch_is_found_by_its_own_key(tmp_path: Path) -> None:
    path, gateway = tmp_path / "jobs.sqlite", PromptGateway(job_s=0.01)
    uuid = UUID(int=7)
    rows = [{"prompt": "a", "key": "Größe 1"}, {"prompt": "b", "key": 17}, {"prompt": "c", "key": uuid}, "d"]
    outcomes = await run_batch(path, gateway, rows)
    assert [outcome.row_key for outcome in outcomes] == ["Größe 1", "17", str(uuid), None]
    async with on_file(path, transport_to(gateway)) as session:
        for key, outcome in zip(("Größe 1", 17, uuid), outcomes, strict=False):
            job = await session.job(key, batch="spring")  # type: ignore[arg-type] # as in the rows
            assert job is not None
            assert job.key == outcome.key
        assert await session.job("Größe 1") is None
        assert await session.job("Größe 1", batch="autumn") is None
        found = await session.job(outcomes[0].key)
        assert found is not None
        assert (await found).task_id == outcomes[0].unwrap().task_id
    assert len(gateway.sold) == 4


async def test_ledger_knows_its_named_batches(tmp_path: Path) -> None:
    path, gateway = tmp_path / "jobs.sqlite", PromptGateway(job_s=0.01)
    await run_batch(path, gateway, ["a"])
    await run_batch(path, gateway, ["a", "b"], batch="autumn")
    ledger = SqliteLedger(path, read_only=True)
    await ledger.open()
    try:
        assert len(await ledger.batch_prefixes()) == 2
    finally:
        await ledger.aclose()


@virtually
async def test_generate_takes_a_mapping_with_its_key() -> None:
    gateway = PromptGateway()
    async with apimall(FakeTransport(gateway.answer)) as session:
        row = {"prompt": "a fox", "key": 17, "metadata": 5, "num_images": 2.0}
        result = await session.generate(row)
        assert (result.key, result.request and result.request.num_images) == ("17", 2)
        assert (await session.generate("a fox", num_images=2, idempotency_key="17")).task_id == result.task_id
        assert (await (await session.submit(row))).task_id == result.task_id
        with pytest.raises(IdempotencyConflict):
            await session.generate({"prompt": "a lynx", "key": "17"})
        with pytest.raises(ConfigurationError, match="pass idempotency_key or that, not both"):
            await session.generate(row, idempotency_key="k")
        with pytest.raises(ConfigurationError, match="resolution: put it into the mapping"):
            await session.generate(row, resolution="2K")
    assert gateway.sold == ["a fox"]


@virtually
async def test_fields_at_their_defaults_can_be_passed_with_a_request() -> None:
    async with apimall(FakeTransport(PromptGateway().answer)) as session:
        result = await session.generate({"prompt": "a fox"}, num_images=1, aspect_ratio=None, images=())
        assert result.images
        with pytest.raises(Exception, match="num_images must be a whole number"):
            await session.generate("a fox", num_images=True)


@virtually
async def test_outcomes_and_results_are_json() -> None:
    gateway = PromptGateway()
    async with apimall(FakeTransport(gateway.answer)) as session:
        rows: list[Any] = [
            {"prompt": "a fox", "key": "k", "metadata": {"price": Decimal("0.5"), "of": UUID(int=1)}},
            "",
        ]
        good, bad = await all_of(session.generate_many(rows, ordered=True))
    facts = json.loads(json.dumps(good.to_dict(), allow_nan=False))
    result = facts["result"]
    assert (facts["index"], facts["row_key"], facts["state"], facts["error"]) == (0, "k", "succeeded", None)
    assert facts["metadata"] == {"price": 0.5, "of": str(UUID(int=1))}
    assert result["credits"] == float(good.unwrap().credits or 0)
    assert result["completed_at"] == good.unwrap().completed_at.isoformat()  # type: ignore[union-attr]
    assert result["images"] == [{"index": 0, "url": good.unwrap().url}]
    assert (result["request"]["prompt"], "raw" in result) == ("a fox", False)
    assert json.loads(json.dumps(bad.to_dict()))["error"] == {
        "kind": "InvalidRequest",
        "message": "prompt is empty (change the request)",
    }


def test_state_of_a_job_is_its_text() -> None:
    assert JobState("running") is JobState.RUNNING
    assert f"{JobState.RUNNING}" == json.loads(json.dumps(JobState.RUNNING)) == "running"
    assert {JobState.RUNNING: 1}["running"] == 1  # type: ignore[index]


@pytest.mark.slow
@pytest.mark.timeout(180)  # on a busy machine: all that the package imports is parsed
@pytest.mark.parametrize("call", ["session.generate('x', ", "session.submit('x', ", "ImageRequest('x', "])
def test_editors_complete_the_fields_of_a_request(call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jedi = import_module("jedi")
    # Not that of the user, where a process that was killed leaves a file that no other can read.
    monkeypatch.setattr(jedi.settings, "cache_directory", str(tmp_path))
    line = f"{call}aspect_"
    source = f"from nanobanana_async import ImageRequest, Session\nsession = Session()\n{line}"
    found = jedi.Script(source).complete(3, len(line))
    assert [completion.name for completion in found] == ["aspect_ratio="]
