"""OpenAI's client against `nanobanana serve` in a process that is killed in the middle, with a ledger on PostgreSQL."""

import asyncio
import base64
import hashlib
from datetime import UTC, datetime
from pathlib import Path

import pytest

pytest.importorskip("python_multipart", reason="the extra serve is missing: pip install -e '.[serve]'")

from nanobanana_async import BudgetState
from nanobanana_async.emulator import Emulator, Fixed
from nanobanana_async.ledger.postgres.ledger import PostgresLedger
from tests.serve.serving import client_of
from tests.support.loopback import charged, until
from tests.support.postgres import Server, new_schema
from tests.web import servers

SECRET = "0123456789-abcdef"


@pytest.mark.slow
@pytest.mark.timeout(120)
async def test_orders_of_a_killed_server_are_bought_once_each_when_the_client_retries(
    postgres: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten pairs of equal requests, one of each pair with a key: some run, some wait, some have their answer."""
    monkeypatch.setattr("openai._base_client.MAX_RETRY_DELAY", 0.5)  # instead of 8 s
    async with Emulator(job_limit=5, duration=Fixed(0.4), image_scale=0.02) as emulator:
        schema = new_schema()
        environ = {
            **servers.pointed_at(emulator),
            "NANOBANANA_SERVE_TOKENS": f"ann:{SECRET}:1000/day:group=team",
            "NANOBANANA_LEDGER": f"{postgres.url}&schema={schema}",
        }
        port = servers.free_port()
        server = servers.Server(["-m", "nanobanana_async", "serve", "--port", str(port)], port, environ, tmp_path)
        async with (
            servers.running(server),
            client_of(server.url, token=SECRET, max_retries=200) as client,
            asyncio.TaskGroup() as group,
        ):

            async def bought(number: int) -> str:
                keys = {"Idempotency-Key": f"order-{number}"} if number % 2 else {}
                answer = await client.images.generate(prompt=f"fox {number // 2}", extra_headers=keys)
                assert answer.data is not None
                return hashlib.sha256(base64.b64decode(answer.data[0].b64_json or "")).hexdigest()

            tasks = [group.create_task(bought(number)) for number in range(20)]
            await until(lambda: emulator.stats().creates_accepted >= 8, timeout_s=30)
            await server.kill()
            at_the_kill = emulator.stats().creates_accepted
            await server.start()
        assert 8 <= at_the_kill < 20
        assert len({task.result() for task in tasks}) == 20
        assert charged(emulator.stats(), 20)
        assert SECRET not in server.log_text()
        assert await budgets_of(postgres.url, schema) == {"ann": (160, 0, 840)}


async def budgets_of(url: str, schema: str) -> dict[str, tuple[object, object, object]]:
    """Return what each budget has spent, reserved and left."""
    ledger = PostgresLedger(url, schema=schema, read_only=True)
    await ledger.open()
    try:
        states: list[BudgetState] = list(await ledger.budgets(datetime.now(UTC)))
        return {state.name: (state.spent, state.reserved, state.left) for state in states}
    finally:
        await ledger.aclose()
