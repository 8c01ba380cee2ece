"""Make and verify the URLs that a gateway calls when a task has ended, one for each job or one for the account.

The URL holds a token that others cannot guess (an HMAC of the job's key, or of the account), and the content of a
callback is only a hint: it causes one poll, and is never believed.
"""

import asyncio
import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Mapping
from typing import Protocol

from attrs import evolve
from yarl import URL

from nanobanana_async.errors import ConfigurationError
from nanobanana_async.gateways.contract import Gateway
from nanobanana_async.gateways.secret import Secret
from nanobanana_async.http.urls import parse_url
from nanobanana_async.jobs import JobRecord
from nanobanana_async.ledger.base import Ledger
from nanobanana_async.loop_guard import LoopGuard
from nanobanana_async.models import ImageRequest

CALLBACK_PATH = "/callbacks"
ACCOUNT_PATH = f"{CALLBACK_PATH}/account"
TOKEN_BYTES = 24
SHORTEST_SECRET = 16

_ACCOUNT_PATH_PATTERN = re.compile(rf"{ACCOUNT_PATH}/([A-Za-z0-9_-]{{1,400}})/([A-Za-z0-9_-]{{1,100}})/*\Z")


class HandlesCallbacks(Protocol):
    """Handles callbacks about the jobs of one account."""

    def follows(self, key: str) -> bool:
        """Return whether the session follows the job with this account."""
        ...

    def receive_notice(self, key: str, task_id: str | None) -> None:
        """Handle a callback that another process got, if the session follows the job with this account."""
        ...

    async def handle(self, key: str, body: bytes) -> bool:
        """Handle a callback to the URL of a job; return False when the session is closing."""
        ...


class HandlesDeliveries(Protocol):
    """Handles callbacks about all tasks of an account, called deliveries, and removes the account's webhook."""

    async def handle(self, account: str, headers: Mapping[str, str], body: bytes) -> bool:
        """Handle a delivery to the URL of an account; return False if it can't be handled here."""
        ...

    async def unregister_webhooks(self) -> int:
        """Remove the webhooks of the account that are ours; return how many."""
        ...


class CallbackRouter:
    """Makes and verifies callback URLs, and gives each callback to the handler of its account.

    The secret comes from the user, or else from the ledger.
    """

    def __init__(self, ledger: Ledger, guard: LoopGuard) -> None:
        self._ledger = ledger
        self._guard = guard
        self._public_url: str | None = None
        self._secret: Secret | None = None
        self._callback_handlers: dict[str, HandlesCallbacks] = {}
        """By account of the session."""
        self._delivery_handlers: dict[str, HandlesDeliveries] = {}
        """By account, of gateways with webhooks."""
        self.enabled = asyncio.Event()
        """Set once a receiver for callbacks exists."""

    def enable(self, public_url: str, secret: Secret | None) -> None:
        """Let the gateway call URLs below this one; the secret is one of `secret_from_input`."""
        self._guard.check()
        self._public_url, self._secret = public_url.rstrip("/"), secret
        self.enabled.set()

    def set_handlers(self, account: str, jobs: HandlesCallbacks, deliveries: HandlesDeliveries | None) -> None:
        """Set what handles an account's callbacks, and its deliveries if the gateway has webhooks, when it opens."""
        self._callback_handlers[account] = jobs
        if deliveries is not None:
            self._delivery_handlers[account] = deliveries

    async def handle_callback(self, key: str, body: bytes) -> bool:
        """Handle a callback. Return False if that is not possible because the session is not open."""
        self._guard.check()
        handler = await self._handler_of(key)
        return handler is not None and await handler.handle(key, body)

    async def _handler_of(self, key: str) -> HandlesCallbacks | None:
        """Return the handler of the account that has a job; any if the session does not have that account."""
        handlers = self._callback_handlers
        known: JobRecord | None = None
        if len(handlers) > 1 and not any(each.follows(key) for each in handlers.values()):
            known = await self._ledger.find(key)
        following = [each for each in handlers.values() if each.follows(key)]  # read now: it may have moved meanwhile
        own = [handlers[known.account]] if known is not None and known.account in handlers else []
        return next(iter([*following, *own, *handlers.values()]), None)

    def receive_notice(self, key: str, task_id: str | None) -> None:
        """Handle a callback that another process got for a job of ours."""
        for handler in self._callback_handlers.values():
            handler.receive_notice(key, task_id)

    async def handle_delivery(self, account: str, headers: Mapping[str, str], body: bytes) -> bool:
        """Handle a delivery for an account. Return False if that is not possible in this session."""
        self._guard.check()
        handler = self._delivery_handlers.get(account) or next(iter(self._delivery_handlers.values()), None)
        return handler is not None and await handler.handle(account, headers, body)

    async def unregister_webhooks(self) -> int:
        """Remove the webhooks of the session's accounts that are ours; return how many."""
        self._guard.check()
        if not self._callback_handlers:
            raise ConfigurationError("the session is not open: unregister before it is closed")
        return sum([await each.unregister_webhooks() for each in self._delivery_handlers.values()])

    async def with_callback_url(self, request: ImageRequest, gateway: Gateway, key: str) -> ImageRequest:
        """Return the request with the URL of its job, if callbacks are received and the gateway calls such URLs."""
        if not (self.enabled.is_set() and gateway.supports_callbacks) or request.callback_url:
            return request
        return evolve(request, callback_url=await self.make_url(key))

    def expects_callback_for(self, record: JobRecord) -> bool:
        """Whether the gateway is expected to send a callback when this job ends."""
        url = None if record.request is None else record.request.callback_url
        return (
            url is not None and self._public_url is not None and url.startswith(f"{self._public_url}{CALLBACK_PATH}/")
        )

    async def make_url(self, key: str) -> str:
        """Return the URL of a job."""
        return f"{self._public_url}{CALLBACK_PATH}/{_base64url(key.encode())}/{await self._job_token(key)}"

    async def make_account_url(self, account: str) -> str:
        """Return the URL of an account."""
        return f"{self._public_url}{ACCOUNT_PATH}/{_base64url(account.encode())}/{await self._account_token(account)}"

    async def account_secret(self, account: str) -> str:
        """Return the secret with which the gateway signs deliveries for an account."""
        return await self._make_token(f"nanobanana_async webhook secret {account}", hashlib.sha256().digest_size)

    async def account_of_url(self, url: str) -> str | None:
        """Return the account whose URL this is, for any public URL; None if its token is not ours."""
        parsed = _parse_url(url)
        match = (
            None
            if parsed is None or parsed.raw_query_string or parsed.raw_fragment
            else _ACCOUNT_PATH_PATTERN.search(parsed.path)
        )
        return None if match is None else await self.verify_account(match[1], match[2])

    def is_below_public_url(self, url: str) -> bool:
        """Return whether an account's URL is below the present public URL, however the gateway writes both."""
        listed, ours = _parse_url(url.rpartition(f"{ACCOUNT_PATH}/")[0]), _parse_url(self._public_url or "")
        return listed is not None and ours is not None and _comparable_parts(listed) == _comparable_parts(ours)

    async def verify_job(self, name: str, token: str) -> str | None:
        """Return the key of the job whose URL ends in this name and token; None if there is no such URL."""
        self._guard.check()
        key = _decode_name(name)
        genuine = hmac.compare_digest((await self._job_token(key)).encode(), token.encode(errors="replace"))
        return key if genuine and key and _base64url(key.encode()) == name else None

    async def verify_account(self, name: str, token: str) -> str | None:
        """Return the account whose URL ends in this name and token; None if there is no such URL."""
        self._guard.check()
        account = _decode_name(name)
        genuine = hmac.compare_digest((await self._account_token(account)).encode(), token.encode(errors="replace"))
        return account if genuine and account and _base64url(account.encode()) == name else None

    async def _job_token(self, key: str) -> str:
        return await self._make_token(f"nanobanana_async callback {key}", TOKEN_BYTES)

    async def _account_token(self, account: str) -> str:
        return await self._make_token(f"nanobanana_async webhook {account}", TOKEN_BYTES)

    async def _make_token(self, purpose: str, length: int) -> str:
        if self._secret is None:
            self._secret = _secret_from_bytes(await self._ledger.callback_secret())
        return _base64url(
            hmac.digest(self._secret.reveal().encode("latin-1"), purpose.encode(), hashlib.sha256)[:length]
        )


def secret_from_input(secret: object) -> Secret | ConfigurationError | None:
    """Return the user's secret so that no output shows it, or the error if it can't sign anything: it is not raised."""
    if secret is None:
        return None
    raw = secret.encode(errors="surrogatepass") if isinstance(secret, str) else secret
    if not isinstance(raw, bytes) or len(raw) < SHORTEST_SECRET:
        return ConfigurationError(f"secret must have at least {SHORTEST_SECRET} bytes, best random ones")
    return _secret_from_bytes(raw)


def _secret_from_bytes(raw: bytes) -> Secret:
    return Secret(raw.decode("latin-1"))


def _parse_url(url: str) -> URL | None:
    try:
        parsed = parse_url(url.strip())
        _comparable_parts(parsed)  # host and port are parsed when they are read
    except ValueError:
        return None
    return parsed


def _comparable_parts(url: URL) -> tuple[str, str | None, int | None, str]:
    """Return what does not depend on how a URL is written: a default port, a slash at the end, the case of the host."""
    return url.scheme, url.raw_host, url.port, url.path.rstrip("/")


def _decode_name(name: str) -> str:
    try:
        return base64.urlsafe_b64decode(name + "=" * (-len(name) % 4)).decode()
    except (binascii.Error, ValueError):
        return ""


def _base64url(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
