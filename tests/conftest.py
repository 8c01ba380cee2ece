"""Fixtures for the whole suite."""

import atexit
import gc
import inspect
import logging
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Generator, Iterator
from typing import Any

import aioresponses.core
import pytest
from aiohttp import ClientResponse
from aioresponses import aioresponses as AioResponses  # noqa: N812
from hypothesis import settings

from tests.support import forked

pytest_plugins = ["nanobanana_async.emulator.fixtures", "tests.support.postgres_fixtures"]

# Each worker and each of the hundreds of processes that tests start would compile the package again.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# And import it again, which takes longer than what most of them do.
forked.install()

# Signals that the parent ignores stay ignored in a child, and so in the commands that tests send signals to.
if hasattr(signal, "SIGHUP"):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

# The command line's ledger without --ledger: never the one of the person who runs the tests.
os.environ["XDG_STATE_HOME"] = _STATE = tempfile.mkdtemp(prefix="nanobanana-state-")
atexit.register(shutil.rmtree, _STATE, ignore_errors=True)

# Nor the settings file of that person.
os.environ["XDG_CONFIG_HOME"] = os.path.join(_STATE, "config")

# Hypothesis fails an example that takes 200 ms, as any example may on a machine with other work.
# Forty examples at first sight of a test show what a hundred do; each run draws others.
settings.register_profile("suite", deadline=None, max_examples=40)
settings.load_profile("suite")


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection() -> Generator[None, object, object]:
    """Keep what the imports and the list of tests consist of, a million objects, out of all garbage collections."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start the files with slow tests first: at the end of the run no worker has a long one alone."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


class _NothingToWrite:
    """What a response asks its writer once the request is out: how much went up."""

    output_size = 0


class _ScriptedResponse(ClientResponse):
    """The response that aioresponses builds, with what it leaves out since aiohttp 3.14."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if "stream_writer" in inspect.signature(ClientResponse.__init__).parameters:
            kwargs.setdefault("stream_writer", _NothingToWrite())
        super().__init__(*args, **kwargs)


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Iterator[AioResponses]:
    """Answer HTTP requests by script, without a socket: `answers.post(url, payload=...)`.

    It bypasses timeouts, redirects and header checks: promises about safety are tested over loopback instead.
    """
    monkeypatch.setattr(aioresponses.core, "ClientResponse", _ScriptedResponse)
    with AioResponses() as scripted:
        yield scripted


@pytest.fixture(autouse=True)
def _early_polls(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Poll jobs of unknown duration early, in the folders whose tests run in real time with default settings."""
    if {"cli", "http", "notebook", "secrecy"} & set(request.path.parts):
        monkeypatch.setattr("nanobanana_async.policy.poll_schedule.FEW_SECONDS_S", 0.1)


@pytest.fixture
def quiet_log() -> Iterator[None]:
    """Log critical errors only, for tests that provoke many failures."""
    log = logging.getLogger("nanobanana_async")
    level = log.level
    log.setLevel(logging.CRITICAL)  # also clears what loggers remember of their levels
    yield
    log.setLevel(level)


@pytest.fixture
def real_processes() -> Iterator[None]:
    """Start each process for real, for tests of imports, of the start and of memory: see `support/forked.py`."""
    forked.uninstall()
    yield
    forked.install()
