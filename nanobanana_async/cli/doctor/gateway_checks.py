"""Check proxy, network, clock, API key and balance, with a question that costs nothing."""

import os
import secrets
from collections.abc import AsyncIterator
from datetime import UTC, datetime

from yarl import URL

from nanobanana_async.cli.doctor.finding import Finding
from nanobanana_async.cli.options import in_cli_words
from nanobanana_async.config import Timeouts
from nanobanana_async.errors import (
    AuthenticationError,
    ConfigurationError,
    GatewayError,
    NanoBananaError,
    RateLimited,
    TaskNotFound,
    TransportError,
)
from nanobanana_async.formatting import credit_count, duration
from nanobanana_async.gateways.capabilities import HasBalance
from nanobanana_async.gateways.contract import Gateway, HttpRequest, HttpResponse
from nanobanana_async.gateways.rate_limits import http_date
from nanobanana_async.http.tls_and_proxies import Proxies
from nanobanana_async.http.transport import AiohttpTransport

ANSWER_S = 20.0
CLOCK_S = 60.0
"""By how much the clock may differ from the gateway's: retries and the lifetime of keys are counted in hours."""


async def gateway_findings(gateway: Gateway) -> AsyncIterator[Finding]:
    """Ask for a task that does not exist: whether the gateway can be reached, and takes the key, at no cost."""
    try:
        proxies = Proxies(trust_env=True)
    except ConfigurationError as error:
        yield Finding("proxy", "problem", str(error))
        return
    through = proxies.proxy_for(URL(gateway.base_url))
    yield Finding("proxy", "ok", "none" if through is None else "the environment's; its URL is not shown")
    transport = AiohttpTransport(gateway, timeouts=Timeouts(), proxies=proxies)
    await transport.open()
    try:
        unknown = gateway.build_query(f"doctor-{secrets.token_hex(8)}")
        try:
            response = await _send(transport, unknown)
        except NanoBananaError as error:
            lasting = isinstance(error, TransportError) and error.lasting
            advice = "" if lasting else "check the network, and the address (--base-url, NANOBANANA_BASE_URL)"
            yield Finding("network", "problem", in_cli_words(error), advice)
            return
        yield Finding("network", "ok", f"{URL(gateway.base_url).host} answers{_tls_words(gateway)}")
        yield _clock(response)
        key = _key(gateway, response)
        yield key
        if isinstance(gateway, HasBalance) and key.verdict == "ok":
            yield await _balance(gateway, transport)
    finally:
        await transport.aclose()


async def _send(transport: AiohttpTransport, request: HttpRequest) -> HttpResponse:
    return await transport.send(request, timeout_s=ANSWER_S)


def _tls_words(gateway: Gateway) -> str:
    if URL(gateway.base_url).scheme != "https":
        return ", without TLS"
    own = os.environ.get("SSL_CERT_FILE")
    return ", its certificate is trusted" + (f" (SSL_CERT_FILE={own})" if own else "")


def _clock(response: HttpResponse) -> Finding:
    theirs = http_date(response.headers.get("date", ""))
    if theirs is None:
        return Finding("clock", "note", "the gateway does not say what time it is: not compared")
    behind_s = (theirs - datetime.now(UTC)).total_seconds()
    if abs(behind_s) <= CLOCK_S:
        return Finding("clock", "ok", "agrees with the gateway's")
    which = "behind" if behind_s > 0 else "ahead"
    advice = "set it (timedatectl set-ntp true): keys and links expire by it"
    return Finding("clock", "problem", f"{duration(abs(behind_s), tenths=False)} {which} of the gateway's", advice)


def _key(gateway: Gateway, response: HttpResponse) -> Finding:
    """Return whether the key is good: the gateway's answers to a wrong key and to an unknown task differ."""
    try:
        gateway.read_query(response)
    except TaskNotFound:
        return Finding("API key", "ok", "accepted")
    except AuthenticationError as error:
        error.advice = "check the API key"  # without the command, which runs here
        return Finding("API key", "problem", in_cli_words(error))
    except RateLimited as error:
        return Finding("API key", "note", in_cli_words(error), "not known: ask again later")
    except GatewayError as error:
        return Finding("API key", "problem", in_cli_words(error))
    except NanoBananaError as error:
        advice = "check that this is the gateway (--base-url, NANOBANANA_BASE_URL)"
        return Finding("API key", "problem", in_cli_words(error), advice)
    return Finding("API key", "note", "the gateway shows a task that does not exist: is it an emulator?")


async def _balance(gateway: HasBalance, transport: AiohttpTransport) -> Finding:
    try:
        balance = gateway.read_balance(await _send(transport, gateway.build_balance()))
    except NanoBananaError as error:
        return Finding("balance", "note", in_cli_words(error), "images can be generated without knowing it")
    if balance <= 0:
        return Finding("balance", "problem", credit_count(balance), "add credits at the gateway")
    return Finding("balance", "ok", credit_count(balance))
