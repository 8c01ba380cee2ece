"""Make and verify callback URLs: each job has its own, which the gateway calls when the task has ended.

Callbacks are unsigned. The URL holds a token that others cannot guess (an HMAC of the job's key), and the content of
a callback is only a hint: it causes one poll, and is never believed.
"""

import asyncio
import base64
import binascii
import hashlib
import hmac
from collections.abc import Awaitable, Callable

from nanobanana_async.errors import ConfigurationError
from nanobanana_async.jobs import JobRecord
from nanobanana_async.ledger.base import Ledger
from nanobanana_async.loop_guard import LoopGuard

Handler = Callable[[str, bytes], Awaitable[bool]]

PATH = "/callbacks"
TOKEN_BYTES = 24
SHORTEST_SECRET = 16


class CallbackUrls:
    """Makes callback URLs and verifies them. The secret comes from the user, or else from the ledger."""

    def __init__(self, ledger: Ledger, guard: LoopGuard) -> None:
        self._ledger = ledger
        self._guard = guard
        self._public_url: str | None = None
        self._secret: bytes | None = None
        self._handler: Handler | None = None
        self.enabled = asyncio.Event()
        """Set once a receiver for callbacks exists."""

    def enable(self, public_url: str, secret: bytes | None) -> None:
        """Give each new job a callback URL below this one."""
        self._guard.check()
        if secret is not None and len(secret) < SHORTEST_SECRET:
            raise ConfigurationError(f"secret must have at least {SHORTEST_SECRET} bytes, best random ones")
        self._public_url, self._secret = public_url.rstrip("/"), secret
        self.enabled.set()

    def set_callback_handler(self, handler: Handler) -> None:
        """Set the function that handles callbacks; called when the session opens."""
        self._handler = handler

    async def handle_verified(self, key: str, body: bytes) -> bool:
        """Handle a callback. Return False if that is not possible because the session is not open."""
        self._guard.check()
        return self._handler is not None and await self._handler(key, body)

    def is_expected_for(self, record: JobRecord) -> bool:
        """Whether the gateway is expected to send a callback when this job ends."""
        url = None if record.request is None else record.request.callback_url
        return url is not None and self._public_url is not None and url.startswith(f"{self._public_url}{PATH}/")

    async def make_url(self, key: str) -> str:
        """Return the URL of a job."""
        return f"{self._public_url}{PATH}/{_base64url(key.encode())}/{await self._token_of(key)}"

    async def verify(self, name: str, token: str) -> str | None:
        """Return the key of the job whose URL ends in this name and token; None if there is no such URL."""
        self._guard.check()
        try:
            key = base64.urlsafe_b64decode(name + "=" * (-len(name) % 4)).decode()
        except (binascii.Error, ValueError):
            key = ""
        genuine = hmac.compare_digest((await self._token_of(key)).encode(), token.encode(errors="replace"))
        return key if genuine and key and _base64url(key.encode()) == name else None

    async def _token_of(self, key: str) -> str:
        if self._secret is None:
            self._secret = await self._ledger.callback_secret()
        mac = hmac.digest(self._secret, f"nanobanana_async callback {key}".encode(), hashlib.sha256)
        return _base64url(mac[:TOKEN_BYTES])


def _base64url(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
