"""Rows a second that are fed into PostgreSQL by one process, and drawn from there by eight, eight at a time.

The server is yours: `NANOBANANA_BENCHMARK_POSTGRES=postgresql://...` names it. The tables go into a schema
`benchmark_...` of their own, which stays: drop it afterwards.
"""

import asyncio
import os
import secrets
import sys
import time
from collections.abc import Iterator

from benchmarks.children import Child, orders, reply
from benchmarks.postgres import VARIABLE
from benchmarks.report import Check, Section, Table
from nanobanana_async import ApiMall, PostgresLedger, Session
from nanobanana_async.keys import batch_key_prefix

ROWS, QUICK_ROWS = 1_000_000, 50_000
FEED_S = 120.0
"""How long a million rows may take."""
PROCESSES, AT_ONCE = 8, 8
DRAWN_EACH = 5000
DRAWS_PER_S = 5000.0
_NAME = "benchmark"


def _rows(count: int) -> Iterator[str]:
    return (f"a lighthouse in fog, seen from a boat, in the light of morning {number}" for number in range(count))


async def _feed(url: str, schema: str, count: int) -> float:
    """Return the rows a second that one process feeds, through a session: read, checked, encoded and stored."""
    gateway = ApiMall(api_key="sk-benchmark-0123456789")
    async with Session(gateway, ledger=PostgresLedger(url, schema=schema)) as session:
        began_at = time.perf_counter()
        report = await session.feed(_rows(count), batch=_NAME)
        took_s = time.perf_counter() - began_at
    assert report.new == count
    return count / took_s


async def _draw(url: str, schema: str, count: int) -> float:
    """Return the rows a second that several processes draw together, once all are connected."""
    asked = {"url": url, "schema": schema, "rows": count}
    children = [Child("benchmarks.feeding", asked) for _ in range(PROCESSES)]
    try:
        for child in children:
            await child.__aenter__()
        for child in children:
            await child.answer(60.0)
        began_at = time.perf_counter()
        for child in children:
            child.send({"go": True})
        answers = [await child.answer(300.0) for child in children]
        took_s = time.perf_counter() - began_at
    finally:
        for child in children:
            await child.__aexit__(None, None, None)
    drawn = [key for answer in answers for key in answer["drawn"]]
    assert len(drawn) == len(set(drawn)) == PROCESSES * count
    return len(drawn) / took_s


async def _measure(url: str, *, quick: bool) -> Section:
    schema, count = f"benchmark_{secrets.token_hex(4)}", QUICK_ROWS if quick else ROWS
    fed = await _feed(url, schema, count)
    drawn = await _draw(url, schema, DRAWN_EACH // 10 if quick else DRAWN_EACH)
    what = f"{PROCESSES} processes draw {AT_ONCE} at a time"
    return Section(
        name="feeding",
        tables=[
            Table(
                title=f"Rows a second, {count:,} rows on PostgreSQL",
                columns=("what", "per second"),
                rows=[("one process feeds", fed), (what, drawn)],
            )
        ],
        checks=[
            Check(what="rows fed a second", value=fed, worst=fed, target=ROWS / FEED_S, at_least=True),
            Check(what="rows drawn a second", value=drawn, worst=drawn, target=DRAWS_PER_S, at_least=True),
        ],
    )


def section(*, quick: bool) -> Section:
    """Measure on the server that the environment names."""
    url = os.environ.get(VARIABLE)
    if not url:
        note = f"not measured: set {VARIABLE} to the URL of a server"
        return Section(name="feeding", tables=[Table(title="Feeding", columns=("",), rows=[(note,)])])
    return asyncio.run(_measure(url, quick=quick))


async def _worker(url: str, schema: str, count: int) -> None:
    ledger = PostgresLedger(url, schema=schema)
    await ledger.open()
    try:
        reply({"ready": True})
        await asyncio.to_thread(sys.stdin.readline)
        drawn: list[str] = []
        while len(drawn) < count:
            draw = await ledger.draw(batch_key_prefix(_NAME), min(AT_ONCE, count - len(drawn)))
            drawn += [row.record.key for row in draw.rows]
        reply({"drawn": drawn})
        await asyncio.to_thread(sys.stdin.readline)  # closing would give its rows back, for the others to draw
    finally:
        await ledger.aclose()


def main() -> None:
    """Be one of the processes that draw."""
    asked = orders()
    asyncio.run(_worker(asked["url"], asked["schema"], asked["rows"]))


if __name__ == "__main__":
    main()
