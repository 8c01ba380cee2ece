"""The emulator in a process of its own, which records every create that arrives.

`python -m tests.durability.emulator_process SETTINGS` prints its URL, and answers each line on its input with the
records as one line of JSON. It ends when its input ends.
"""

import asyncio
import hashlib
import json
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nanobanana_async.emulator import (
    EmulatedRequest,
    EmulatedResponse,
    EmulatorSettings,
    GatewaySimulator,
    LogNormal,
    RandomFault,
    faults,
)
from nanobanana_async.emulator.server import EmulatorServer
from nanobanana_async.emulator.settings import Idempotency

ROOT = Path(__file__).absolute().parents[2]


@dataclass(frozen=True, kw_only=True)
class AccountSettings:
    """How the emulated account behaves."""

    seed: int = 0
    job_limit: int | None = 12
    median_s: float = 0.3
    idempotency: Idempotency = "replay"
    lost: float = 0.03
    """The fraction of creates that are charged and never answered."""
    slow: float = 0.5
    """The fraction of answers that are delayed, so that a kill can hit a request in flight."""
    failing: float = 0.0
    """The fraction of requests that are answered with 500 or 503; half of these creates are charged nevertheless."""
    throttled: float = 0.0
    """The fraction of creates that are refused with 429, however few jobs run."""


@dataclass(frozen=True, kw_only=True)
class Post:
    """One create that arrived: its idempotency key, a digest of its body, the status of the answer (0 for none)."""

    key: str | None
    body: str
    status: int


@dataclass(frozen=True, kw_only=True)
class Bought:
    """The creates that arrived for one prompt, and the tasks charged for it."""

    posts: list[Post]
    task_ids: list[str]


@dataclass(frozen=True, kw_only=True)
class Records:
    """The creates and charges by prompt, and the emulator's own counts."""

    prompts: dict[str, Bought]
    counts: dict[str, int]


class RecordingSimulator(GatewaySimulator):
    """A simulator that records every create."""

    def __init__(self, settings: EmulatorSettings) -> None:
        super().__init__(settings)
        self.posts: defaultdict[str, list[Post]] = defaultdict(list)

    def handle(self, now: float, request: EmulatedRequest) -> EmulatedResponse:
        """Answer a request, and record it if it is a create."""
        answer = super().handle(now, request)
        if request.method == "POST":
            key = {name.lower(): value for name, value in request.headers.items()}.get("idempotency-key")
            post = Post(key=key, body=hashlib.sha256(request.body).hexdigest()[:16], status=answer.status)
            self.posts[json.loads(request.body)["prompt"]].append(post)
        return answer

    def records(self, now: float) -> Records:
        """Return everything that was recorded."""
        prompts = {prompt: Bought(posts=posts, task_ids=[]) for prompt, posts in self.posts.items()}
        for job in self.jobs(now):
            prompts[job.prompt].task_ids.append(job.task_id)
        stats = self.stats(now)
        counts = {
            "creates received": stats.creates_received,
            "creates refused (429)": stats.refusals_429.get("jobs", 0),
            "creates charged": stats.creates_accepted,
            "answers lost by the gateway": stats.lost_creates,
            "repeats answered from the key": stats.replays,
            "queries": stats.polls,
        }
        return Records(prompts=prompts, counts=counts)


def _simulator(account: AccountSettings) -> RecordingSimulator:
    chances = [
        RandomFault(share, fault, endpoint)
        for endpoint in ("apimall.create", "defapi.create")
        for share, fault in ((account.lost, faults.reset(processed=True)), (account.slow, faults.delay(0.04)))
    ]
    chances += [
        RandomFault(share, fault, endpoint)
        for endpoint in ("apimall.query", "defapi.query")
        for share, fault in ((account.lost, faults.reset()), (account.slow, faults.delay(0.02)))
    ]
    failures = (faults.error(500, processed=True), faults.error(503))
    chances += [RandomFault(account.failing / len(failures), fault) for fault in failures]
    throttled = faults.error(429, code="too_many_concurrent_jobs")
    chances += [RandomFault(account.throttled, throttled, create) for create in ("apimall.create", "defapi.create")]
    return RecordingSimulator(
        EmulatorSettings(
            seed=account.seed,
            job_limit=account.job_limit,
            duration=LogNormal(median_s=account.median_s),
            idempotency=account.idempotency,
            double_charges_by="prompt",
            random_faults=chances,
            image_scale=0.02,
        )
    )


async def _serve(account: AccountSettings) -> None:
    simulator = _simulator(account)
    server = await EmulatorServer.started(simulator, host="127.0.0.1", port=0)
    print(json.dumps(server.url), flush=True)
    loop = asyncio.get_running_loop()
    while await loop.run_in_executor(None, sys.stdin.readline):
        print(json.dumps(asdict(simulator.records(server.now()))), flush=True)
    await server.aclose()


class EmulatorProcess:
    """The emulator's process, as its parent uses it."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process
        self.url: str = self._read()

    def records(self) -> Records:
        """Return which creates arrived and what was charged."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        content = self._read()
        prompts = {
            prompt: Bought(posts=[Post(**post) for post in bought["posts"]], task_ids=bought["task_ids"])
            for prompt, bought in content["prompts"].items()
        }
        return Records(prompts=prompts, counts=content["counts"])

    def _read(self) -> Any:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())


@contextmanager
def opened(settings: AccountSettings) -> Iterator[EmulatorProcess]:
    """Run the emulator in a process of its own."""
    command = [sys.executable, "-m", "tests.durability.emulator_process", json.dumps(asdict(settings))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        try:
            yield EmulatorProcess(process)
        finally:
            process.kill()


if __name__ == "__main__":
    asyncio.run(_serve(AccountSettings(**json.loads(sys.argv[1]))))
