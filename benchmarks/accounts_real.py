"""One seed of each account as sold over real sockets and in real time: all rows at once, about nine minutes."""

import asyncio
from collections.abc import Sequence

from benchmarks.accounts import CREATES, FREE, MEDIUM, SMALL, Account, Found, variants_of
from benchmarks.report import Cell, Check, Section, Table
from benchmarks.simulating import throw_in
from nanobanana_async import ApiMall, Session
from nanobanana_async.emulator import API_KEY, Emulator


async def _run(account: Account) -> Found:
    """Run a session that knows nothing against an emulator of its own."""
    async with Emulator(**account.options()) as emulator:
        async with Session(ApiMall(api_key=API_KEY, base_url=emulator.url)) as session:
            began = emulator.now()
            await throw_in(session, account.jobs)
            makespan_s = emulator.now() - began
        return Found.of(account, emulator.stats(), makespan_s)


async def _run_all(accounts: Sequence[Account]) -> list[Found]:
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(_run(account)) for account in accounts]
    return [task.result() for task in tasks]


def section(*, quick: bool) -> Section:
    """Run all accounts but the largest side by side: they wait most of the time."""
    accounts = [
        variant
        for account in ((SMALL,) if quick else (SMALL, MEDIUM, FREE, CREATES))
        for variant in variants_of(account)
    ]
    rows: list[Sequence[Cell]] = []
    checks: list[Check] = []
    for account, found in zip(accounts, asyncio.run(_run_all(accounts)), strict=True):
        rows.append([account.title, account.bound, found.ratio, 100 * found.refused, found.polls, found.delay_s])
        checks.append(Check(what=f"{account.title}: makespan / ideal", value=found.ratio, target=account.cold))
        checks.append(Check(what=f"{account.title}: refused", value=found.refused, target=account.refused))
    columns = ("account", "bound", "makespan / ideal", "refused %", "polls a job", "mean delay s")
    title = "Accounts as sold, over real sockets in real time, without knowledge: one seed"
    return Section(name="accounts-real", tables=[Table(title=title, columns=columns, rows=rows)], checks=checks)
