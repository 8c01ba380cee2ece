"""The command `nanobanana`, which needs the extra `cli`."""

import io
import sys

_EXTRA = frozenset({"cyclopts", "rich"})


def main() -> None:
    """Run the command line and exit with its code."""
    try:
        code = _run()
    except KeyboardInterrupt:  # while the modules of the command line were imported
        print("nanobanana: interrupted", file=sys.stderr)
        code = 130
    sys.exit(code)


def _run() -> int:
    try:
        from nanobanana_async.cli.app import run
    except ModuleNotFoundError as missing:
        if (missing.name or "").split(".")[0] not in _EXTRA:
            raise
        advice = "pip install 'nanobanana-async[cli]'"
        print(f"nanobanana: the command line needs {missing.name}: {advice}", file=sys.stderr)
        return 2
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a character that the terminal can't encode must not raise
            stream.reconfigure(errors="backslashreplace")
    return run(sys.argv[1:])
