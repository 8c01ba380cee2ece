"""Messages about arguments that a command does not take."""

import os
import re
import types
from collections.abc import Iterable, Iterator, Sequence
from decimal import Decimal
from enum import Enum
from typing import Any, Literal, Union, get_args, get_origin

from cyclopts import (
    CoercionError,
    CycloptsError,
    MissingArgumentError,
    Token,
    UnknownCommandError,
    UnknownOptionError,
    UnusedCliTokensError,
)

from nanobanana_async.commands import as_value
from nanobanana_async.gateways import registry
from nanobanana_async.values import did_you_mean

_NUMBERS = {int: "a whole number", float: "a number", Decimal: "a number"}


def usage_message(error: CycloptsError) -> str:
    """Return what is wrong with the arguments, without the names of Python types."""
    if isinstance(error, UnknownOptionError):
        return _unknown_option(error)
    if isinstance(error, UnknownCommandError) and error.unused_tokens and error.app is not None:
        return unknown_command(" ".join(error.command_chain or ()), error.unused_tokens[0], error.app)
    if isinstance(error, MissingArgumentError) and error.keyword in ("-o", "--output"):
        return f"{error.keyword} needs a folder"
    if isinstance(error, UnusedCliTokensError) and error.unused_tokens:
        return _unexpected_argument(error.unused_tokens[0], error.command_chain)
    if isinstance(error, MissingArgumentError) and error.keyword is None and error.argument is not None:
        return _missing_argument(error.argument.name, error.command_chain)
    if not isinstance(error, CoercionError) or error.token is None:
        return str(error)
    token = error.token
    name = _name_in_file(token) or token.keyword or (error.argument.name if error.argument is not None else "the value")
    if error.msg is not None:
        return f"{name}: {error.msg}"
    wanted = " or ".join(_wanted(error.target_type))
    return f"{name} must be {wanted}, not {token.value!r}" if wanted else str(error)


def _name_in_file(token: Token) -> str:
    """Return file and key of a value of the settings file, for which cyclopts writes the key in brackets."""
    in_file = token.keyword is not None and token.keyword.startswith("[")
    return f"{token.source}: {token.keyword.strip('[]')}" if in_file and token.keyword is not None else ""


def _unexpected_argument(argument: str, command: Sequence[str] | None) -> str:
    generate = tuple(command or ()) == ("generate",)
    if not generate and (hint := ledger_hint(argument)):
        return f"{argument!r} is not expected there: {hint}"
    before = ": write all prompts before the options" if generate else ""
    return f"{argument!r} is not expected there{before} (quote a value of several words)"


def ledger_hint(argument: str) -> str:
    """Return how to name the ledger that an argument seems to mean: a file, or the folder of a batch; "" for others."""
    if argument.endswith(".sqlite"):
        return f"--ledger names a ledger, as in --ledger {as_value(argument)}"
    if os.path.isdir(argument):
        return f"--ledger names a ledger, as in --ledger {as_value(os.path.join(argument, 'jobs.sqlite'))}"
    return ""


def unknown_command(group: str, word: str, names: Iterable[str], otherwise: str = "") -> str:
    """Return that a group of commands does not have this one, and which is meant, `otherwise`, or which it has."""
    commands = [name for name in names if not name.startswith("-")]
    meant = did_you_mean(word, commands) or f": {otherwise or 'the commands are ' + ', '.join(commands)}"
    return f"{f'{group} has' if group else 'there is'} no command {word!r}{meant}"


def _missing_argument(name: str, command: Sequence[str] | None) -> str:
    """Return what a command lacks, with an example of it where one helps more than its name."""
    example = {"PROMPT": 'such as "a fox in snow"', "--output": "such as -o images"}.get(name)
    return f"{' '.join(command or ())} needs {name}{f', {example}' if example else ''}".strip()


_SECRET = re.compile(r"-+(?:\w+[-_])?(?:api[-_]?)?(?:key|token|secret)", re.IGNORECASE)
_OTHER_OPTIONS = {
    "--proxy": "set HTTPS_PROXY, which may hold a password",
    "--size": "--aspect-ratio and --resolution say the size",
    "--quality": "--resolution takes 1K, 2K or 4K",
    "--ratio": "--aspect-ratio takes two numbers such as 16:9",
    "--seed": "--extra seed=7 passes it on",
    "--format": "--output-format is the format of the images",
    "--max-credits": "--budget NAME=CREDITS is the cap of `generate`",
    **dict.fromkeys(("-n", "--n", "--count"), "--num-images is the number of images of a prompt"),
    **dict.fromkeys(("--concurrency", "--parallel", "--workers"), "--max-jobs is the most jobs to run at once"),
    **dict.fromkeys(("--out", "--output-dir", "--output-folder", "--outdir", "--out-dir"), "-o names the folder"),
}


def _unknown_option(error: UnknownOptionError) -> str:
    """Return what to use in place of an unknown option; never its value, which may be a secret."""
    option = (error.token.keyword or error.token.value).partition("=")[0]
    if _SECRET.fullmatch(option):
        return (
            f"{option} is no option, since other users of this machine see the arguments: set"
            f" {' or '.join(kind.key_variable for kind in registry.GATEWAYS.values())}, and replace a key that you"
            " passed as an argument"
        )
    if option in _OTHER_OPTIONS:
        return f"unknown option {option}: {_OTHER_OPTIONS[option]}"
    known = [name for argument in error.argument_collection for name in argument.names if name.startswith("--")]
    begun = [name for name in known if len(option) > 3 and name.startswith(f"{option}-")]
    if len(begun) == 1:
        return f"unknown option {option}: did you mean {begun[0]}?"
    return f"unknown option {option}{did_you_mean(option, known)}"


def _wanted(kind: Any) -> Iterator[str]:
    """Yield what a value of this type is, in words."""
    if get_origin(kind) in (Union, types.UnionType):
        choices = [choice for member in get_args(kind) for choice in _choices(member)]
        if choices:
            yield f"one of {', '.join(choices)}"
        for member in get_args(kind):
            if not _choices(member):
                yield from _wanted(member)
    elif get_origin(kind) in (list, tuple):
        yield from _wanted(get_args(kind)[0])
    elif choices := _choices(kind):
        yield f"one of {', '.join(choices)}"
    elif kind in _NUMBERS:
        yield _NUMBERS[kind]


def _choices(kind: Any) -> list[str]:
    if isinstance(kind, type) and issubclass(kind, Enum):
        return [str(choice.value) for choice in kind]
    return [str(choice) for choice in get_args(kind)] if get_origin(kind) is Literal else []
