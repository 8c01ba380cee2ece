"""Handle the deliveries of the account's webhook: each is a hint to poll one task, and its content is not believed.

What a signature changes: one that is right and older than `REPLAY_S` is a replay, and is dropped. A wrong one is
dropped only if a right one has come before in this session: until then it is unknown how the gateway signs. A delivery
without a signature, or with one of an unknown form, is a hint like any other: its URL can't be guessed, and a false
hint costs one poll.
"""

from collections.abc import Mapping

import anyio

from nanobanana_async.engine.account_webhook import AccountWebhook
from nanobanana_async.engine.callback_handler import NOTICE_FETCH_S, CallbackHandler
from nanobanana_async.engine.callback_router import CallbackRouter
from nanobanana_async.engine.engine import Engine
from nanobanana_async.errors import LedgerError, NanoBananaError
from nanobanana_async.events import log
from nanobanana_async.gateways.capabilities import HasWebhooks

MAX_DELIVERY_AGE_S = 300.0
"""A signed delivery that is older is dropped."""

SEARCHES_PER_ROUND = 16
"""How many early deliveries are searched in the ledger in a row."""


class DeliveryHandler:
    """Finds the job of each delivery, tracked here or followed by another process on the ledger."""

    def __init__(
        self,
        webhook: AccountWebhook,
        gateway: HasWebhooks,
        engine: Engine,
        callbacks: CallbackRouter,
        callback_handler: CallbackHandler,
    ) -> None:
        self._webhook = webhook
        self._gateway = gateway
        self._engine = engine
        self._callbacks = callbacks
        self._callback_handler = callback_handler
        self._fallback = engine.poller.fallback
        self._signature_seen = False
        """A delivery with a right signature has come."""
        self._warned = False

    async def handle(self, account: str, headers: Mapping[str, str], body: bytes) -> bool:
        """Handle a delivery to the URL of an account; return False when the session is closing."""
        if self._engine.scheduler.closing:
            return False
        try:
            task_id = self._gateway.read_delivery(body)
        except NanoBananaError:
            return True
        if not await self._is_forged_or_replayed(account, headers, body):
            self._fallback.on_delivery(task_id)
            # It is remembered before the ledger is read: the create may be answered meanwhile.
            self._fallback.early_deliveries.add(account, task_id)
            await self._find_job(account, task_id)
        return not self._engine.scheduler.closing

    async def unregister_webhooks(self) -> int:
        """Remove the webhooks of the account that are ours; return how many."""
        return await self._webhook.unregister_webhooks()

    async def keep_searching_early_deliveries(self) -> None:
        """Search the jobs of early deliveries in the ledger, as long as the session is open."""
        early = self._fallback.early_deliveries
        while True:
            await early.wait()
            await anyio.sleep(NOTICE_FETCH_S)
            try:
                for account, task_id in early.due_for_search(SEARCHES_PER_ROUND):
                    await self._find_job(account, task_id)
            except LedgerError as error:
                log.warning("ledger.failed error=%s", error.message)

    async def _find_job(self, account: str, task_id: str) -> None:
        """Wake the job of a task; if there is none yet, the delivery stays remembered."""
        record = await self._engine.store.ledger.find_task(account, task_id)
        if record is not None and self._fallback.early_deliveries.take(account, task_id):
            await self._callback_handler.handle_task(record, task_id)

    async def _is_forged_or_replayed(self, account: str, headers: Mapping[str, str], body: bytes) -> bool:
        secret = await self._callbacks.account_secret(account)
        signature = self._gateway.read_signature(headers, body, secret=secret)
        if signature is None:
            return False
        if not signature.is_valid:
            return self._signature_seen
        self._signature_seen = True
        age_s = self._engine.store.age_s(signature.signed_at)
        if age_s <= MAX_DELIVERY_AGE_S:
            return False
        if not self._warned:
            self._warned = True
            why = "a replay, or the clock of this host is fast: then its deliveries are of no use"
            log.warning("webhook.old_delivery age_s=%.0f %s", age_s, why, extra={"event": "webhook.old_delivery"})
        return True
