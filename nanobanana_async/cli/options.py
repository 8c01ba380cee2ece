"""Options that several commands share, and messages with their names."""

import asyncio
import re
from collections.abc import Callable, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal

import platformdirs
from cyclopts import Parameter, Token

from nanobanana_async.commands import as_value, jobs_command
from nanobanana_async.errors import ConfigurationError, InvalidRequest
from nanobanana_async.extra import value_of_text
from nanobanana_async.gateways import registry
from nanobanana_async.gateways.contract import Gateway
from nanobanana_async.images.target import Target, as_image_folder, as_target
from nanobanana_async.ledger.location import Location, as_location

Name = registry.GatewayName
_GATEWAY = Parameter(env_var="NANOBANANA_GATEWAY", metavar="GATEWAY")
GatewayName = Annotated[Name | None, _GATEWAY]
GatewayOrEmulator = Annotated[Name | Literal["emulator"] | None, _GATEWAY]
BaseUrl = Annotated[str | None, Parameter(env_var="NANOBANANA_BASE_URL", metavar="URL")]
Timeout = Annotated[float | None, Parameter(env_var="NANOBANANA_TIMEOUT", metavar="SECONDS")]
Seconds = Annotated[float, Parameter(metavar="SECONDS")]
Credits = Annotated[Decimal | None, Parameter(metavar="CREDITS")]
MaxJobs = Annotated[int | None, Parameter(env_var="NANOBANANA_MAX_JOBS")]
MaxRequestsPerMinute = Annotated[int | None, Parameter(env_var="NANOBANANA_MAX_REQUESTS_PER_MINUTE")]
MAX_BUDGET_WAIT_S = 600.0
"""How long a batch waits by default when a daily budget of requests is used up."""

Yes = Annotated[bool, Parameter(name=["--yes", "-y"], negative=(), show_default=False)]
Flag = Annotated[bool, Parameter(negative=(), show_default=False)]

GatewayFinder = Callable[[Name | None, str | None], Gateway]
"""Returns the gateway that options and environment select."""


def _to_folder(_: Any, tokens: Sequence[Token]) -> Path:
    return as_image_folder("the folder", tokens[0].value)


def _to_target(_: Any, tokens: Sequence[Token]) -> Target:
    target = as_target("the folder", tokens[0].value)
    if not isinstance(target, Path) and target.url.startswith("memory:"):
        raise ConfigurationError("a store in memory ends with the command: name a folder or another store")
    return target


def _to_ledger(_: Any, tokens: Sequence[Token]) -> Location:
    return as_location("--ledger", tokens[0].value)


def one_value(_: Any, text: str, **__: Any) -> list[str]:
    """Return the text of a variable as one value: paths would be split at colons, which a URL has."""
    return [text]


LedgerOption = Annotated[
    Location,
    Parameter(
        name="--ledger",
        metavar="FILE|URL",
        env_var="NANOBANANA_LEDGER",
        env_var_split=one_value,
        converter=_to_ledger,
        accepts_keys=False,
        n_tokens=1,
    ),
]
"""The path of a ledger's file, or the URL of a PostgreSQL server."""


DEFAULT_LEDGER = platformdirs.user_state_path("nanobanana", appauthor=False) / "jobs.sqlite"
"""The ledger of `generate` and `jobs`: one for this user, wherever the commands are run."""


def make_ledger_folder(ledger: Location) -> None:
    """Create the folder of the default ledger, if it is that one: a folder that the user named must exist."""
    from nanobanana_async.images.files import make_folder  # most commands write no ledger

    if ledger == DEFAULT_LEDGER:
        make_folder(DEFAULT_LEDGER.parent)


FolderOption = Parameter(name=["--output", "-o"], metavar="FOLDER", converter=_to_folder)
"""The folder for the images. An empty value is refused: it would be the current folder."""

TargetOption = Parameter(
    name=["--output", "-o"], metavar="FOLDER|URL", converter=_to_target, accepts_keys=False, n_tokens=1
)
"""The folder for the images, or the URL of an object store."""

RunFolder = Annotated[Path | None, Parameter(name="--folder", metavar="FOLDER", converter=_to_folder)]


async def check_output(target: Target | None, *, create: bool = True) -> None:
    """Create the folder if it is missing; raise `ConfigurationError` if no file can be written in it.

    Without `create` nothing is created, and only what is certain is refused. An object store is checked by the batch,
    and by each save.
    """
    if not isinstance(target, Path):
        return
    from nanobanana_async.images.files import check_place, ensure_writable_folder, why_unwritable  # few write images

    try:
        await asyncio.to_thread(ensure_writable_folder if create else check_place, target)
    except OSError as error:
        raise ConfigurationError(why_unwritable(target, error, or_else="name another folder with -o")) from None


def repeatable(metavar: str) -> Parameter:
    """Return the settings of an option that takes one value and can be repeated."""
    return Parameter(negative=(), metavar=metavar)


ExtraOption = Annotated[list[str] | None, repeatable("NAME=VALUE")]


def extra_of(options: Sequence[str] | None) -> dict[str, Any]:
    """Return the values of `--extra NAME=VALUE` options: as JSON where they are JSON, else as text."""
    extra: dict[str, Any] = {}
    for option in options or ():
        name, sign, value = option.partition("=")
        if not sign or not name.strip():
            raise ConfigurationError(f"--extra must be NAME=VALUE, such as --extra seed=7, not {option[:60]!r}")
        if name.strip() in extra:
            raise ConfigurationError(f"--extra {name.strip()} is given twice")
        extra[name.strip()] = value_of_text(value)
    return extra


_ARGUMENT_NAMES = (
    "max_jobs",
    "max_requests_per_minute",
    "max_credits",
    "expected_credits",
    "num_images",
    "aspect_ratio",
    "output_format",
    "base_url",
    "job_limit",
    "creates_per_minute",
    "requests_per_minute",
    "requests_per_day",
    "failure_probability",
    "job_seconds",
    "lose_answers",
    "history_delay",
    "drop_callbacks",
)
_ARGUMENT_NAME_PATTERN = re.compile(rf"\b({'|'.join(_ARGUMENT_NAMES)})\b")


def with_option_names(sentence: str) -> str:
    """Return a message of the library with the names of options instead of those of Python arguments."""
    return _ARGUMENT_NAME_PATTERN.sub(lambda name: f"--{name[1].replace('_', '-')}", sentence)


# Only these phrases: any other text of an error may quote a path or a prompt.
_PHRASES = (
    (re.compile(r"\b(check|and) base_url\b"), r"\1 --base-url"),
    (re.compile(r"\b(?:proxy|tls)= or (?=HTTPS_PROXY|SSL_CERT_FILE)"), ""),
    (re.compile(r"\ballow_networks=\S* or "), ""),
    (re.compile(r"\ballow_http=True or "), ""),
    (re.compile(r"\bpass extra=\{'(\w+)': \.\.\.\}"), r"pass --extra \1=VALUE"),
    (re.compile(r"\bcall `resume` to poll it"), "`jobs resume` polls it"),
    (re.compile(r"\bcall `session\.resolve`"), "use `jobs resolve`"),
    (re.compile(r"\bwith `session\.feed`"), "with `batch FILE --feed-only`"),
    (re.compile(r" \(Timeouts\.job_s\); await it again"), "; the same command waits again"),
    (re.compile(r"\bpass per='day', or"), "write NAME=CREDITS/day, or"),
    (re.compile(r"\bpass per=None, or"), "write NAME=CREDITS without /day, or"),
)


def in_cli_words(error: object) -> str:
    """Return an error of the library, or its text, with options and commands in place of what it names in Python."""
    sentence = str(error)
    for phrase, words in _PHRASES:
        sentence = phrase.sub(words, sentence)
    return sentence


def setting_message(error: ConfigurationError | InvalidRequest) -> str:
    """Return the message about a wrong setting with the option's name where it begins with an argument's."""
    local = isinstance(error, InvalidRequest) and error.status is None
    sentence = in_cli_words(error.message if local else error)  # its advice is for errors of a gateway
    first, space, rest = sentence.partition(" ")
    option = f"--{first}" if first in ("resolution", "model") else with_option_names(first)
    return f"{option}{space}{rest}"


def fetch_options(ledger: Location | None, gateway: str | None, base_url: str | None) -> list[str]:
    """Return the options with which `jobs fetch` reaches the same ledger and gateway."""
    options = {
        "--ledger": None if ledger is None or ledger == DEFAULT_LEDGER else as_value(ledger),
        "--gateway": gateway,
        "--base-url": base_url,
    }
    return [part for name, value in options.items() if value is not None for part in (name, value)]


def fetch_command(names: Sequence[str], options: Sequence[str], target: Target | None, *, sidecar: bool) -> str:
    """Return the command that fetches the images of jobs that were bought."""
    output = () if target is None else ("-o", as_value(target) if isinstance(target, Path) else str(target))
    sidecars = ("--sidecar",) if sidecar else ()
    return jobs_command("fetch", *options, *output, *sidecars, ledger=None, names=names)
