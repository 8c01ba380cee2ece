"""Make the parts of a session from its settings: of one account, or of several."""

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Any, Literal

from attrs import fields, fields_dict

from nanobanana_async.config import Timeouts, gateway_from_env
from nanobanana_async.connections import as_observers, make_components, wrong_gateway_error
from nanobanana_async.engine.accounts_lifecycle import AccountsLifecycle
from nanobanana_async.engine.lifecycle import SessionComponents, SessionLifecycle
from nanobanana_async.engine.routed_engine import one_gateway_error
from nanobanana_async.errors import ConfigurationError
from nanobanana_async.gateways.contract import Gateway
from nanobanana_async.gateways.registry import GATEWAYS
from nanobanana_async.gateways.secret import Secret
from nanobanana_async.ledger.base import SharesAccount
from nanobanana_async.misspelt import keywords_of, unknown_fields
from nanobanana_async.policy.concurrency import ConcurrencyPolicy
from nanobanana_async.policy.polling import PollPolicy
from nanobanana_async.policy.retry import RetryPolicy
from nanobanana_async.validators import check_kind

_POLICIES: Mapping[str, type] = {
    "concurrency": ConcurrencyPolicy,
    "polling": PollPolicy,
    "retry": RetryPolicy,
    "timeouts": Timeouts,
}

Prefer = Literal["wait"] | Sequence[Gateway | str]
"""Which account gets a job first: the one where it should end first, or the first of these with a free slot."""


def to_gateways(gateway: object) -> tuple[Gateway, ...] | ConfigurationError:
    """Return the gateways of a session, or the error for a setting that is none: it may be an API key."""
    if gateway is None:
        return (gateway_from_env(),)
    several = isinstance(gateway, (list, tuple))
    given: tuple[Any, ...] = tuple(gateway) if several else (gateway,)  # type: ignore[arg-type]
    if not given:
        return ConfigurationError("gateway is an empty list: pass one or more, such as [ApiMall.from_env()]")
    for each in given:
        if (problem := wrong_gateway_error(each)) is not None:
            return problem
        if not isinstance(each.api_key, Secret):  # before anything is asked of it that needs one
            return ConfigurationError(f"the api_key of {each.name} must be a nanobanana_async.gateways.Secret")
    accounts = [each.account for each in given]
    if twice := [account for account in accounts if accounts.count(account) > 1]:
        return ConfigurationError(f"account {twice[0]} is given twice: its limits are learned once, so pass it once")
    for one, other in combinations(given, 2):
        if (one.name, one.base_url, one.api_key) == (other.name, other.base_url, other.api_key):
            return ConfigurationError(
                f"accounts {one.account} and {other.account} have the same API key: it is one account, whose limits are"
                " learned once, so pass it once"
            )
    return given


def unknown_setting_error(names: Sequence[str], session: Callable[..., object]) -> ConfigurationError:
    """Return the error for settings that a session does not have: they are misspelt, or those of another object."""
    of_gateway = [field.alias or field.name for kind in GATEWAYS.values() for field in fields(kind)]
    if found := [name for name in names if name in of_gateway]:
        example = f"Session(ApiMall({found[0]}=...))" if found[0] == "api_key" else f"ApiMall.from_env({found[0]}=...)"
        return ConfigurationError(f"{', '.join(found)} is a setting of the gateway: pass one, as in {example}")
    for setting, kind in _POLICIES.items():
        if found := [name for name in names if name in fields_dict(kind)]:
            where = f"Session({setting}={kind.__name__}({found[0]}=...))"
            return ConfigurationError(f"{', '.join(found)} is a setting of {kind.__name__}: {where}")
    return ConfigurationError(f"Session: {unknown_fields(names, keywords_of(session), 'setting')}")


def make_session_parts(
    gateways: tuple[Gateway, ...], prefer: Prefer | None, **settings: Any
) -> tuple[SessionComponents, SessionLifecycle]:
    """Return the components of a session (of its first account) and what opens them."""
    if len(gateways) == 1:
        if prefer is not None:
            raise ConfigurationError("prefer orders several accounts: pass them as a list, Session([one, another])")
        parts = make_components(gateways[0], **settings)
        return parts, SessionLifecycle(f"<Session {gateways[0].name}>", parts)
    order = _to_order(gateways, prefer)
    http, max_credits = settings.pop("http"), settings["max_credits"]
    transports = list(http) if isinstance(http, (list, tuple)) else [http] * len(gateways)
    if len(transports) != len(gateways):
        raise ConfigurationError("http has another number of transports than there are accounts: pass one for each")
    if len({gateway.name for gateway in gateways}) > 1:
        if max_credits is not None:
            raise one_gateway_error("max_credits")
        if settings["budgets"]:
            raise one_gateway_error("a budget")
    settings["observers"] = as_observers(settings["observers"])
    first: SessionComponents | None = None
    made: list[SessionComponents] = []
    for gateway, transport in zip(gateways, transports, strict=True):
        parts = make_components(
            gateway,
            http=transport,
            shares_with=first,
            log_account=gateway.account,
            **settings,
        )
        first = first or parts
        settings["ledger"] = first.ledger
        made.append(parts)
    ledger = made[0].ledger
    if isinstance(ledger, SharesAccount):
        raise ConfigurationError("several accounts need a ledger in SQLite or in memory: hosts share one account each")
    names = ", ".join(gateway.name for gateway in gateways)
    return made[0], AccountsLifecycle(f"<Session {names}>", made, order, by_wait=prefer == "wait")


def _to_order(gateways: tuple[Gateway, ...], prefer: object) -> list[str]:
    """Return all accounts in the order in which they are preferred."""
    wanted = 'prefer must be "wait" or a list of the accounts (gateways, or their names), the preferred ones first'
    accounts = [gateway.account for gateway in gateways]
    if prefer is None or prefer == "wait":
        return accounts
    if not isinstance(prefer, (list, tuple)):
        raise ConfigurationError(wanted)
    order: list[str] = []
    for each in prefer:
        names = {gateway.account: _names_of(gateway) for gateway in gateways}
        found = [account for account, known in names.items() if (each in known if isinstance(each, str) else False)]
        if not isinstance(each, str) and getattr(each, "account", None) in accounts:
            found = [each.account]
        if not found:
            known = ", ".join(sorted({name for of_one in names.values() for name in of_one}))
            what = repr(each) if isinstance(each, str) else f"a {type(each).__name__}"
            raise ConfigurationError(f"{wanted}; {what} is not in this session, which has {known}")
        order += [account for account in found if account not in order]
    return order + [account for account in accounts if account not in order]


def account_named(gateways: tuple[Gateway, ...], name: str | None) -> Gateway:
    """Return the account of a session with this name; without a name, the only one. Raises `ConfigurationError`."""
    check_kind("account", name, (str, type(None)), "the name of an account, as text")
    found = gateways if name is None else [gateway for gateway in gateways if name in _names_of(gateway)]
    if len(found) == 1:
        return found[0]
    known = ", ".join(gateway.account for gateway in gateways)
    why = "the session has several accounts" if name is None else f"{name!r} names {len(found)} of its accounts"
    raise ConfigurationError(f"{why}: pass account=, one of {known}")


def _names_of(gateway: Gateway) -> tuple[str, ...]:
    """Return what names an account: its gateway's name, its own, and its identifier in ledgers."""
    own = getattr(gateway, "account_name", "")
    return tuple(dict.fromkeys(name for name in (gateway.name, own, gateway.account) if name))
