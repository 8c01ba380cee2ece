"""Ten minutes in which every request fails, on virtual time: `python -m tests.faults outage`.

A batch without end keeps 20 slots busy. The same session runs twice, with and without the outage: what is sent during
it is compared with what the other one sends in the same ten minutes, and after it the slots are counted.
"""

import asyncio
import functools
import itertools
import logging
import math
from typing import Any

from attrs import define, field

from nanobanana_async import JobUncertain, RetryPolicy, TransportError
from nanobanana_async.gateways.contract import HttpRequest, HttpResponse
from nanobanana_async.testing import FakeTransport, Reply, run_virtual
from tests.support.fakes import FakeGateway, apimall, defapi, now
from tests.support.loopback import GatewayName

SLOTS, JOB_S = 20, 20.0
BEGINS_S, ENDS_S, STOPS_S = 150.0, 750.0, 850.0
FILLED_WITHIN_S = RetryPolicy().max_backoff_s + 1.0
"""One longest backoff and a round trip. When the slots are looked at later, all jobs may just have ended together."""
KINDS: dict[str, Reply] = {
    "connection refused": TransportError("can't reach gateway.example: refused", possibly_sent=False),
    "connection reset": TransportError("the connection was reset", possibly_sent=True),
    "502 of a proxy": HttpResponse(status=502, body=b"<html>502</html>"),
    "503 of the gateway": HttpResponse(status=503, body=b'{"success":false,"error":{"message":"busy"}}'),
}


@define
class Run:
    """What a session sent, and how many jobs ran."""

    times: list[float] = field(factory=list)
    creates: int = 0
    gateway: FakeGateway = field(factory=lambda: FakeGateway(job_s=JOB_S, limit=SLOTS))
    full_at: float | None = None
    """When 95 % of the slots were filled again."""
    uncertain: int = 0

    def sent_between(self, first: float, last: float) -> int:
        """Count the requests of a time."""
        return sum(first <= at < last for at in self.times)


async def _session(name: GatewayName, failure: Reply | None) -> Run:
    run = Run()

    def answer(request: HttpRequest) -> Reply:
        run.times.append(now())
        if failure is not None and BEGINS_S <= now() < ENDS_S:
            return failure
        return run.gateway.answer(request)

    async def watch() -> None:
        await asyncio.sleep(ENDS_S)
        while now() < STOPS_S:
            if run.full_at is None and run.gateway.running >= 0.95 * SLOTS:
                run.full_at = now()
            await asyncio.sleep(0.5)

    session_of = apimall if name == "apimall" else defapi
    async with session_of(FakeTransport(answer, keep=1)) as session, asyncio.TaskGroup() as group:
        watching = group.create_task(watch())
        async with session.generate_many(f"fox {number}" for number in itertools.count()) as outcomes:
            async for outcome in outcomes:
                run.uncertain += isinstance(outcome.error, JobUncertain)
                if watching.done():
                    break
    return run


@functools.cache
def _calm(name: GatewayName) -> Run:
    return run_virtual(_session(name, None))


def measure(name: GatewayName, kind: str) -> dict[str, Any]:
    """Return the figures of one kind of outage."""
    calm, rough = _calm(name), run_virtual(_session(name, KINDS[kind]))
    base, sent = calm.sent_between(BEGINS_S, ENDS_S), rough.sent_between(BEGINS_S, ENDS_S)
    return {
        "requests in ten minutes without the outage": base,
        "requests during the outage": sent,
        "load": round(sent / base, 3),
        "95 % of the slots filled after s": math.inf if rough.full_at is None else round(rough.full_at - ENDS_S, 1),
        "uncertain": rough.uncertain,
    }


def main(count: int | None) -> dict[str, Any]:
    """Measure each kind of outage on both gateways."""
    del count
    logging.getLogger("nanobanana_async").setLevel(logging.CRITICAL)
    figures: dict[str, Any] = {}
    breaches: list[str] = []
    names: tuple[GatewayName, ...] = ("apimall", "defapi")
    for name, kind in itertools.product(names, KINDS):
        found = measure(name, kind)
        figures[f"{name}, {kind}"] = found
        if found["load"] > 0.1:
            breaches.append(f"{name}, {kind}: {found['load']} of the usual load")
        if found["95 % of the slots filled after s"] > FILLED_WITHIN_S:
            breaches.append(f"{name}, {kind}: the slots are filled after {found['95 % of the slots filled after s']} s")
    return {**figures, "breaches": breaches}
