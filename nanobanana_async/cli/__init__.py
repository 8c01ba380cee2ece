"""The command `nanobanana`, which needs the extra `cli`."""

import sys

from nanobanana_async.cli.streams import occupy_descriptors

_EXTRA = frozenset({"cyclopts", "platformdirs", "rich"})


def main() -> None:
    """Run the command line and exit with its code."""
    occupy_descriptors()
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
    return run(sys.argv[1:])
