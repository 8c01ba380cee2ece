"""The option --ledger of commands whose ledger hosts share."""

from collections.abc import Sequence
from typing import Annotated, Any

from cyclopts import Parameter, Token

from nanobanana_async.cli.options import one_value
from nanobanana_async.errors import ConfigurationError
from nanobanana_async.ledger.location import as_location
from nanobanana_async.ledger.postgres.url import PostgresUrl


def _to_shared_ledger_url(_: Any, tokens: Sequence[Token]) -> PostgresUrl | None:
    location = as_location("--ledger", tokens[0].value)
    if isinstance(location, PostgresUrl):
        return location
    if tokens[0].source != "cli":  # it is the file of `generate` and `jobs`
        return None
    raise ConfigurationError(
        f"--ledger {tokens[0].value}: a batch keeps its ledger in its folder; to share it with other hosts, pass"
        " postgresql://user@host/database"
    )


SharedLedgerOption = Annotated[
    PostgresUrl | None,
    Parameter(
        name="--ledger",
        metavar="URL",
        env_var="NANOBANANA_LEDGER",
        env_var_split=one_value,
        converter=_to_shared_ledger_url,
        accepts_keys=False,
        n_tokens=1,
    ),
]
"""The URL of a ledger that hosts share. A file that the environment or the settings name is none."""


def require_shared_ledger(command: str, ledger: PostgresUrl | None) -> PostgresUrl:
    """Return the ledger of a command that needs one that hosts share; raise `ConfigurationError` without it."""
    if ledger is None:
        raise ConfigurationError(
            f"{command} needs a ledger that hosts share: pass --ledger postgresql://user@host/database, or set"
            " NANOBANANA_LEDGER to it"
        )
    return ledger
