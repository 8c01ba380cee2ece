"""Stray calls beside a working service: from other event loops, from threads without one, from forked children.

`python -m tests.end_to_end.strays 500 [FOLDER]` makes so many and prints what came of them.
"""

import asyncio
import gc
import inspect
import os
import signal
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable
from itertools import count, cycle, islice
from pathlib import Path
from typing import Any

from attrs import define, field

from nanobanana_async import Batch, ConfigurationError, GenerationResult, Job, Session, SqliteLedger
from nanobanana_async.emulator import Fixed
from nanobanana_async.webhooks import CallbackReceiver
from tests.support.loopback import emulated, quick

STRAY = "a stray fox"
A_FORK_TAKES_S = 20
CALLS_OF_A_FORK = 25


@define
class Service:
    """The public objects of a program with an open session."""

    session: Session
    job: Job
    result: GenerationResult
    batch: Batch
    receiver: CallbackReceiver

    def calls(self) -> dict[str, Callable[[], Any]]:
        """Return a stray call of every public method."""
        session, job = self.session, self.job
        return {
            "generate": lambda: session.generate(STRAY),
            "submit": lambda: session.submit(STRAY),
            "job": lambda: session.job(job.key),
            "attach": lambda: session.attach("task-of-nobody"),
            "resume": lambda: session.resume(buy=True),
            "settle": lambda: session.resolve(job, buy_again=True),
            "download": lambda: session.download(self.result.images[0]),
            "save": lambda: session.save(self.result, "nowhere"),
            "stats": session.stats,
            "generate_many": lambda: session.generate_many([STRAY]),
            "aclose": session.aclose,
            "open": session.open,
            "leave": lambda: session.__aexit__(None, None, None),
            "written": job.wait_until_stored,
            "accepted": job.wait_for_task_id,
            "result": lambda: job.result(timeout=5.0),
            "await": lambda: job,
            "updates": lambda: anext(job.updates()),
            "cancel": job.cancel,
            "outcome": lambda: anext(self.batch),
            "enter batch": self.batch.__aenter__,
            "close batch": self.batch.aclose,
            "expect": lambda: CallbackReceiver(session, public_url="https://stray.example", secret=b"s" * 16),
        }


@define
class Tally:
    """Counts of the results of the calls."""

    strays: Counter[str] = field(factory=Counter)
    """Refused with `ConfigurationError`, or what else: by the call's name."""
    served: int = 0
    harmed: list[str] = field(factory=list)
    """Callers of the service that did not get their image."""
    slowest_s: float = 0.0
    bought: int = 0
    bought_by_strays: int = 0
    rightful: int = 0
    """Purchases that the service asked for."""

    def __str__(self) -> str:
        calls, refused = self.strays.total(), self.strays["refused"]
        return (
            f"{calls} stray calls, {refused} refused, {self.bought_by_strays} purchases by them;"
            f" {self.served} images for the service, {len(self.harmed)} of its callers harmed, slowest"
            f" {self.slowest_s:.2f} s; {self.bought} bought, {self.rightful} asked for"
        )


async def _called(call: Callable[[], Any]) -> Any:
    outcome = call()
    return await outcome if inspect.isawaitable(outcome) else outcome


def _stray(name: str, call: Callable[[], Any], *, looped: bool) -> str:
    """Make a call here and return a description of the result."""
    try:
        if looped:
            asyncio.run(asyncio.wait_for(_called(call), 5.0))
        else:  # the sync methods are called as they are; a coroutine can't be awaited without a loop
            outcome = call()
            if inspect.iscoroutine(outcome):
                outcome.send(None)
    except ConfigurationError:
        return "refused"
    except BaseException as error:
        return f"{name}: {type(error).__name__}: {error}"
    return f"{name}: served"


def _in_a_fork(service: Service, names: list[str]) -> Callable[[], list[str]]:
    """Fork; the child makes the calls, drops what it holds, and ends. Return how to wait for what it says."""
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the ledger has a thread
        child = os.fork()
    if not child:
        signal.alarm(A_FORK_TAKES_S)
        try:
            calls = service.calls()
            response = [_stray(name, calls[name], looped=True) for name in names]
            calls.clear()
            service.session = service.job = service.batch = service.receiver = None  # type: ignore[assignment]
            gc.collect()
            os.write(writing, "\n".join(response).encode())
        finally:
            os._exit(0)
    os.close(writing)

    def said_by_child() -> list[str]:
        with os.fdopen(reading) as pipe:
            said = pipe.read()
        os.waitpid(child, 0)
        return said.split("\n") if said else ["a child said nothing"]

    return said_by_child


async def _serve(session: Session, numbers: "count[int]", tally: Tally, stop: asyncio.Event) -> None:
    while not stop.is_set():
        began = asyncio.get_running_loop().time()
        tally.rightful += 1
        try:
            await session.generate(f"fox {next(numbers)}", timeout=30.0)
        except Exception as error:
            tally.harmed.append(f"{type(error).__name__}: {error}")
        else:
            tally.served += 1
        tally.slowest_s = max(tally.slowest_s, asyncio.get_running_loop().time() - began)


async def _stray_calls(service: Service, number: int, tally: Tally) -> None:
    names = list(islice(cycle(service.calls()), number))
    forked = 2 * number // 5 if hasattr(os, "fork") else 0
    while forked > 0:
        share, names = names[: min(forked, CALLS_OF_A_FORK)], names[min(forked, CALLS_OF_A_FORK) :]
        forked -= len(share)
        tally.strays.update(await asyncio.to_thread(_in_a_fork(service, share)))
    for place, name in enumerate(names):
        looped = place % 3 > 0 or name in ("await", "updates")  # these do nothing before they are awaited
        tally.strays[await asyncio.to_thread(_stray, name, service.calls()[name], looped=looped)] += 1


async def beside_a_working_service(number: int, folder: Path) -> Tally:
    """Make so many stray calls while a session generates; return what came of them and of its callers."""
    tally, numbers, stop = Tally(), count(), asyncio.Event()
    async with emulated(duration=Fixed(0.1), callback_drop_probability=0.0) as emulator:
        async with quick(emulator, ledger=SqliteLedger(folder / "jobs.sqlite")) as session:
            workers = [asyncio.Task(_serve(session, numbers, tally, stop)) for _ in range(4)]
            receiver = CallbackReceiver(session, public_url="https://app.example", secret=b"k" * 16)
            result = await session.generate("a fox for the strays")
            job = await session.submit("another fox")
            batch = session.generate_many([f"row {row}" for row in range(3)])
            first = await anext(batch)
            tally.rightful += 5
            await _stray_calls(Service(session, job, result, batch, receiver), number, tally)
            thread = await asyncio.to_thread(_properly, session, asyncio.get_running_loop())
            tally.rightful += 1
            rest = [outcome async for outcome in batch]
            stop.set()
            await asyncio.wait(workers)
            works = [bool(thread.images), bool((await job).images), len(rest) == 2]
            if not all([*works, *(outcome.ok for outcome in (first, *rest))]):
                tally.harmed.append("what was handed out before does not work any more")
        bought = list(emulator.jobs())
        tally.bought, tally.bought_by_strays = len(bought), sum(each.prompt == STRAY for each in bought)
    return tally


def _properly(session: Session, loop: asyncio.AbstractEventLoop) -> GenerationResult:
    """Call from a thread as the error message advises."""
    return asyncio.run_coroutine_threadsafe(session.generate("a fox of a thread"), loop).result(30.0)


def main() -> int:
    """Make the calls, print what came of them, and fail if a call had an effect."""
    number = int(sys.argv[1]) if len(sys.argv) > 1 else 500
    with tempfile.TemporaryDirectory() as folder:
        tally = asyncio.run(beside_a_working_service(number, Path(folder)))
    print(tally)
    for said, times in tally.strays.items():
        if said != "refused":
            print(f"{times} x {said}")
    for said in tally.harmed:
        print(said)
    return int(bool(tally.harmed) or tally.bought_by_strays > 0 or tally.strays["refused"] != number)


if __name__ == "__main__":
    sys.exit(main())
