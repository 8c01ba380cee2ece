"""The command `nanobanana`: needs the extra `cli`."""

import sys

_EXTRA = frozenset({"cyclopts", "rich"})


def main() -> None:
    """Run the command line, and exit with its code."""
    try:
        from nanobanana_async.cli.app import run
    except ModuleNotFoundError as missing:
        if (missing.name or "").split(".")[0] not in _EXTRA:
            raise
        advice = "pip install 'nanobanana-async[cli]'"
        print(f"nanobanana: the command line needs {missing.name}: {advice}", file=sys.stderr)
        sys.exit(2)
    sys.exit(run(sys.argv[1:]))
