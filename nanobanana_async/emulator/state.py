"""The simulator's state: accounts, jobs, idempotency keys, files, webhooks and scheduled callbacks."""

import hashlib
import heapq
import random
import uuid
from base64 import b32encode
from collections import deque
from decimal import Decimal

from nanobanana_async.emulator.accounts import Account, CreateRequest, Reference, Refusal, Task
from nanobanana_async.emulator.callbacks import CallbackSchedule, Webhook
from nanobanana_async.emulator.files import FileStore
from nanobanana_async.emulator.messages import Gateway
from nanobanana_async.emulator.settings import EmulatorSettings, Idempotency
from nanobanana_async.emulator.stats import ZERO, Counters

FAIL_MARKER = "[fail]"
_FOREIGN_PROMPT = "a task of another client"
_MIN_DURATION_S = 1e-6
_OTHER_BODY = Refusal(409, "idempotency_conflict", "Idempotency-Key was already used with a different request")
_STILL_RUNNING = Refusal(409, "idempotency_conflict", "A request with this Idempotency-Key is still in progress")
_USED = Refusal(409, "idempotency_conflict", "Idempotency-Key was already used")


class State:
    """All state of one simulator. Call `advance_to` before reading anything that changes with time."""

    def __init__(self, settings: EmulatorSettings) -> None:
        self.settings = settings
        self.counters = Counters(settings.double_charges_by)
        self.keys = IdempotencyStore(settings.idempotency, settings.forget_keys_after_s)
        self.callbacks = CallbackSchedule(settings, random.Random(f"{settings.seed} callbacks"))
        # Not the seed alone: URLs that outlive an emulator must not name other files of the next one.
        self.files = FileStore(f"{settings.seed} {settings.started_at.isoformat()}")
        self.webhooks: dict[str, Webhook] = {}
        self.tasks: dict[str, Task] = {}
        self.base_url = "http://127.0.0.1"
        shared = Account(settings)
        other = Account(settings) if settings.separate_accounts else shared
        self.accounts: dict[Gateway, Account] = {"apimall": shared, "defapi": other}
        self._ends: list[tuple[float, int, Task]] = []
        self._slots: list[tuple[float, int, Account, int]] = []
        self._ends_seen: deque[Task] = deque()
        self._duration_rng = random.Random(f"{settings.seed} lives")
        self._poll_rng = random.Random(f"{settings.seed} looks")
        self._task_count = 0
        self._request_ids = self._webhook_count = 0

    def advance_to(self, now: float) -> None:
        """Apply everything due by now: job ends, refunds, freed slots, changed limits."""
        while self._ends and self._ends[0][0] <= now:
            self._end_task(heapq.heappop(self._ends)[2])
        while self._slots and self._slots[0][0] <= now:
            _, _, account, weight = heapq.heappop(self._slots)
            account.held -= weight
        for account in self.accounts.values():
            account.follow_schedule(now)
        if self._ends_seen:
            self._forget(now - (self.settings.forget_seen_after_s or 0.0))

    def accept(self, now: float, gateway: Gateway, key: str | None, request: CreateRequest) -> Task:
        """Charge for a create and start its job. The caller has already checked limits and credits."""
        account = self.accounts[gateway]
        price = self.price(gateway, request)
        account.pay(price)
        task = self._new_task(now, gateway, key, request, price, account.credits)
        weight = account.slots_for(request)
        account.held += weight
        freed_at = task.ends_at + self.settings.slot_freed_after_s
        heapq.heappush(self._slots, (freed_at, task.number, account, weight))
        heapq.heappush(self._ends, (task.ends_at, task.number, task))
        self.tasks[task.task_id] = task
        self.counters.on_accepted(gateway, key, request, price)
        if key is not None and gateway == "apimall":
            self.keys.remember(key, task)
        if request.callback_url is not None:
            self.counters.callbacks[self.callbacks.plan(task, request.callback_url)] += 1
        return task

    def add_webhook(
        self, now: float, url: str, events: tuple[str, ...], secret_key: str | None, api_key_id: str | None
    ) -> Webhook:
        """Register a webhook; it is called for the tasks that end from now on."""
        self._webhook_count += 1
        source = f"{self.settings.seed} {self.settings.started_at.isoformat()} webhook {self._webhook_count}"
        webhook_id = f"wh_{hashlib.blake2b(source.encode(), digest_size=12).hexdigest()}"
        self.webhooks[webhook_id] = Webhook(webhook_id, url, events, secret_key, api_key_id, now)
        return self.webhooks[webhook_id]

    def next_due(self) -> float | None:
        """Return when the next callback is due, or when the end of a job may cause one."""
        dues = [self.callbacks.next_due(), self._ends[0][0] if self.webhooks and self._ends else None]
        return min((due for due in dues if due is not None), default=None)

    def price(self, gateway: Gateway, request: CreateRequest) -> Decimal:
        """Return what a create costs."""
        if gateway == "defapi":
            return self.settings.defapi_price * request.image_count
        return self.settings.apimall_prices[request.resolution] * request.image_count

    def mark_end_seen(self, task: Task) -> None:
        """Record that a poll reported the end of a job for the first time."""
        if self.settings.forget_seen_after_s is not None:
            self._ends_seen.append(task)

    def draw_unknown_status(self) -> bool:
        """Decide at random whether this poll gets the status "unknown"."""
        probability = self.settings.unknown_status_probability
        return probability > 0 and self._poll_rng.random() < probability

    def request_id(self) -> str:
        """Return a new request id."""
        self._request_ids += 1
        return f"req_02{self._request_ids:024d}"

    def remaining(self) -> Decimal | None:
        """Return the credits left in all accounts, or None when they are unlimited."""
        left = [account.credits for account in set(self.accounts.values())]
        known = [amount for amount in left if amount is not None]
        return sum(known, ZERO) if len(known) == len(left) else None

    def _new_task(
        self,
        now: float,
        gateway: Gateway,
        key: str | None,
        request: CreateRequest,
        price: Decimal,
        remaining: Decimal | None,
    ) -> Task:
        self._task_count += 1
        fails = self._duration_rng.random() < self.settings.failure_probability
        fails = fails or FAIL_MARKER in request.prompt
        draw = self.settings.failure_duration if fails else None
        duration_s = (draw or self.settings.duration)(self._duration_rng) / self.settings.speed
        return self._task(now, gateway, key, request, price, remaining, max(_MIN_DURATION_S, duration_s), fails=fails)

    def add_foreign(self, now: float, created_at: float, duration_s: float) -> Task:
        """Add an API Mall task of another client, created at any time."""
        request = CreateRequest(_FOREIGN_PROMPT, "nano-banana-pro", "")
        price = self.price("apimall", request)
        self._task_count += 1
        task = self._task(created_at, "apimall", None, request, price, None, duration_s, fails=False)
        task.foreign = True
        self.tasks[task.task_id] = task
        if task.ends_at > now:
            heapq.heappush(self._ends, (task.ends_at, task.number, task))
        return task

    def _task(
        self,
        now: float,
        gateway: Gateway,
        key: str | None,
        request: CreateRequest,
        price: Decimal,
        remaining: Decimal | None,
        duration_s: float,
        *,
        fails: bool,
    ) -> Task:
        return Task(
            number=self._task_count,
            task_id=self._task_id(gateway),
            gateway=gateway,
            key=key,
            request=request,
            price=price,
            remaining=remaining,
            created_at=now,
            starts_at=now + duration_s * self.settings.pending_share,
            ends_at=now + duration_s,
            fails=fails,
            reference_digests=tuple(self._sha256_of(reference) for reference in request.references),
        )

    def _sha256_of(self, reference: Reference) -> str | None:
        if reference.url is None:
            return reference.sha256
        _, content = self.files.find_by_url(reference.url, self.base_url)
        return None if content is None else content.sha256

    def _task_id(self, gateway: Gateway) -> str:
        source = f"{self.settings.seed} {self._task_count}".encode()
        digest = hashlib.blake2b(source, digest_size=16).digest()
        if gateway == "defapi":
            return f"ta{uuid.UUID(bytes=digest)}"
        return f"img_01{b32encode(digest[:15]).decode()}"

    def _forget(self, seen_before: float) -> None:
        while self._ends_seen and (self._ends_seen[0].first_seen_at or 0.0) <= seen_before:
            task = self._ends_seen.popleft()
            self.keys.drop(task)
            del self.tasks[task.task_id]

    def _end_task(self, task: Task) -> None:
        event = "job.failed" if task.fails else "job.completed"
        for webhook in self.webhooks.values() if task.gateway == "apimall" else ():
            if event in webhook.events:
                self.counters.callbacks[self.callbacks.plan(task, webhook.url, webhook.id)] += 1
        if task.foreign:
            return
        if task.fails and self.settings.refund_on_failure:
            task.refunded = True
            self.accounts[task.gateway].pay(-task.price)
        self.counters.on_ended(task)


class IdempotencyStore:
    """Remember which idempotency key created which job."""

    def __init__(self, mode: Idempotency, forget_after_s: float) -> None:
        self._mode = mode
        self._forget_after_s = forget_after_s
        self._tasks: dict[str, Task] = {}
        self._ages: deque[Task] = deque()

    def lookup(self, now: float, key: str, canonical: str) -> Task | Refusal | None:
        """Return the job to replay, a conflict, or None for an unknown key."""
        if self._mode == "forget":
            self._forget(now)
        if (task := self._tasks.get(key)) is None:
            return None
        if task.request.canonical != canonical:
            return _OTHER_BODY
        if self._mode == "refuse":
            return _USED
        if self._mode == "conflict" and now < task.ends_at:
            return _STILL_RUNNING
        return task

    def remember(self, key: str, task: Task) -> None:
        """Record the key of a new job."""
        self._tasks[key] = task
        if self._mode == "forget":
            self._ages.append(task)

    def drop(self, task: Task) -> None:
        """Forget the key of a job that is no longer kept."""
        if task.key is not None and self._tasks.get(task.key) is task:
            del self._tasks[task.key]

    def _forget(self, now: float) -> None:
        while self._ages and self._ages[0].created_at + self._forget_after_s <= now:
            self.drop(self._ages.popleft())
