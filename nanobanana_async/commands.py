"""The commands that messages name: they begin as this program was started, and can be pasted into a shell."""

import os
import re
import shlex
import shutil
import sys
from collections.abc import Sequence
from contextvars import ContextVar
from pathlib import Path

_NAME = "nanobanana"
_PASSWORD = re.compile(
    r"(?P<user>\w://[^/\s:@]*:)[^@/\s]*(?=@)|(?P<name>\w*(?:password|secret)=)[^&\s]*", re.IGNORECASE
)

SETTINGS_OPTIONS: ContextVar[tuple[str, ...]] = ContextVar("settings options", default=())
"""The options that chose settings file and profile: a command in a message needs the same account."""


def program() -> str:
    """Return `nanobanana` where PATH has this command, else its path, or the interpreter with `-m nanobanana_async`."""
    started = sys.argv[0] if sys.argv else ""
    if _is_module(started):
        return shlex.join((sys.orig_argv[0], "-m", "nanobanana_async"))
    if not _is_script(started):  # called from Python
        return _NAME
    try:
        found = shutil.which(_NAME)
        return _NAME if found is not None and os.path.samefile(found, started) else shlex.quote(started)
    except OSError:
        return shlex.quote(started)


def command_line(*words: str) -> str:
    """Return a command of this program, quoted for a shell."""
    return " ".join((program(), *map(quoted, (*SETTINGS_OPTIONS.get(), *words))))


def jobs_command(name: str = "", *options: str, ledger: object | None, names: Sequence[str] = ()) -> str:
    """Return a command of `nanobanana jobs` on this ledger, for the jobs with these keys or task ids.

    The ledger is the path of its file, or a URL whose text has no password.
    """
    command = ("jobs", name) if name else ("jobs",)
    if ledger is not None:
        options = (*options, "--ledger", as_value(ledger))
    if any(each.startswith("-") for each in names):  # a key may look like an option
        return command_line(*command, *options, "--", *names)
    return command_line(*command, *names, *options)


def resolve_command(ledger: object | None, key: str = "KEY", options: Sequence[str] = ()) -> str:
    """Return the command that resolves an uncertain job. It is refused as it is: the decision may cost money."""
    # No alternatives in it: a shell would take "a|b" for a pipe, and resolve the job as a.
    return jobs_command("resolve", "--as", "DECISION", *options, ledger=ledger, names=[key])


def resolve_advice(ledger: object | None, key: str = "KEY", options: Sequence[str] = ()) -> str:
    """Return how to resolve an uncertain job."""
    command = resolve_command(ledger, key, options)
    return (
        f"check the gateway's own list of tasks, then run `{command}` with your decision: not-bought, buy-again, or"
        " task-id ID"
    )


def same_command(option: str) -> str:
    """Return the command line of this process with one more option.

    Empty where it can't be typed again: it was called from Python, or reads its rows from standard input.
    """
    started, *arguments = sys.argv
    if "-" in arguments or not (_is_module(started) or _is_script(started)):
        return ""
    shown = map(quoted, map(_without_password, arguments))
    return " ".join((program(), *shown, *([] if option in arguments else [option])))


def _without_password(argument: str) -> str:
    """Return an argument with the password of a URL hidden: what is printed ends up in logs, unlike what is typed."""
    return _PASSWORD.sub(lambda found: f"{found['user'] or found['name']}***", argument)


def as_value(path: object) -> str:
    """Return a path or a URL as the value of an option, which it does not look like."""
    text = str(path)
    return f"./{text}" if text.startswith("-") else text


def quoted(word: str) -> str:
    """Quote a word for a shell. What a line for display would escape or collapse is written as its bytes."""
    if word.isprintable() and "  " not in word:
        return shlex.quote(word)
    plain = (
        character if character.isalnum() or character in "-_./:" else _escape_bytes(character) for character in word
    )
    return f"$'{''.join(plain)}'"


def _escape_bytes(character: str) -> str:
    return "".join(f"\\x{byte:02x}" for byte in character.encode(errors="surrogateescape"))


def _is_module(started: str) -> bool:
    path = Path(started)
    return path.name == "__main__.py" and "nanobanana_async" in path.parts[-3:]


def _is_script(started: str) -> bool:
    return Path(started).stem == _NAME
