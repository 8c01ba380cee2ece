"""Print notes, and ask the user before something is bought, changed or deleted."""

import sys

from rich.console import Console

from nanobanana_async import ConfigurationError
from nanobanana_async.escaping import one_line


def print_note(sentence: str) -> None:
    """Print a line on stderr."""
    # Not wrapped: a command that is copied from two lines would run as two.
    Console(stderr=True).print(one_line(sentence), markup=False, highlight=False, emoji=False, soft_wrap=True)


def require_consent(*, yes: bool) -> None:
    """Raise `ConfigurationError` if the user can neither be asked nor has confirmed with --yes."""
    if not (yes or sys.stdin.isatty()):
        raise ConfigurationError("not a terminal: pass --yes to confirm")


def confirm(consequence: str, *, yes: bool) -> bool:
    """Print what will happen and ask the user. Called outside of event loops, where Ctrl-C ends the question."""
    if yes:
        print_note(consequence)
        return True
    if not sys.stdin.isatty():
        raise ConfigurationError(f"{one_line(consequence)} Not a terminal: pass --yes to confirm")
    print(f"{one_line(consequence)} Continue? [y/N] ", end="", file=sys.stderr, flush=True)
    try:
        answer = sys.stdin.readline()
    except KeyboardInterrupt:
        print(file=sys.stderr)  # start a new line after the question
        raise
    if answer.strip().lower() in ("y", "yes"):
        return True
    print_note("cancelled: nothing was done")
    return False
