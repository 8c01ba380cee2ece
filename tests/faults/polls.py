"""Polls that contradict each other, for any number of seeds: `python -m tests.faults polls`.

The status goes back, is unknown, is missing (404); answers are lost, garbled or refused for a while. Once a job has
ended it stays so, and what the gateway says later changes nothing; a job that never ends is given up at its deadline.
"""

import itertools
import json
import logging
import random
from typing import Any

from nanobanana_async import JobFailed, JobState, TaskNotFound, Timeouts, TransportError
from nanobanana_async.engine.timers import TICK_S
from nanobanana_async.gateways.contract import HttpRequest, HttpResponse
from nanobanana_async.jobs import TERMINAL_STATES
from nanobanana_async.testing import FakeTransport, Reply, run_virtual
from tests.support.fakes import RecordingLedger, apimall, defapi, now
from tests.support.loopback import GatewayName
from tests.support.replies import completed, created, defapi_created, defapi_done, json_reply, refused, task

JOB_S = 600.0
SLACK_S = 200.0
"""The longest pause that a gateway may ask for, and the longest gap between two polls."""


def _strange(rng: random.Random) -> Reply:
    """Return an answer to a poll that ends nothing."""
    word = rng.choice(("pending", "processing", "submitted", "in_progress", "unknown", "queued?", "PROCESSING"))
    choices: list[Reply] = [
        task(word, "t1"),
        task(word, "t1"),
        task(word, "another-task"),
        refused(404, "task_not_found", "No such task"),
        refused(rng.choice((500, 503)), "internal", "Oops"),
        refused(429, "too_many_requests", "Slow down", **{"retry-after": rng.choice(("1", "119", "soon"))}),
        HttpResponse(status=200, body=rng.choice((b"", b"<html>", b"[]", b"null", b'{"success":true}'))),
        TransportError("the connection was reset", possibly_sent=True),
    ]
    return rng.choice(choices)


def play(name: GatewayName, seed: int) -> list[str]:
    """Run one seed; return what went wrong."""
    return [f"{name}, seed {seed}: {breach}" for breach in run_virtual(_play(name, seed))]


async def _play(name: GatewayName, seed: int) -> list[str]:
    rng = random.Random(f"{name} {seed}")
    endless = rng.random() < 0.3
    ends_at = JOB_S * 100 if endless else rng.uniform(1.0, JOB_S * 0.9)
    failing = rng.random() < 0.3
    seen_end = False
    posts = 0

    def answer(request: HttpRequest) -> Reply:
        nonlocal seen_end, posts
        if request.method == "POST":
            posts += 1
            return created("t1") if name == "apimall" else defapi_created("t1")
        if seen_end or now() < ends_at or rng.random() < 0.3:
            return _strange(rng)  # also after the end: the status goes back
        seen_end = True
        if failing:
            if name == "apimall":
                return task("failed", "t1", error_message="blocked")
            return json_reply(200, {"code": 0, "data": {"task_id": "t1", "status": "failed"}})
        return completed("t1") if name == "apimall" else defapi_done("t1")

    breaches: list[str] = []
    ledger, states = RecordingLedger(keep_ended=True), list[JobState]()
    session_of = apimall if name == "apimall" else defapi
    async with session_of(FakeTransport(answer), ledger=ledger, timeouts=Timeouts(job_s=JOB_S)) as session:
        job = await session.submit("a fox", idempotency_key="order-1")
        ended = ""
        reason: Exception | None
        for _ in range(20 if endless else 400):  # a 404 or the deadline ends the waiting, not the job
            began, reason = now(), None
            try:
                ended = (await job).task_id
            except TaskNotFound:
                ended = "404"
            except JobFailed:
                ended = "failed"
            except Exception as error:  # JobUnfinished, or the last failure of the polls
                ended, reason = "unfinished", error
            if ended == "unfinished" and now() - began < JOB_S - TICK_S:
                breaches.append(f"{type(reason).__name__} after {now() - began:.0f} s: {reason}")
            if now() - began > JOB_S + SLACK_S:
                breaches.append(f"waited for {now() - began:.0f} s")
            if ended != "404" and (endless or ended != "unfinished"):
                break
        wanted = "unfinished" if endless else "failed" if failing else "t1"
        if ended != wanted and not (endless and ended == "404"):
            breaches.append(f"ended as {ended}, wanted {wanted}")
        # The gateway goes on with strange answers: nothing changes any more.
        for _ in range(3):
            states.append(ledger.record("order-1").state)
            found = await session.job("order-1")
            assert found is not None
            if not endless:
                try:
                    again = (await found).task_id
                except JobFailed:
                    again = "failed"
                if again != wanted:
                    breaches.append(f"was {wanted}, is {again}")
    if not endless and (set(states) - TERMINAL_STATES or len(set(states)) > 1):
        breaches.append(f"states {states}")
    if posts != 1:
        breaches.append(f"{posts} creates")
    if json.dumps(ledger.log).count("SUCCEEDED ->") or json.dumps(ledger.log).count("FAILED ->"):
        breaches.append("an ended job was changed")
    return breaches


def main(count: int | None) -> dict[str, Any]:
    """Run many seeds on both gateways."""
    logging.getLogger("nanobanana_async").setLevel(logging.CRITICAL)
    names: tuple[GatewayName, ...] = ("apimall", "defapi")
    seeds = range(count or 1000)
    breaches = [breach for name, seed in itertools.product(names, seeds) for breach in play(name, seed)]
    return {"seeds": 2 * len(seeds), "breaches": breaches}
