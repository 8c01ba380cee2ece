"""Fixtures for the whole suite."""

import gc
import inspect
import logging
import os
import signal
import sys
import tempfile
from collections.abc import Generator, Iterator
from importlib import import_module
from typing import Any

import aioresponses.core
import pytest
from aiohttp import ClientResponse
from aioresponses import aioresponses as AioResponses  # noqa: N812
from hypothesis import settings

from nanobanana_async.emulator.settings import EmulatorSettings
from nanobanana_async.policy import poll_schedule
from tests.support import collected, forked

pytest_plugins = ["nanobanana_async.emulator.fixtures", "tests.support.postgres_fixtures"]

# Each worker and each of the hundreds of processes that tests start would compile the package again.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# And import it again, which takes longer than what most of them do.
forked.install()

# Signals that the parent ignores stay ignored in a child, and so in the commands that tests send signals to.
if hasattr(signal, "SIGHUP"):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a script that runs the tests in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)

_IN_REAL_TIME = {
    *("cli", "http", "images", "mcp_server", "notebook", "secrecy", "serve", "store", "web"),
    *("test_docs.py", "test_paths.py", "test_postgres.py"),
}
"""Folders and files whose tests run in real time with default settings."""

_EARLY_POLLS = {"FEW_SECONDS_S": 0.1, "LEAST_DELAY_S": 0.05, "UNKNOWN_GROWTH": 0.0, "STRAGGLER_GROWTH": 0.0}
"""The last two: on a busy machine a job is soon old, and the next poll of an old one would come after a minute."""

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


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes(config: pytest.Config) -> None:
    """Fork the workers from one process that collects the tests."""
    collected.prepare(config)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_getremotemodule() -> str | None:
    """Return what a worker executes."""
    return collected.REMOTE if collected.is_prepared() else None


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start the files with slow tests first: at the end of the run no worker has a long one alone."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: (_group_of(item.nodeid) is None, item.path not in slow))


_TOGETHER = {
    "store": ("tests/store/",),
    "data frames": (
        *(f"tests/batch/test_{name}.py" for name in ("inputs", "references", "sweeps")),
        "tests/test_models.py",
    ),
    "mcp": ("tests/mcp_server/test_tools.py", "tests/cli/test_mcp.py", "tests/cli/test_accounts.py"),
    "openai": ("tests/serve/test_accounts.py", "tests/serve/test_api.py"),
}
"""Files that share a server that takes seconds to start, or imports of a second: one worker runs them."""


def _group_of(nodeid: str) -> str | None:
    return next((group for group, files in _TOGETHER.items() if nodeid.startswith(files)), None)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Distribute whole files, and some of them together."""
    if config.getoption("dist") != "loadfile":
        return None
    scheduler: Any = import_module("xdist.scheduler")

    class Scheduling(scheduler.LoadFileScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            return _group_of(nodeid) or str(super()._split_scope(nodeid))

    return Scheduling(config, log)


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


@pytest.fixture(scope="session", autouse=True)
def _own_state() -> Iterator[None]:
    """Keep the ledger of commands without --ledger, and their settings, apart from those of who runs the tests."""
    with tempfile.TemporaryDirectory(prefix="nanobanana-state-", ignore_cleanup_errors=True) as folder:
        os.environ["XDG_STATE_HOME"] = folder
        os.environ["XDG_CONFIG_HOME"] = os.path.join(folder, "config")
        yield


@pytest.fixture(autouse=True)
def _no_waste_of_time(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where tests run in real time, poll early, and paint small images: a large one takes a quarter of a second."""
    if _IN_REAL_TIME & set(request.path.parts):
        request.getfixturevalue("early_polls")
        monkeypatch.setitem(EmulatorSettings.__init__.__kwdefaults__ or {}, "image_scale", 0.1)


@pytest.fixture
def early_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Poll early, as suits jobs that take less than a second, here and in the processes that are forked."""
    for name, value in _EARLY_POLLS.items():
        monkeypatch.setattr(poll_schedule, name, value)
    monkeypatch.setattr(forked, "constants", {poll_schedule.__name__: _EARLY_POLLS})


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
