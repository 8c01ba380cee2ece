"""Keep one webhook of the account registered, so that the gateway calls us when any of its tasks ends.

Every process on a ledger has the same URL, since its token comes from the ledger: a later session finds the webhook by
its URL, and registers none. Processes that register at once find each other's webhooks afterwards, and all keep the
one with the lowest id. A webhook whose token is not ours is never touched: an id counts as ours only if the list shows
our URL beside it, also when the answer to a registration names another.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import anyio

from nanobanana_async.commands import command_line
from nanobanana_async.engine.callback_router import CallbackRouter
from nanobanana_async.engine.contained_send import send_contained, wait_for_cap_and_pause
from nanobanana_async.engine.fallback_polling import FallbackPolling
from nanobanana_async.engine.unlisted_registrations import MOST_UNLISTED, UnlistedRegistrations
from nanobanana_async.errors import (
    MAX_RETRY_AFTER_S,
    ConfigurationError,
    GatewayError,
    GatewayUnavailable,
    NanoBananaError,
    TaskNotFound,
    TransportError,
)
from nanobanana_async.escaping import one_line
from nanobanana_async.events import log
from nanobanana_async.gateways.capabilities import MAX_WEBHOOKS_READ, HasWebhooks, Webhook
from nanobanana_async.gateways.contract import HttpRequest, HttpResponse, Transport
from nanobanana_async.gateways.secret import Secret
from nanobanana_async.policy.session_budget import SessionBudget

# The waits between two attempts to register: the first, and the longest.
FIRST_WAIT_S = 5.0
LONGEST_WAIT_S = 900.0

# So long after a list without our webhook it is read once more: other processes may be registering it just now.
REREAD_AFTER_S = 5.0

# Where deliveries do not come, the registration is checked again after this time; twice as long after each check that
# finds nothing to change, up to the longest.
FIRST_CHECK_GAP_S = 300.0
LONGEST_CHECK_GAP_S = 3600.0

MOST_PAGES = 20
"""How many pages of the list are read."""

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
        await wait_for_cap_and_pause(self._budget, self._clock)
        self._budget.on_sent("poll", self._clock())  # creates and polls leave later for it where requests are scarce
        return await send_contained(self._transport, request, timeout_s=self._timeout_s)


class Webhooks:
    """Lists, registers and removes the webhooks of an account."""

    def __init__(self, gateway: HasWebhooks, account: str, callbacks: CallbackRouter, send: Send) -> None:
        self._gateway = gateway
        self._account = account
        self._callbacks = callbacks
        self._send = send

    async def fetch(self) -> Sequence[Webhook]:
        """Return the webhooks of the account, from all pages of the list."""
        found: dict[Webhook, None] = {}
        cursor: str | None = None
        for number in range(1, MOST_PAGES + 1):
            request = self._gateway.build_webhook_list(number, cursor)
            page = self._gateway.read_webhook_list(await self._send(request))
            cursor, before = page.next_cursor, len(found)
            found.update(dict.fromkeys(page.webhooks))
            # A gateway that knows neither the number nor the cursor of a page sends the first page again.
            if page.is_last or len(found) == before or len(found) >= MAX_WEBHOOKS_READ:
                break
        return [*found][:MAX_WEBHOOKS_READ]

    async def fetch_ours(self) -> Sequence[Webhook]:
        """Return those that were registered from this ledger for this account, for any public URL."""
        return [each for each, account in await self.fetch_with_accounts() if account == self._account]

    async def fetch_with_accounts(self) -> Sequence[tuple[Webhook, str | None]]:
        """Return each webhook with the account for which this ledger registered it; None if it is not ours.

        One whose id also stands beside another URL is not ours: to remove it could remove the other.
        """
        listed = await self.fetch()
        accounts = [await self._callbacks.account_of_url(each.url) for each in listed]
        foreign = {each.id for each, account in zip(listed, accounts, strict=True) if account is None}
        return [(each, None if each.id in foreign else account) for each, account in zip(listed, accounts, strict=True)]

    async def register(self) -> None:
        """Register a webhook. The list shows which one it is."""
        url = await self._callbacks.make_account_url(self._account)
        secret = Secret(await self._callbacks.account_secret(self._account))
        response = await self._send(self._gateway.build_webhook_registration(url, secret=secret.reveal()))
        self._gateway.read_webhook_registration(_hide(secret, response))

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
        return sum([await self.remove(webhook.id) for webhook in await self.fetch_ours()])


class AccountWebhook:
    """Keeps the webhook registered as long as the session is open. Without it jobs are polled as usual."""

    def __init__(
        self, webhooks: Webhooks, callbacks: CallbackRouter, fallback: FallbackPolling, unlisted: UnlistedRegistrations
    ) -> None:
        self._webhooks = webhooks
        self._unlisted = unlisted
        self._is_unlisted = False
        """Our webhook may be registered, and the list does not show it: no other is registered."""
        self._callbacks = callbacks
        self._fallback = fallback
        self._clock = asyncio.get_running_loop().time
        self._lock = asyncio.Lock()
        self._wanted = True

    async def keep_registered(self) -> None:
        """Register the webhook once there is a receiver; check it again where it is in doubt."""
        await self._callbacks.enabled.wait()
        wait_s, gap_s = FIRST_WAIT_S, FIRST_CHECK_GAP_S
        while True:
            try:
                new = await self._register_if_wanted()
            except Exception as error:  # a gateway of the user's own may raise anything, and jobs are polled anyway
                asked_s = min(getattr(error, "retry_after_s", None) or 0.0, MAX_RETRY_AFTER_S)
                _log_failure(error, max(wait_s, asked_s), first=wait_s == FIRST_WAIT_S)
                await anyio.sleep(max(wait_s, asked_s))
                wait_s = min(2 * wait_s, LONGEST_WAIT_S)
                continue
            wait_s, gap_s = FIRST_WAIT_S, FIRST_CHECK_GAP_S if new else gap_s
            await anyio.sleep(gap_s)
            self._fallback.webhook_doubted.clear()
            await self._fallback.webhook_doubted.wait()
            gap_s = min(2 * gap_s, LONGEST_CHECK_GAP_S)

    async def unregister_webhooks(self) -> int:
        """Remove the webhooks of the account that are ours, and register none again; return how many were removed."""
        self._wanted = False
        async with self._lock:
            self._fallback.on_webhook_removed()
            return await self._webhooks.remove_ours()

    async def _register_if_wanted(self) -> bool:
        async with self._lock:
            new = self._wanted and await self._ensure_registered()
            if self._wanted:
                self._fallback.on_webhook_registered()
            return new

    async def _ensure_registered(self) -> bool:
        """Register our webhook unless it is there and active; remove others of ours, which are superfluous.

        Return whether it had to be registered.
        """
        current, others = self._current_and_others(await self._webhooks.fetch_ours())
        unlisted = await self._unlisted.count()
        if not current and unlisted >= MOST_UNLISTED and not self._is_unlisted:
            await anyio.sleep(REREAD_AFTER_S)
            current, others = self._current_and_others(await self._webhooks.fetch_ours())
        if missing := not current:
            if self._is_unlisted or unlisted >= MOST_UNLISTED:
                self._stop_registering()
                return False
            await self._register_and_count(unlisted)
            current, others = self._current_and_others(await self._webhooks.fetch_ours(), known=others)
            if not current:
                await self._unlisted.store_count(MOST_UNLISTED)
                self._stop_registering()
                return True
            log.info("webhook.registered id=%s", current[0], extra={"event": "webhook.registered"})
        if missing or unlisted:
            await self._unlisted.store_count(0)
        for superfluous in (*current[1:], *others):
            await self._webhooks.remove(superfluous)
        return missing

    async def _register_and_count(self, unlisted: int) -> None:
        await self._unlisted.store_count(unlisted + 1)
        try:
            await self._webhooks.register()
        except NanoBananaError as error:
            if not _may_have_registered(error):
                await self._unlisted.store_count(unlisted)
            raise

    def _current_and_others(
        self, ours: Sequence[Webhook], known: Sequence[str] | None = None
    ) -> tuple[list[str], list[str]]:
        """Return the ids of those that are active and have the present public URL, and the ids of the others.

        After a registration `known` are those that were there before. If all are others, the new ones count as current:
        the list may write the URL or the status in a way of its own.
        """
        ids = {each.id for each in ours}
        current = {each.id for each in ours if each.is_active and self._callbacks.is_below_public_url(each.url)}
        if not current and known is not None:
            current = ids.difference(known)
        return sorted(current), sorted(ids - current)

    def _stop_registering(self) -> None:
        if not self._is_unlisted:
            why = (
                "the gateway's list does not show the webhook that was registered, so no other is registered for a day;"
                f" deliveries are used if they come. See `{command_line('webhooks')}`, and remove superfluous ones of"
                " this app"
            )
            log.warning("webhook.hidden %s", why, extra={"event": "webhook.hidden"})
        self._is_unlisted = True


def _hide(secret: Secret, response: HttpResponse) -> HttpResponse:
    """Return an answer without the secret that the request named: a refusal may repeat it, and is logged."""
    text = response.body.decode("latin-1")
    headers = {name.lower(): value for name, value in response.headers.items()}
    if not any(map(secret.is_in, (text, *headers.values()))):
        return response
    hidden = {name: secret.hide(value) for name, value in headers.items()}
    return HttpResponse(status=response.status, headers=hidden, body=secret.hide(text).encode("latin-1"))


def _may_have_registered(error: NanoBananaError) -> bool:
    """Return whether a registration that failed may have been carried out."""
    if isinstance(error, TransportError):
        return error.possibly_sent
    refused = isinstance(error, GatewayError) and not isinstance(error, GatewayUnavailable)
    return not (refused or isinstance(error, ConfigurationError))


def _log_failure(error: Exception, wait_s: float, *, first: bool) -> None:
    """Log the first failure in a row as a warning, the others as information."""
    why = one_line(error.message if isinstance(error, NanoBananaError) else str(error))
    text, extra = f"{type(error).__name__}: {why} wait_s={wait_s:.0f}", {"event": "webhook.not_registered"}
    if first:
        log.warning("webhook.not_registered error=%s jobs are polled as without webhooks", text, extra=extra)
    else:
        log.info("webhook.not_registered error=%s", text, extra=extra)
