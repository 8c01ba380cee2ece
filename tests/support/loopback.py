"""Helpers of tests over loopback: quick settings, an emulator checked for leaks, a recording observer."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Literal, Unpack

from nanobanana_async import ApiMall, DefApi, GenerationResult, JobState, RetryPolicy, Session
from nanobanana_async.emulator import Emulator, EmulatorOptions, EmulatorStats, Fixed
from nanobanana_async.emulator.faults import RandomFault, error
from nanobanana_async.emulator.messages import Endpoint
from nanobanana_async.errors import GatewayError, NanoBananaError
from nanobanana_async.events import CreateFailed, Event, JobStateChanged, PollFailed
from tests.support.fakes import REAL_TIME

GatewayName = Literal["apimall", "defapi"]
BOTH: tuple[GatewayName, ...] = ("apimall", "defapi")

CREATE: dict[GatewayName, Endpoint] = {"apimall": "apimall.create", "defapi": "defapi.create"}
QUERY: dict[GatewayName, Endpoint] = {"apimall": "apimall.query", "defapi": "defapi.query"}

QUICK_POLLS = REAL_TIME
QUICK_RETRIES = RetryPolicy(first_backoff_s=0.005, max_backoff_s=0.05)
TWO_ATTEMPTS = RetryPolicy(max_attempts=2, first_backoff_s=0.005, max_backoff_s=0.05)


@asynccontextmanager
async def emulated(
    *, port: int = 0, history: bool = False, **settings: Unpack[EmulatorOptions]
) -> AsyncIterator[Emulator]:
    """Run an emulator whose jobs take a moment; at the end no connection and no asyncio task may be left.

    Without `history` API Mall has no list of tasks, so a job in doubt whose repeats do not end it is UNCERTAIN.
    """
    before = asyncio.all_tasks()
    options: EmulatorOptions = {"duration": Fixed(0.01), "image_scale": 0.05}
    options.update(settings)
    if not history:
        options["random_faults"] = [*options.get("random_faults", ()), RandomFault(1.0, error(404), "apimall.history")]
    async with Emulator(port=port, **options) as emulator:
        yield emulator
        await emulator.wait_for_no_connections()
    assert asyncio.all_tasks() <= before


def gateway_of(emulator: Emulator, name: GatewayName, **settings: Any) -> ApiMall | DefApi:
    """Return the client's settings for one of the gateways, with short expected jobs."""
    if name == "defapi":
        return emulator.defapi(**{"expected_job_s": 0.01, **settings})
    return emulator.apimall(**{"expected_job_s": 0.01, "history_delay_s": 0.01, **settings})


def quick(emulator: Emulator, name: GatewayName = "apimall", /, **settings: Any) -> Session:
    """Return a session, not yet open, that neither polls nor retries slowly; `gateway` overrides the gateway."""
    options = {"gateway": gateway_of(emulator, name), "polling": QUICK_POLLS, "retry": QUICK_RETRIES, **settings}
    return Session(**options)


class RecordingObserver:
    """An observer that keeps its events."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def __call__(self, event: Event) -> None:
        self.events.append(event)

    @property
    def states(self) -> list[JobState]:
        """The states that jobs went into, in order."""
        return [event.record.state for event in self.events if isinstance(event, JobStateChanged)]

    @property
    def errors(self) -> list[Exception]:
        """Why creates and queries failed, in order."""
        return [event.error for event in self.events if isinstance(event, (CreateFailed, PollFailed))]

    def refusal(self) -> GatewayError:
        """Return the only refusal among the errors."""
        (error,) = (error for error in self.errors if isinstance(error, GatewayError))
        return error


async def until(holds: Callable[[], bool], *, timeout_s: float = 30.0) -> None:
    """Wait until something holds; only a failed test waits for `timeout_s`."""
    async with asyncio.timeout(timeout_s):
        while not holds():  # noqa: ASYNC110 - the condition has no event
            await asyncio.sleep(0.002)


async def received(emulator: Emulator, creates: int = 1) -> None:
    """Wait until so many creates have reached the emulator."""
    await until(lambda: emulator.stats().creates_received >= creates)


async def outcome(session: Session, prompt: str, **options: Any) -> GenerationResult | NanoBananaError:
    """Generate, and return the error instead of raising it."""
    try:
        return await session.generate(prompt, **options)
    except NanoBananaError as error:
        return error


async def together(session: Session, prompts: list[str], **options: Any) -> list[GenerationResult | NanoBananaError]:
    """Generate all prompts at once."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(outcome(session, prompt, **options)) for prompt in prompts]
    return [task.result() for task in tasks]


def charged(stats: EmulatorStats, times: int) -> bool:
    """Return whether exactly so many jobs were charged, none of them twice."""
    return (stats.creates_accepted, stats.double_charges) == (times, 0)
