"""The command `nanobanana`, which needs the extra `cli`."""

import os
import signal
import sys

_EXTRA = frozenset({"cyclopts", "platformdirs", "rich"})
_INTERRUPTED = 130


def main() -> None:
    """Run the command line and exit with its code."""
    try:
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else a script ignores it
            signal.signal(signal.SIGINT, exit_while_importing)
        code = _run()
    except KeyboardInterrupt:  # before the handler was there
        print("nanobanana: interrupted", file=sys.stderr)
        code = _INTERRUPTED
    sys.exit(code)


def exit_while_importing(*_: object) -> None:
    """Handle Ctrl-C while modules are imported: Python ignores exceptions in callbacks of its import system."""
    try:
        os.write(2, b"nanobanana: interrupted\n")
    finally:
        os._exit(_INTERRUPTED)  # safe: nothing was started or printed yet


def _run() -> int:
    try:
        from nanobanana_async.cli.streams import occupy_descriptors

        occupy_descriptors()
        from nanobanana_async.cli.app import run

        return run(sys.argv[1:])
    except ModuleNotFoundError as missing:
        if (missing.name or "").split(".")[0] not in _EXTRA:
            raise
        advice = "pip install 'nanobanana-async[cli]'"
        print(f"nanobanana: the command line needs {missing.name}: {advice}", file=sys.stderr)
        return 2
