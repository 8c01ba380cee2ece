"""A changed API key: a named account keeps its jobs, and no error message leads to a second purchase."""

import math
import re
from pathlib import Path

import attrs
import pytest

from nanobanana_async import ApiMall, ConfigurationError, DefApi, IdempotencyConflict, Session, SqliteLedger
from nanobanana_async.gateways.base import GatewaySettings
from nanobanana_async.testing import FakeTransport
from tests.support.fakes import REAL_TIME, FakeGateway

OLD, NEW = "sk-old-0123456789", "sk-new-0123456789"


def session_of(settings: GatewaySettings, gateway: FakeGateway, path: Path) -> Session:
    quick = attrs.evolve(settings, expected_job_s=0.01)
    transport = FakeTransport(gateway.answer, latency_s=0.001)
    return Session(quick, ledger=path, http=transport, polling=REAL_TIME)  # type: ignore[arg-type]


async def leave_running(settings: GatewaySettings, gateway: FakeGateway, path: Path) -> None:
    """Buy two rows, and a job that runs until `goes_on`."""
    gateway.job_s = 0.0
    async with session_of(settings, gateway, path) as session:
        assert [outcome.ok async for outcome in session.generate_many(["a", "b"], batch="spring")] == [True, True]
        gateway.job_s = math.inf
        await (await session.submit("c", idempotency_key="order-17")).wait_for_task_id()


async def goes_on(settings: GatewaySettings, gateway: FakeGateway, path: Path) -> None:
    async with session_of(settings, gateway, path) as session:
        assert [job.key for job in await session.resume()] == ["order-17"]
        gateway.job_s = 0.0
        assert (await session.generate("c", idempotency_key="order-17")).task_id == "t3"
        outcomes = [outcome async for outcome in session.generate_many(["a", "b", "new"], batch="spring")]
        assert all(outcome.ok for outcome in outcomes)


@pytest.mark.parametrize("kind", [ApiMall, DefApi])
async def test_named_account_continues_with_a_new_api_key(tmp_path: Path, kind: type[ApiMall] | type[DefApi]) -> None:
    gateway, path = FakeGateway(), tmp_path / "jobs.sqlite"
    await leave_running(kind(api_key=OLD, account="studio"), gateway, path)
    await goes_on(kind(api_key=NEW, account="studio"), gateway, path)
    assert gateway.sold == 4
    assert OLD.encode() not in path.read_bytes()


@pytest.mark.parametrize("kind", [ApiMall, DefApi])
@pytest.mark.parametrize("name", ["", "studio"])
async def test_unnamed_account_conflict_names_both_remedies(
    tmp_path: Path, kind: type[ApiMall] | type[DefApi], name: str
) -> None:
    gateway, path = FakeGateway(), tmp_path / "jobs.sqlite"
    old, new = kind(api_key=OLD), kind(api_key=NEW, account=name)
    await leave_running(old, gateway, path)
    async with session_of(new, gateway, path) as session:
        assert await session.resume() == []
        with pytest.raises(IdempotencyConflict) as caught:
            await session.generate("c", idempotency_key="order-17")
        errors: list[IdempotencyConflict | ConfigurationError] = [caught.value]
        job = await session.job("order-17")
        assert job is not None
        with pytest.raises(ConfigurationError) as refused:
            await job
        errors.append(refused.value)
        async for outcome in session.generate_many(["a", "b"], batch="spring"):
            assert isinstance(outcome.error, IdempotencyConflict)
            errors.append(outcome.error)
        for error in errors:
            assert not error.safe_to_repeat
            assert f"hand-over --from {old.account} --to {new.account} --ledger {path}" in str(error)
            assert "NANOBANANA_ACCOUNT" in str(error)
            assert not re.search("use another", str(error))
        assert gateway.sold == 3
    ledger = SqliteLedger(path)
    await ledger.open()
    assert await ledger.hand_over(new.name, old.account, new.account) == 3
    await ledger.aclose()
    await goes_on(new, gateway, path)
    assert gateway.sold == 4


async def test_forgotten_account_name_is_in_the_error(tmp_path: Path) -> None:
    gateway = FakeGateway(job_s=0.0)
    async with session_of(ApiMall(api_key=OLD, account="studio"), gateway, tmp_path / "j") as session:
        await session.generate("c", idempotency_key="order-17")
    async with session_of(ApiMall(api_key=NEW), gateway, tmp_path / "j") as session:
        with pytest.raises(IdempotencyConflict, match='account="studio" or NANOBANANA_ACCOUNT=studio'):
            await session.generate("c", idempotency_key="order-17")
    async with session_of(DefApi(api_key=NEW), gateway, tmp_path / "j") as session:
        with pytest.raises(IdempotencyConflict, match="another account, at gateway apimall and not defapi"):
            await session.generate("c", idempotency_key="order-17")
