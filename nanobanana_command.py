"""The entry point of the command `nanobanana`.

It is outside of the package, whose import takes a moment: Ctrl-C during that must not print a traceback.
"""

import sys


def main() -> None:
    """Run the command line and exit with its code."""
    try:
        from nanobanana_async.cli import main as run
    except KeyboardInterrupt:
        print("nanobanana: interrupted", file=sys.stderr)
        sys.exit(130)
    run()
