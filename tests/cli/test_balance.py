"""`nanobanana balance`, the balance in a dry run, and on the display of a batch."""

import asyncio
import json
from decimal import Decimal

import pytest
from attrs import evolve

from nanobanana_async import Session, SessionStats
from nanobanana_async.cli import balance as balance_command
from nanobanana_async.cli.balance import watch_balance
from nanobanana_async.cli.batch.display import BatchDisplay
from nanobanana_async.emulator import API_KEY, Emulator
from nanobanana_async.testing import FakeTransport
from tests.cli.batches import Command, emulated
from tests.cli.test_batch_display import STATS, Scene
from tests.support.command import environment, nanobanana
from tests.support.fakes import apimall, virtually
from tests.support.replies import json_reply, refused

CLOSED = "http://127.0.0.1:9"


async def test_command_prints_the_number_of_either_gateway() -> None:
    async with Emulator(credits=Decimal("12.5"), web_credits=Decimal(7)) as emulator:
        environ = environment(emulator, DEFAPI_API_KEY=API_KEY)
        for name in ("apimall", "defapi"):
            said = await nanobanana("balance", "--gateway", name, environ=environ)
            assert (said.code, said.out, said.err) == (0, "12.5\n", "")
            said = await nanobanana("balance", "--gateway", name, "--json", environ=environ)
            facts = json.loads(said.out)
            assert (facts["gateway"], facts["credits"]) == (name, 12.5)
            assert API_KEY not in said.out


async def test_refused_key_is_one_line_on_stderr() -> None:
    async with Emulator() as emulator:
        said = await nanobanana("balance", environ=environment(emulator, APIMALL_API_KEY="sk-another-0123456789"))
    assert (said.code, said.out) == (1, "")
    assert "API key" in said.complaint
    assert "sk-another" not in said.err


async def test_dry_run_prints_the_balance_beside_the_estimate(batch: Command) -> None:
    file = batch.prompts(4)
    async with emulated(batch, credits=Decimal(30)) as emulator:
        said = await batch(file, "--dry-run")
        assert said.out.splitlines()[2:4] == ["credits\tabout 32 (estimate)", "balance\t30"]
        assert (said.code, said.err, emulator.stats().creates_received) == (0, "", 0)


async def test_dry_run_that_would_buy_nothing_asks_no_gateway(batch: Command) -> None:
    file = batch.prompts(1)
    async with emulated(batch) as emulator:
        assert (await batch(file)).code == 0
        before = emulator.stats().requests
        said = await batch(file, "--dry-run")
        assert ("credits\t0\n" in said.out, "balance" in said.out, emulator.stats().requests) == (True, False, before)


async def test_dry_run_works_without_the_gateway(batch: Command) -> None:
    file = batch.prompts(4)
    batch.patch.setattr("nanobanana_async.cli.batch.dry_run.BALANCE_S", 0.5)
    for name, value in environment(APIMALL_API_KEY=API_KEY, NANOBANANA_BASE_URL=CLOSED).items():
        batch.patch.setenv(name, value)
    said = await batch(file, "--dry-run")
    assert (said.code, "credits\tabout 32 (estimate)" in said.out, "balance" in said.out) == (0, True, False)
    assert said.complaint.startswith("nanobanana: the balance is unknown: ")


async def test_dry_run_of_a_refused_key_still_prints_the_estimate(batch: Command) -> None:
    file = batch.prompts(4)
    async with emulated(batch):
        batch.patch.setenv("APIMALL_API_KEY", "sk-another-0123456789")
        said = await batch(file, "--dry-run")
    assert (said.code, "credits\tabout 32 (estimate)" in said.out, "balance" in said.out) == (0, True, False)
    assert "the balance is unknown: " in said.complaint


async def test_dry_run_with_the_built_in_emulator_asks_no_gateway(batch: Command) -> None:
    said = await batch(batch.prompts(1), "--dry-run", "--gateway", "emulator")
    assert (said.code, "balance" in said.out, said.err) == (0, False, "")
    assert said.out.startswith("rows\t1\nto buy\t1\ncredits\tabout 8 (estimate)\n")


def shown(display_balance: Decimal | None, stats: SessionStats) -> str:
    scene = Scene(300)
    scene.display.balance = display_balance
    scene.display.tick(stats)
    return scene.rendered(200)[2]


def test_display_shows_the_balance_that_creates_state_or_else_the_one_that_was_read() -> None:
    stated = evolve(STATS, credits_remaining=Decimal("1104.50"))
    assert shown(None, STATS).startswith("16.5 credits spent, about")
    assert shown(Decimal(1112), STATS).startswith("16.5 credits spent, balance 1,112, about")
    assert shown(Decimal(1112), stated).startswith("16.5 credits spent, balance 1,104.5, about")


@pytest.mark.parametrize(
    ("total", "terminal", "shows"), [(3, True, True), (3, False, False), (300, False, True), (None, False, True)]
)
def test_balance_is_read_only_where_it_is_shown(total: int | None, terminal: bool, shows: bool) -> None:
    assert Scene(total, terminal=terminal).display.shows_credits is shows


def watched(session: Session) -> tuple[BatchDisplay, FakeTransport]:
    transport = session._components.transport
    assert isinstance(transport, FakeTransport)
    return Scene(3).display, transport


@virtually
async def test_balance_of_a_batch_is_read_once_a_minute() -> None:
    amounts = iter((112, None, 96))

    def answer(_: object) -> object:
        amount = next(amounts, 96)
        data = {"api_credits": amount}
        return refused(503) if amount is None else json_reply(200, {"success": True, "data": data})

    async with apimall(FakeTransport(answer)) as session:  # type: ignore[arg-type]
        display, transport = watched(session)
        async with asyncio.TaskGroup() as group:
            watching = group.create_task(watch_balance(session, display))
            await asyncio.sleep(balance_command.FIRST_S + 1)
            assert display.balance == 112
            await asyncio.sleep(3 * balance_command.AGAIN_S)
            assert display.balance == 96
            watching.cancel()
        assert len(transport.requests) <= 5
