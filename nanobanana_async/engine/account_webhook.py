"""Keep one webhook of the account registered, so that the gateway calls us when any of its tasks ends.

Every process on a ledger has the same URL, since its token comes from the ledger: a later session finds the webhook by
its URL, and registers none. Processes that register at once find each other's webhooks afterwards, and all keep the
one with the lowest id. A webhook whose token is not ours is never touched.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import anyio

from nanobanana_async.engine.callback_urls import CallbackUrls
from nanobanana_async.engine.contained_send import send_contained
from nanobanana_async.engine.fallback_polling import FallbackPolling
from nanobanana_async.engine.timers import TICK_S
from nanobanana_async.errors import MAX_RETRY_AFTER_S, NanoBananaError, TaskNotFound
from nanobanana_async.escaping import one_line
from nanobanana_async.events import log
from nanobanana_async.gateways.capabilities import HasWebhooks, Webhook
from nanobanana_async.gateways.contract import HttpRequest, HttpResponse, Transport
from nanobanana_async.policy.session_budget import SessionBudget

# The waits between two attempts to register: the first, and the longest.
FIRST_WAIT_S = 5.0
LONGEST_WAIT_S = 900.0

# Where deliveries do not come, the registration is checked again after this time; twice as long after each check that
# finds nothing to change, up to the longest.
CHECK_GAP_S = 300.0
LONGEST_CHECK_GAP_S = 3600.0

Send = Callable[[HttpRequest], Awaitable[HttpResponse]]


class BudgetedSend:
    """Sends requests about webhooks: each counts as a request, and waits for the user's cap and for pauses."""

    def __init__(
        self, transport: Transport, budget: SessionBudget, *, timeout_s: float, clock: Callable[[], float]
    ) -> None:
        self._transport = transport
        self._budget = budget
        self._timeout_s = timeout_s
        self._clock = clock

    async def __call__(self, request: HttpRequest) -> HttpResponse:
        """Send a request when its turn has come."""
        while (wait_s := self._budget.gate_opens_at - self._clock()) > 0:  # noqa: ASYNC110 - others may take the turn
            await anyio.sleep(max(wait_s, TICK_S))
        self._budget.sent("poll", self._clock())  # creates and polls leave later for it where requests are scarce
        return await send_contained(self._transport, request, timeout_s=self._timeout_s)


class Webhooks:
    """Lists, registers and removes the webhooks of an account."""

    def __init__(self, gateway: HasWebhooks, account: str, callbacks: CallbackUrls, send: Send) -> None:
        self._gateway = gateway
        self._account = account
        self._callbacks = callbacks
        self._send = send

    async def fetch(self) -> Sequence[Webhook]:
        """Return all webhooks of the account."""
        return self._gateway.read_webhook_list(await self._send(self._gateway.build_webhook_list()))

    async def ours(self) -> Sequence[Webhook]:
        """Return those that were registered from this ledger for this account, for any public URL."""
        return [each for each in await self.fetch() if await self._callbacks.account_of(each.url) == self._account]

    async def remove(self, webhook_id: str) -> bool:
        """Remove a webhook; return False if there is none with this id."""
        try:
            self._gateway.read_webhook_removal(await self._send(self._gateway.build_webhook_removal(webhook_id)))
        except TaskNotFound:
            return False
        log.info("webhook.removed id=%s", webhook_id, extra={"event": "webhook.removed"})
        return True

    async def remove_ours(self) -> int:
        """Remove all of ours; return how many."""
        return sum([await self.remove(webhook.id) for webhook in await self.ours()])

    async def ensure(self) -> bool:
        """Register our webhook unless it is there and active; remove others of ours, which are superfluous.

        Return whether it had to be registered.
        """
        current, others = self._sorted(await self.ours())
        if missing := not current:
            url = await self._callbacks.make_account_url(self._account)
            secret = await self._callbacks.account_secret(self._account)
            made = self._gateway.read_webhook(await self._send(self._gateway.build_webhook(url, secret=secret)))
            log.info("webhook.registered id=%s", made.id, extra={"event": "webhook.registered"})
            current, others = self._sorted(await self.ours())  # another process may have registered one meanwhile
            current = sorted({made.id, *current})
        for superfluous in (*current[1:], *others):
            await self.remove(superfluous)
        return missing

    def _sorted(self, ours: Sequence[Webhook]) -> tuple[list[str], list[str]]:
        """Return the ids of those that are active and have the present public URL, and the ids of the others."""
        current = [each.id for each in ours if each.is_active and self._callbacks.is_below_public_url(each.url)]
        return sorted(current), [each.id for each in ours if each.id not in current]


class AccountWebhook:
    """Keeps the webhook registered as long as the session is open. Without it jobs are polled as usual."""

    def __init__(self, webhooks: Webhooks, callbacks: CallbackUrls, fallback: FallbackPolling) -> None:
        self._webhooks = webhooks
        self._callbacks = callbacks
        self._fallback = fallback
        self._clock = asyncio.get_running_loop().time
        self._turn = asyncio.Lock()
        self._wanted = True

    async def keep_registered(self) -> None:
        """Register the webhook once there is a receiver; check it again where deliveries are lost."""
        await self._callbacks.enabled.wait()
        wait_s, gap_s = FIRST_WAIT_S, CHECK_GAP_S
        while True:
            try:
                new = await self._register()
            except Exception as error:  # a gateway of the user's own may raise anything, and jobs are polled anyway
                asked_s = min(getattr(error, "retry_after_s", None) or 0.0, MAX_RETRY_AFTER_S)
                _log_failure(error, max(wait_s, asked_s), first=wait_s == FIRST_WAIT_S)
                await anyio.sleep(max(wait_s, asked_s))
                wait_s = min(2 * wait_s, LONGEST_WAIT_S)
                continue
            wait_s, gap_s = FIRST_WAIT_S, CHECK_GAP_S if new else gap_s
            await anyio.sleep(gap_s)
            self._fallback.deliveries_lost.clear()
            await self._fallback.deliveries_lost.wait()
            gap_s = min(2 * gap_s, LONGEST_CHECK_GAP_S)

    async def unregister(self) -> int:
        """Remove the webhooks of the account that are ours, and register none again; return how many were removed."""
        self._wanted = False
        async with self._turn:
            self._fallback.webhook_removed()
            return await self._webhooks.remove_ours()

    async def _register(self) -> bool:
        async with self._turn:
            new = self._wanted and await self._webhooks.ensure()
            if self._wanted:
                self._fallback.webhook_registered()
            return new


def _log_failure(error: Exception, wait_s: float, *, first: bool) -> None:
    """Log the first failure in a row as a warning, the others as information."""
    why = one_line(error.message if isinstance(error, NanoBananaError) else str(error))
    text, extra = f"{type(error).__name__}: {why} wait_s={wait_s:.0f}", {"event": "webhook.not_registered"}
    if first:
        log.warning("webhook.not_registered error=%s jobs are polled as without webhooks", text, extra=extra)
    else:
        log.info("webhook.not_registered error=%s", text, extra=extra)
