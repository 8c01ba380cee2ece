"""What the world remembers, and how it changes as time passes."""

import hashlib
import heapq
import random
import uuid
from base64 import b32encode
from collections import deque
from decimal import Decimal

from nanobanana_async.emulator.account import Account
from nanobanana_async.emulator.callbacks import CallbackBook
from nanobanana_async.emulator.counting import ZERO, Tally
from nanobanana_async.emulator.keys import KeyBook
from nanobanana_async.emulator.settings import WorldSettings
from nanobanana_async.emulator.tasks import Order, Task
from nanobanana_async.emulator.values import Gateway

FAIL_MARKER = "[fail]"
_LEAST_DURATION_S = 1e-6


class State:
    """Accounts, jobs and keys. Call `settle` before reading anything that time changes."""

    def __init__(self, settings: WorldSettings) -> None:
        self.settings = settings
        self.tally = Tally(settings.unique_by)
        self.keys = KeyBook(settings.idempotency, settings.forget_keys_after_s)
        self.callbacks = CallbackBook(settings, random.Random(f"{settings.seed} callbacks"))
        self.tasks: dict[str, Task] = {}
        self.base_url = "http://127.0.0.1"
        shared = Account(settings)
        other = Account(settings) if settings.separate_accounts else shared
        self.accounts: dict[Gateway, Account] = {"apimall": shared, "defapi": other}
        self._ends: list[tuple[float, int, Task]] = []
        self._slots: list[tuple[float, int, Account, int]] = []
        self._seen: deque[Task] = deque()
        self._lives = random.Random(f"{settings.seed} lives")
        self._looks = random.Random(f"{settings.seed} looks")
        self._numbers = 0
        self._request_ids = 0

    def settle(self, now: float) -> None:
        """Let everything happen that is due: ends, refunds, freed slots, changed limits."""
        while self._ends and self._ends[0][0] <= now:
            self._end(heapq.heappop(self._ends)[2])
        while self._slots and self._slots[0][0] <= now:
            _, _, account, weight = heapq.heappop(self._slots)
            account.held -= weight
        for account in self.accounts.values():
            account.follow_schedule(now)
        if self._seen:
            self._forget(now - (self.settings.forget_seen_after_s or 0.0))

    def accept(self, now: float, gateway: Gateway, key: str | None, order: Order) -> Task:
        """Charge for an order and let its job run; the caller has checked that it may."""
        account = self.accounts[gateway]
        price = self.price(gateway, order)
        account.pay(price)
        task = self._new_task(now, gateway, key, order, price, account.credits)
        weight = account.weight(order)
        account.held += weight
        freed_at = task.ends_at + self.settings.slot_freed_after_s
        heapq.heappush(self._slots, (freed_at, task.number, account, weight))
        heapq.heappush(self._ends, (task.ends_at, task.number, task))
        self.tasks[task.task_id] = task
        self.tally.bought(gateway, key, order, price)
        if key is not None and gateway == "apimall":
            self.keys.remember(key, task)
        if order.callback_url is not None:
            self.tally.callbacks[self.callbacks.promise(task)] += 1
        return task

    def price(self, gateway: Gateway, order: Order) -> Decimal:
        """Return what an order costs."""
        if gateway == "defapi":
            return self.settings.defapi_price * order.images
        return self.settings.apimall_prices[order.resolution] * order.images

    def seen(self, task: Task) -> None:
        """Note that a job's end has just been seen for the first time."""
        if self.settings.forget_seen_after_s is not None:
            self._seen.append(task)

    def is_unknown(self) -> bool:
        """Decide whether this look meets a gateway that does not know the state."""
        probability = self.settings.unknown_probability
        return probability > 0 and self._looks.random() < probability

    def request_id(self) -> str:
        """Return a fresh request id."""
        self._request_ids += 1
        return f"req_02{self._request_ids:024d}"

    def remaining(self) -> Decimal | None:
        """Return the credits left in all accounts, or None when they are endless."""
        left = [account.credits for account in set(self.accounts.values())]
        known = [amount for amount in left if amount is not None]
        return sum(known, ZERO) if len(known) == len(left) else None

    def _new_task(
        self,
        now: float,
        gateway: Gateway,
        key: str | None,
        order: Order,
        price: Decimal,
        remaining: Decimal | None,
    ) -> Task:
        self._numbers += 1
        fails = self._lives.random() < self.settings.failure_probability
        fails = fails or FAIL_MARKER in order.prompt
        draw = self.settings.failure_duration if fails else None
        lasts_s = (draw or self.settings.duration)(self._lives) / self.settings.speed
        lasts_s = max(_LEAST_DURATION_S, lasts_s)
        return Task(
            number=self._numbers,
            task_id=self._task_id(gateway),
            gateway=gateway,
            key=key,
            order=order,
            price=price,
            remaining=remaining,
            created_at=now,
            starts_at=now + lasts_s * self.settings.pending_share,
            ends_at=now + lasts_s,
            fails=fails,
        )

    def _task_id(self, gateway: Gateway) -> str:
        source = f"{self.settings.seed} {self._numbers}".encode()
        digest = hashlib.blake2b(source, digest_size=16).digest()
        if gateway == "defapi":
            return f"ta{uuid.UUID(bytes=digest)}"
        return f"img_01{b32encode(digest[:15]).decode()}"

    def _forget(self, seen_before: float) -> None:
        while self._seen and (self._seen[0].first_seen_at or 0.0) <= seen_before:
            task = self._seen.popleft()
            self.keys.drop(task)
            del self.tasks[task.task_id]

    def _end(self, task: Task) -> None:
        if task.fails and self.settings.refund_on_failure:
            task.refunded = True
            self.accounts[task.gateway].pay(-task.price)
        self.tally.ended(task)
