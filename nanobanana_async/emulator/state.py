"""What the world remembers, and how it changes as time passes."""

import hashlib
import heapq
import ipaddress
import random
import uuid
from base64 import b32encode
from collections import deque
from decimal import Decimal
from urllib.parse import urlsplit

from nanobanana_async.emulator.accounts import Account, CreateRequest, Refusal, Task
from nanobanana_async.emulator.messages import Gateway
from nanobanana_async.emulator.settings import EmulatorSettings, Idempotency
from nanobanana_async.emulator.stats import ZERO, Counters

FAIL_MARKER = "[fail]"
_LEAST_DURATION_S = 1e-6


class State:
    """Accounts, jobs and keys. Call `settle` before reading anything that time changes."""

    def __init__(self, settings: EmulatorSettings) -> None:
        self.settings = settings
        self.tally = Counters(settings.unique_by)
        self.keys = IdempotencyStore(settings.idempotency, settings.forget_keys_after_s)
        self.callbacks = CallbackSchedule(settings, random.Random(f"{settings.seed} callbacks"))
        self.tasks: dict[str, Task] = {}
        self.base_url = "http://127.0.0.1"
        shared = Account(settings)
        other = Account(settings) if settings.separate_accounts else shared
        self.accounts: dict[Gateway, Account] = {"apimall": shared, "defapi": other}
        self._ends: list[tuple[float, int, Task]] = []
        self._slots: list[tuple[float, int, Account, int]] = []
        self._seen: deque[Task] = deque()
        self._duration_rng = random.Random(f"{settings.seed} lives")
        self._poll_rng = random.Random(f"{settings.seed} looks")
        self._numbers = 0
        self._request_ids = 0

    def advance_to(self, now: float) -> None:
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

    def accept(self, now: float, gateway: Gateway, key: str | None, order: CreateRequest) -> Task:
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
            self.tally.callbacks[self.callbacks.plan(task)] += 1
        return task

    def price(self, gateway: Gateway, order: CreateRequest) -> Decimal:
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
        return probability > 0 and self._poll_rng.random() < probability

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
        order: CreateRequest,
        price: Decimal,
        remaining: Decimal | None,
    ) -> Task:
        self._numbers += 1
        fails = self._duration_rng.random() < self.settings.failure_probability
        fails = fails or FAIL_MARKER in order.prompt
        draw = self.settings.failure_duration if fails else None
        lasts_s = (draw or self.settings.duration)(self._duration_rng) / self.settings.speed
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


_OTHER_BODY = Refusal(409, "idempotency_conflict", "Idempotency-Key was already used with a different request")
_STILL_RUNNING = Refusal(409, "idempotency_conflict", "A request with this Idempotency-Key is still in progress")


class IdempotencyStore:
    """Remember which key bought what."""

    def __init__(self, manner: Idempotency, forget_after_s: float) -> None:
        self._manner = manner
        self._forget_after_s = forget_after_s
        self._tasks: dict[str, Task] = {}
        self._ages: deque[Task] = deque()

    def look(self, now: float, key: str, canonical: str) -> Task | Refusal | None:
        """Return the job to answer with again, a conflict, or None for a key never seen."""
        if self._manner == "forget":
            self._forget(now)
        if (task := self._tasks.get(key)) is None:
            return None
        if task.order.canonical != canonical:
            return _OTHER_BODY
        if self._manner == "conflict" and now < task.ends_at:
            return _STILL_RUNNING
        return task

    def remember(self, key: str, task: Task) -> None:
        """Note that this key bought this job."""
        self._tasks[key] = task
        if self._manner == "forget":
            self._ages.append(task)

    def drop(self, task: Task) -> None:
        """Forget the key of a job whose record is given up."""
        if task.key is not None and self._tasks.get(task.key) is task:
            del self._tasks[task.key]

    def _forget(self, now: float) -> None:
        while self._ages and self._ages[0].created_at + self._forget_after_s <= now:
            self.drop(self._ages.popleft())


def is_loopback(url: str) -> bool:
    """Tell whether a URL stays on this machine; names other than localhost are not looked up."""
    try:
        host = urlsplit(url).hostname or ""
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class CallbackSchedule:
    """Keep the callbacks of running jobs in the order they are due."""

    def __init__(self, settings: EmulatorSettings, rng: random.Random) -> None:
        self._settings = settings
        self._rng = rng
        self._heap: list[tuple[float, int, Task]] = []
        self._order = 0

    def plan(self, task: Task) -> str:
        """Plan the callback of a job; return what becomes of it: planned, dropped or refused."""
        if not is_loopback(task.order.callback_url or ""):
            return "refused"
        if self._rng.random() < self._settings.callback_drop_probability:
            return "dropped"
        twice = self._rng.random() < self._settings.callback_duplicate_probability
        for _ in range(2 if twice else 1):
            self._order += 1
            due_at = task.ends_at + self._settings.callback_delay_s
            heapq.heappush(self._heap, (due_at, self._order, task))
        return "planned"

    def next_due(self) -> float | None:
        """Return when the next callback is due, or None when none is planned."""
        return self._heap[0][0] if self._heap else None

    def due(self, now: float) -> list[Task]:
        """Take out the jobs whose callback is due."""
        tasks: list[Task] = []
        while self._heap and self._heap[0][0] <= now:
            tasks.append(heapq.heappop(self._heap)[2])
        return tasks
