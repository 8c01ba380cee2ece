"""Make the components of a session from its settings, which are checked first."""

import os
import ssl
from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from nanobanana_async.config import Timeouts
from nanobanana_async.engine.adoption import Adopt, adopt_mode
from nanobanana_async.engine.lifecycle import SessionComponents
from nanobanana_async.errors import ConfigurationError
from nanobanana_async.events import Event, EventEmitter, Observer, ObserverFactory, log
from nanobanana_async.gateways.base import is_loopback
from nanobanana_async.gateways.contract import Gateway, Transport
from nanobanana_async.gateways.secret import Secret
from nanobanana_async.http.lent import check_lent
from nanobanana_async.http.threads import ThreadedResolver
from nanobanana_async.http.tls_and_proxies import Proxies, allowed_http_origin, tls_of_borrowed, validate_tls
from nanobanana_async.http.transport import AiohttpTransport
from nanobanana_async.images.addresses import (
    Networks,
    advice_for,
    is_allowed_address,
    is_fake_ip,
    networks_of_environment,
    to_networks,
)
from nanobanana_async.images.downloader import ImageDownloader
from nanobanana_async.ledger.base import Ledger
from nanobanana_async.ledger.location import ledger_at
from nanobanana_async.ledger.memory import MemoryLedger
from nanobanana_async.ledger.postgres.url import PostgresUrl
from nanobanana_async.policy.concurrency import ConcurrencyPolicy
from nanobanana_async.policy.named_budget import Budget, check_names_apart
from nanobanana_async.policy.polling import PollPolicy
from nanobanana_async.policy.prices import parse_credits
from nanobanana_async.policy.retry import RetryPolicy
from nanobanana_async.references import ReferencePublisher
from nanobanana_async.validators import as_number, check_kind, check_switch, kind_of


def wrong_gateway_error(gateway: object) -> ConfigurationError | None:
    """Return the error for a gateway that is none; returned, not raised: it may be an API key, and this frame holds it.

    A traceback that shows locals would show the key.
    """
    advice = "gateway must be a gateway, such as ApiMall.from_env() or DefApi.from_env()"
    if isinstance(gateway, type):
        return ConfigurationError(f"{advice}, not the class {gateway.__name__}")
    if isinstance(gateway, str):
        return ConfigurationError(
            f"{advice}, not text: an API key goes into APIMALL_API_KEY or DEFAPI_API_KEY, or is passed as"
            " ApiMall(api_key=...)"
        )
    # `isinstance(gateway, Gateway)` would evaluate its properties, which may raise.
    fits = all(callable(getattr(gateway, method, None)) for method in ("encode", "build_create", "read_query"))
    return None if fits else ConfigurationError(f"{advice}, not {kind_of(gateway)}")


def make_components(
    gateway: Gateway,
    *,
    ledger: Ledger | str | os.PathLike[str] | PostgresUrl | None,
    concurrency: ConcurrencyPolicy | None,
    polling: PollPolicy | None,
    retry: RetryPolicy | None,
    timeouts: Timeouts | None,
    max_credits: Decimal | float | None,
    budgets: Mapping[str, Budget] | None,
    observers: Sequence[Observer],
    http: aiohttp.ClientSession | Transport | None,
    tls: ssl.SSLContext | bool | None,
    proxy: Secret | None,
    trust_env: bool,
    allow_networks: Iterable[str] | None,
    download_headers: Mapping[str, str] | None,
    references: ReferencePublisher | None,
    adopt: Adopt | None,
    adopt_every_s: float,
    shares_with: SessionComponents | None = None,
    log_account: str | None = None,
) -> SessionComponents:
    """Return the components of a session; raise `ConfigurationError`, which says what to pass, for a wrong setting."""
    policies = {
        "concurrency": (concurrency, ConcurrencyPolicy, "ConcurrencyPolicy(max_jobs=5)"),
        "polling": (polling, PollPolicy, "PollPolicy(target_delay_s=0.5)"),
        "retry": (retry, RetryPolicy, "RetryPolicy(max_attempts=3)"),
        "timeouts": (timeouts, Timeouts, "Timeouts(create_s=30)"),
    }
    for name, (value, kind, example) in policies.items():
        check_kind(name, value, (kind, type(None)), f"a {kind.__name__}, such as {example}")
    wanted = "an aiohttp.ClientSession, or a transport of nanobanana_async.testing"
    check_kind("http", http, (aiohttp.ClientSession, Transport, type(None)), wanted)
    check_switch("trust_env", trust_env)
    wanted = "an object with `async def publish(content, digest)`, such as nanobanana_async.webhooks.ReferenceHost"
    check_kind("references", references, (ReferencePublisher, type(None)), wanted)
    concurrency, timeouts = concurrency or ConcurrencyPolicy(), timeouts or Timeouts()
    transport, downloads = make_connections(
        gateway,
        timeouts,
        concurrency.max_requests,
        http=http,
        tls=tls,
        proxy=proxy,
        trust_env=trust_env,
        allow_networks=allow_networks,
        download_headers=download_headers,
    )
    chosen_ledger = to_ledger(ledger)
    shared: dict[str, Any] = {}
    if shares_with is not None:
        shared = {"guard": shares_with.guard, "callback_router": shares_with.callback_router}
    return SessionComponents(
        gateway=gateway,
        ledger=chosen_ledger,
        transport=transport,
        downloads=downloads,
        emit=EventEmitter(as_observers(observers), account=log_account),
        concurrency_policy=concurrency,
        poll_policy=polling or PollPolicy(),
        retry_policy=retry or RetryPolicy(),
        timeouts=timeouts,
        max_credits=parse_credits("max_credits", max_credits),
        budgets=_as_budgets(budgets),
        publisher=references,
        adopt=adopt_mode(adopt, chosen_ledger),
        adopt_every_s=as_number("adopt_every_s", adopt_every_s, above=0.0),
        **shared,
    )


def to_ledger(ledger: Ledger | str | os.PathLike[str] | PostgresUrl | None) -> Ledger:
    """Return the ledger for a setting: a ledger, a path, a PostgreSQL URL, or None for memory."""
    match ledger:
        case None:
            return MemoryLedger()
        case str() | os.PathLike() | PostgresUrl():
            return ledger_at(ledger)
        case _:
            check_kind("ledger", ledger, Ledger, "a ledger or the path of its file, such as 'jobs.sqlite', or a URL")
            return ledger


def _as_budgets(budgets: object) -> Mapping[str, Budget]:
    wanted = 'the budgets of groups, such as {"alice": Budget(name="alice", max_credits=100)}'
    check_kind("budgets", budgets, (Mapping, type(None)), wanted)
    given = dict(budgets) if isinstance(budgets, Mapping) else {}
    for group, budget in given.items():
        check_kind("a key of budgets", group, (str,), "the name of a group, as text")
        check_kind(f"budgets[{group!r}]", budget, (Budget,), 'a Budget, such as Budget(name="alice", max_credits=100)')
    check_names_apart("budgets", given.values())
    return given


def as_observers(observers: object) -> tuple[Callable[[Event], None], ...]:
    """Return the functions that observe a session: one of each factory, for all accounts of the session."""
    wanted = "a list of functions that take an event, such as [print]"
    check_kind("observers", observers, Iterable, wanted)
    found: list[Callable[[Event], None]] = []
    for index, observer in enumerate(observers if isinstance(observers, Iterable) else ()):
        if isinstance(observer, type) or not (callable(observer) or isinstance(observer, ObserverFactory)):
            what = f"the class {observer.__name__}" if isinstance(observer, type) else kind_of(observer)
            raise ConfigurationError(f"observers must be {wanted}; number {index + 1} is {what}")
        found.append(observer.observer() if isinstance(observer, ObserverFactory) else observer)
    return tuple(found)


class _FakeAddressWarner:
    """Warns once if the gateway's name resolves to an address that VPN tools make up: the names of images will too."""

    def __init__(self, networks: Networks) -> None:
        self._networks = networks
        self._warned = False

    def __call__(self, host: str, addresses: list[str]) -> None:
        fake = next((each for each in addresses if is_fake_ip(each)), None)
        if fake is None or self._warned or is_allowed_address(fake, loopback=False, networks=self._networks):
            return
        self._warned = True
        why = "as behind a VPN tool that makes up addresses: images can't be downloaded there"
        log.warning(
            "%s resolves to %s, %s%s", host, fake, why, advice_for(fake), extra={"event": "gateway.fake_address"}
        )


def make_connections(
    gateway: Gateway,
    timeouts: Timeouts,
    max_requests: int,
    *,
    http: aiohttp.ClientSession | Transport | None,
    tls: ssl.SSLContext | bool | None,
    proxy: str | Secret | None,
    trust_env: bool,
    allow_networks: Iterable[str] | None = None,
    download_headers: Mapping[str, str] | None = None,
) -> tuple[Transport, ImageDownloader]:
    """Return the transport and the image downloader; raise `ConfigurationError` for settings that conflict."""
    proxies = Proxies(proxy, trust_env=trust_env)
    networks = networks_of_environment(os.environ) if allow_networks is None else to_networks(allow_networks)
    verified_tls = validate_tls(tls)
    transport: Transport
    if http is None or isinstance(http, aiohttp.ClientSession):
        if http is not None:
            check_lent(http)
            verified_tls = tls_of_borrowed(http, tls=tls, proxied=proxy is not None or trust_env)
        transport = AiohttpTransport(
            gateway,
            timeouts=timeouts,
            http=http,
            tls=verified_tls,
            proxies=proxies,
            resolver=ThreadedResolver(_FakeAddressWarner(networks)),
            max_connections=2 * max_requests,
        )
    else:
        transport = http
    local = is_loopback(urlsplit(gateway.base_url).hostname or "")
    downloader = ImageDownloader(
        allow_loopback=local,
        networks=networks,
        lent=http if isinstance(http, aiohttp.ClientSession) else None,
        proxies=proxies,
        tls=verified_tls,
        connect_s=timeouts.connect_s,
        headers=download_headers,
        own_origin=allowed_http_origin(gateway),
    )
    return transport, downloader
