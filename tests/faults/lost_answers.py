"""Lose, cut or garble the answers to creates at random, in any number of seeds: `python -m tests.faults lost`.

Each seed is one session on virtual time whose emulated gateway processes every create, and spoils some of the answers.
"""

import logging
import random
from collections import defaultdict
from typing import Any

from attrs import define

from nanobanana_async import ApiMall, DefApi, JobState, JobUncertain, NanoBananaError, Session
from nanobanana_async.emulator import API_KEY, EmulatorSettings, Fixed, GatewaySimulator, faults
from nanobanana_async.emulator.faults import Fault, RandomFault
from nanobanana_async.gateways.contract import HttpRequest
from nanobanana_async.testing import EmulatorTransport, run_virtual
from tests.support.fakes import RecordingLedger
from tests.support.loopback import CREATE, GatewayName

JOBS = 6
LOST_SHARE = 0.4


def losses(rng: random.Random) -> list[Fault]:
    """Return ways to spoil the answer to a create that was processed."""
    return [
        faults.reset(processed=True),
        faults.cut(sent_share=rng.random() * 0.99),
        faults.wrong_length(sent_share=rng.random() * 0.9),
        faults.garbage(processed=True),
        faults.html(rng.choice((200, 502, 504, 520)), processed=True),
        faults.answer(200, body=b"", processed=True),
        faults.answer(rng.choice((200, 201)), body=b'{"success":true,"data":{}}', processed=True),
        faults.stall(rng.uniform(1.0, 200.0), processed=True),
    ]


@define
class Outcome:
    """What one seed came to."""

    lost: int
    posts: int
    uncertain: int
    breaches: list[str]


def play(gateway: GatewayName, seed: int) -> Outcome:
    """Run one seed."""
    return run_virtual(_play(gateway, seed))


async def _play(name: GatewayName, seed: int) -> Outcome:
    rng = random.Random(f"{name} {seed}")
    chances = [RandomFault(LOST_SHARE / 8, fault, CREATE[name]) for fault in losses(rng)]
    settings = EmulatorSettings(
        seed=seed, duration=Fixed(5.0), random_faults=chances, double_charges_by="prompt", history_delay_s=1.0
    )
    transport = EmulatorTransport(GatewaySimulator(settings), api_key=API_KEY)
    ledger = RecordingLedger(keep_ended=True)
    gateway = ApiMall(api_key=API_KEY) if name == "apimall" else DefApi(api_key=API_KEY)
    ended: dict[str, str] = {}
    async with Session(gateway, http=transport, ledger=ledger) as session:
        for number in range(JOBS):
            key = f"order-{seed}-{number}"
            try:
                ended[key] = (await session.generate(f"fox {number}", idempotency_key=key)).task_id
            except JobUncertain as error:
                ended[key] = "uncertain" if error.key == key else f"uncertain, under the key {error.key}"
            except NanoBananaError as error:
                ended[key] = f"{type(error).__name__}: {error}"
    bought = {job.prompt: job.task_id for job in transport.simulator.jobs(1e9)}
    stats = transport.simulator.stats(1e9)
    breaches = _breaches(name, ledger, ended, bought, transport.creates)
    if stats.double_charges or stats.creates_accepted != JOBS:
        breaches.append(f"{stats.creates_accepted} jobs charged for {JOBS} wanted, {stats.double_charges} twice")
    states = list(ledger.states().values())
    return Outcome(
        lost=stats.lost_creates,
        posts=len(transport.creates),
        uncertain=states.count(JobState.UNCERTAIN),
        breaches=[f"{name}, seed {seed}: {breach}" for breach in breaches],
    )


def _breaches(
    name: GatewayName, ledger: RecordingLedger, ended: dict[str, str], bought: dict[str, str], posts: list[HttpRequest]
) -> list[str]:
    found: list[str] = []
    sent: defaultdict[bytes | None, list[str | None]] = defaultdict(list)
    for post in posts:
        sent[post.body].append(post.headers.get("Idempotency-Key"))
    if len(sent) != JOBS:
        found.append(f"{len(sent)} different bodies were sent for {JOBS} jobs")
    for keys in sent.values():
        if name == "defapi" and len(keys) != 1:
            found.append(f"a create without a key was sent {len(keys)} times")
        if name == "apimall" and len(set(keys)) != 1:
            found.append(f"one body was sent under the keys {set(keys)}")
    for number, (key, end) in enumerate(ended.items()):
        record = ledger.record(key)
        listed = record.state is JobState.UNCERTAIN
        if end == "uncertain" and name == "defapi":
            if not listed or not record.in_doubt:
                found.append(f"{key} ended in doubt, and its record is {record.state}")
            if record.failure is None or API_KEY in repr(record):
                found.append(f"{key} has no evidence, or evidence with the API key")
        elif end != bought[f"fox {number}"] or record.state is not JobState.SUCCEEDED:
            found.append(f"{key} ended as {end}, {record.state}")
    return found


def main(count: int | None) -> dict[str, Any]:
    """Run many seeds on both gateways."""
    logging.getLogger("nanobanana_async").setLevel(logging.CRITICAL)
    figures: dict[str, Any] = {"seeds": count or 1000}
    breaches: list[str] = []
    names: tuple[GatewayName, ...] = ("apimall", "defapi")
    for name in names:
        outcomes = [play(name, seed) for seed in range(count or 1000)]
        figures[f"{name}: answers lost"] = sum(each.lost for each in outcomes)
        figures[f"{name}: creates for {JOBS * len(outcomes)} jobs"] = sum(each.posts for each in outcomes)
        figures[f"{name}: uncertain"] = sum(each.uncertain for each in outcomes)
        breaches += [breach for each in outcomes for breach in each.breaches]
    return {**figures, "breaches": breaches}
