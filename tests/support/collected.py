"""Workers of pytest-xdist that are forked from one process, which has collected the tests.

Otherwise each of them imports every file and makes every item, which takes longer than most files. `prepare` says what
the process is to collect; `forked` starts it with the first worker. It does what a worker does until the tests are
collected, and what it could not report then, as it was no worker yet, each worker reports first.
"""

import atexit
import os
import random
import signal
import sys
from importlib import import_module
from pathlib import Path
from socket import socket
from typing import Any

import pytest
from _pytest.config import _prepareconfig

from tests.support import forked

REMOTE = "from tests.support import collected; collected.run_tests(channel)"
"""What a worker executes once it is connected, in place of the module `xdist.remote`."""

_collected: "_Collected"


def prepare(config: pytest.Config) -> None:
    """Let the workers of this session be forked."""
    # What coverage is to see must be imported in the worker.
    if sys.platform == "linux" and not config.getoption("cov_source", None):
        forked.workers = {
            "arguments": list(map(str, config.invocation_params.args)),
            "folder": str(config.invocation_params.dir),
            "path": [os.path.abspath(folder) for folder in sys.path],
        }


def is_prepared() -> bool:
    """Return whether the workers of this session are forked."""
    return forked.workers is not None


class _Collected:
    """A plugin that forks when the tests are collected."""

    def __init__(self, channel: socket) -> None:
        self._channel = channel
        self._unreported: list[tuple[str, dict[str, Any]]] = []
        self.session: Any = None

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self._unreported.append(("pytest_collectreport", {"report": report}))

    def pytest_warning_recorded(self, warning_message: Any, when: str, nodeid: str, location: Any) -> None:
        facts = {"warning_message": warning_message, "when": when, "nodeid": nodeid, "location": location}
        self._unreported.append(("pytest_warning_recorded", facts))

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> None:
        """Fork on orders; in each child become a worker, and end."""
        self.session = session
        from hypothesis.internal.charmap import charmap  # not earlier: pytest rewrites the assertions of plugins

        forked.import_all((*forked.CORE, *forked.COMMANDS))  # nor does each worker do this
        charmap()
        self.capture: Any = session.config.pluginmanager.getplugin("capturemanager")
        self.capture.stop_global_capturing()  # into files whose positions the children would share
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # those whom it concerns stop
        _, ends = forked.fork_on_orders(self._channel)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for number, end in enumerate(ends):
            os.dup2(end, number)
            os.close(end)
        random.seed()
        session.config.pluginmanager.unregister(self)
        sys.stdin = open(0, closefd=False)  # noqa: SIM115
        exec(eval(sys.stdin.readline()), {"__name__": "__main__"})  # execnet's program: it calls `run_tests`
        atexit._run_exitfuncs()
        sys.stderr.flush()
        os._exit(0)

    def report_to(self, worker: Any) -> None:
        for hook, facts in self._unreported:
            getattr(worker, hook)(**facts)


def serve(channel: socket, given: dict[str, Any]) -> None:
    """Collect the tests, and fork workers until the session ends."""
    global _collected
    os.chdir(given["folder"])
    sys.path[:], sys.argv[:] = given["path"], ["-c"]
    _collected = _Collected(channel)
    try:
        config = _prepareconfig(given["arguments"], [_collected])
        import_module("xdist.remote").setup_config(config, None)  # not imported earlier either
        config.workerinput = {"workerid": "collecting"}  # type: ignore[attr-defined] # so it writes no file of results
        config.hook.pytest_cmdline_main(config=config)
    except pytest.UsageError as error:
        print(*(f"ERROR: {line}" for line in error.args), sep="\n", file=sys.stderr)


_LEAST_SHOWN_S = 0.005
"""`--durations` does not show what takes less."""


def _reporting_less(interactor: Any) -> Any:
    """Return the class of a worker that leaves out what the terminal shows nowhere.

    Three of the six messages for each test: they cost it almost a millisecond of processor time.
    """

    class Interactor(interactor):  # type: ignore[misc]
        def pytest_runtest_logstart(self, nodeid: str, location: Any) -> None:
            if self.config.get_verbosity() > 0:
                super().pytest_runtest_logstart(nodeid, location)

        def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
            shown = report.when == "call" or not report.passed or report.sections or report.duration >= _LEAST_SHOWN_S
            if shown or self.config.get_verbosity() > 0:
                super().pytest_runtest_logreport(report)

    return Interactor


def run_tests(channel: Any) -> None:
    """Be a worker: do what `xdist.remote` does, and `wrap_session` of pytest, from after the collection on."""
    remote: Any = import_module("xdist.remote")
    workerinput, _, options, _ = channel.receive()
    session = _collected.session
    config = session.config
    os.environ["PYTEST_XDIST_TESTRUNUID"] = workerinput["testrunuid"]
    os.environ["PYTEST_XDIST_WORKER"] = workerinput["workerid"]
    os.environ["PYTEST_XDIST_WORKER_COUNT"] = str(workerinput["workercount"])
    config.workerinput, config.workeroutput = workerinput, {}
    config.option.basetemp = options.get("basetemp")
    config._tmp_path_factory._given_basetemp = Path(config.option.basetemp)
    _collected.capture.start_global_capturing()
    _collected.capture.suspend_global_capture()
    worker = remote.interactor = _reporting_less(remote.WorkerInteractor)(config, channel)
    worker.pytest_sessionstart(session)
    _collected.report_to(worker)
    worker.pytest_collection_finish(session)
    try:
        config.hook.pytest_runtestloop(session=session)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED if session.testsfailed else pytest.ExitCode.OK
    except (KeyboardInterrupt, pytest.exit.Exception):
        session.exitstatus = pytest.ExitCode.INTERRUPTED
    except BaseException:
        session.exitstatus = pytest.ExitCode.INTERNAL_ERROR
        config.notify_exception(pytest.ExceptionInfo.from_current(), config.option)
    finally:
        os.chdir(session.startpath)
        config.hook.pytest_sessionfinish(session=session, exitstatus=session.exitstatus)
        config._ensure_unconfigure()
