"""Name the command as it was started, so that the commands that it prints work when they are typed."""

import os
import shlex
import shutil
import sys
from pathlib import Path

_NAME = "nanobanana"


def program() -> str:
    """Return `nanobanana` where PATH has this command, else its path, or the interpreter with `-m nanobanana_async`."""
    started = sys.argv[0]
    if _is_module(started):
        return shlex.join((sys.orig_argv[0], "-m", "nanobanana_async"))
    if not _is_script(started):  # called from Python
        return _NAME
    try:
        found = shutil.which(_NAME)
        return _NAME if found is not None and os.path.samefile(found, started) else shlex.quote(started)
    except OSError:
        return shlex.quote(started)


def same_command(option: str) -> str:
    """Return the command line of this process with one more option.

    Empty where it can't be typed again: it was called from Python, or reads its rows from standard input.
    """
    started, *arguments = sys.argv
    if "-" in arguments or not (_is_module(started) or _is_script(started)):
        return ""
    more = [] if option in arguments else [option]
    return f"{program()} {shlex.join((*arguments, *more))}"


def _is_module(started: str) -> bool:
    path = Path(started)
    return path.name == "__main__.py" and "nanobanana_async" in path.parts[-3:]


def _is_script(started: str) -> bool:
    return Path(started).stem == _NAME
