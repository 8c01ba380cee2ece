"""The options that say which jobs are sent first and which budget counts them: one definition for all commands."""

from collections.abc import Sequence
from typing import Annotated, Any

from attrs import frozen
from cyclopts import Parameter, Token

from nanobanana_async.errors import ConfigurationError
from nanobanana_async.policy.named_budget import Budget, parse_budget
from nanobanana_async.policy.turn_settings import check_group, check_priority
from nanobanana_async.validators import shown


def _to_priority(_: Any, tokens: Sequence[Token]) -> int:
    text = tokens[0].value
    try:
        return check_priority(int(text))
    except ConfigurationError:
        raise
    except ValueError:
        raise ConfigurationError(f"it must be a whole number, not {shown(text)}") from None


def _to_group(_: Any, tokens: Sequence[Token]) -> str | None:
    return check_group(tokens[0].value)


def _to_budget(_: Any, tokens: Sequence[Token]) -> Budget:
    return parse_budget("it", tokens[0].value)


@Parameter(name="*")
@frozen(kw_only=True)
class TurnOptions:
    """Which jobs are sent first, and which budget counts them."""

    priority: Annotated[int, Parameter(converter=_to_priority)] = 0
    """From -100 to 100: hosts that share a PostgreSQL ledger give free slots to jobs of a priority above 0 first. The
    jobs of one command are sent in their order."""

    group: Annotated[str | None, Parameter(converter=_to_group, metavar="NAME")] = None
    """Whose jobs these are, such as a user. It is stored with them: a session that takes them over, such as that of a
    web application, shares its slots fairly between groups."""

    budget: Annotated[Budget | None, Parameter(converter=_to_budget, accepts_keys=False, n_tokens=1)] = None
    """NAME=CREDITS or NAME=CREDITS/day: what all commands with this name may spend together on one ledger, in all or on
    each day in UTC; a batch in a folder has a ledger of its own. `nanobanana budgets` shows what is left."""


NO_TURN = TurnOptions()
