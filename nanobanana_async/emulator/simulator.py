"""Simulate both gateways without sockets, clock or event loop.

`now` is an argument of each method, in seconds since `EmulatorSettings.started_at`; it must not decrease. Jobs end as
`now` passes, so only callbacks need a timer: call `due` at `next_due`.
"""

import random
from collections.abc import Iterator, Sequence
from decimal import Decimal

from nanobanana_async.emulator.accounts import Account, Refusal
from nanobanana_async.emulator.endpoints import JSON, callback_body, refuse, refuse_for
from nanobanana_async.emulator.faults import Fault, FaultSource
from nanobanana_async.emulator.messages import (
    Callback,
    EmulatedRequest,
    EmulatedResponse,
    Endpoint,
    Gateway,
    SendMode,
)
from nanobanana_async.emulator.routes import METHODS, endpoint_of, respond
from nanobanana_async.emulator.settings import EmulatorSettings
from nanobanana_async.emulator.state import State
from nanobanana_async.emulator.stats import EmulatorStats, JobFacts, job_facts
from nanobanana_async.emulator.webhooks import delivery

_NO_ENDPOINT = Refusal(404, "not_found", "endpoint not found")
_NO_METHOD = Refusal(405, "method_not_allowed", "method not allowed")


class GatewaySimulator:
    """Both gateways with their accounts, the image CDN, and injected faults."""

    def __init__(self, settings: EmulatorSettings | None = None) -> None:
        self.settings = settings or EmulatorSettings()  # how it behaves
        self._state = State(self.settings)
        rng = random.Random(f"{self.settings.seed} faults")
        self._faults = FaultSource(self.settings.script, self.settings.random_faults, rng)

    @property
    def base_url(self) -> str:
        """The base URL of image links; set by the driver."""
        return self._state.base_url

    @base_url.setter
    def base_url(self, url: str) -> None:
        self._state.base_url = url.rstrip("/")

    def handle(self, now: float, request: EmulatedRequest) -> EmulatedResponse:
        """Return the response to a request, with the fault that queue, script or chance applies to it.

        `EmulatedResponse` says how to send it. With `SendMode.LATE` the request is not processed yet: wait
        `sending.delay_s`, then send what `process` returns.
        """
        endpoint = endpoint_of(request.path)
        if endpoint is None or request.method not in METHODS[endpoint]:
            return self._no_such_endpoint(now, request, endpoint)
        self._state.counters.requests[endpoint] += 1
        fault = self._faults.next(endpoint)
        if fault is None:
            return self._process(now, endpoint, request, read=True)
        self._state.counters.faults[fault.name] += 1
        return self._with_fault(now, endpoint, request, fault)

    def process(self, now: float, request: EmulatedRequest) -> EmulatedResponse:
        """Return the response to a request without faults, and without counting the request."""
        endpoint = endpoint_of(request.path)
        if endpoint is None or request.method not in METHODS[endpoint]:
            return self._no_such_endpoint(now, request, endpoint)
        return self._process(now, endpoint, request, read=True)

    def next_due(self) -> float | None:
        """Return when to call `due` next, or None. A create, and the registration of a webhook, may change it."""
        return self._state.next_due()

    def take_due(self, now: float) -> list[Callback]:
        """Return the callbacks that are due. The driver posts each once, then calls `callback_done`."""
        state = self._state
        state.advance_to(now)
        callbacks: list[Callback] = []
        for due in state.callbacks.take_due(now):
            if due.webhook_id is None:
                callbacks.append(Callback(due.url, callback_body(state, now, due.task), due.task.task_id))
            elif (webhook := state.webhooks.get(due.webhook_id)) is not None:
                callbacks.append(delivery(state, now, due, webhook))
        return callbacks

    def callback_done(self, now: float, callback: Callback, error: str | None) -> None:
        """Count a callback as sent, or as failed for this reason. A failed delivery of a webhook is due again."""
        self._state.counters.callbacks["sent" if error is None else "failed"] += 1
        webhook = self._state.webhooks.get(callback.webhook_id or "")
        if webhook is None:
            return
        webhook.last_sent_at, webhook.last_error = now, error
        if error is None:
            webhook.total_sent += 1
            return
        webhook.total_failed += 1
        if (task := self._state.tasks.get(callback.task_id)) is not None:
            self._state.callbacks.plan_again(now, task, webhook, callback.attempt)

    def queue_faults(self, endpoint: Endpoint, *faults: Fault | None) -> None:
        """Apply these faults to the next requests of an endpoint, one each; None is a normal response."""
        self._faults.queue(endpoint, *faults)

    def set_job_limit(self, limit: int | None, gateway: Gateway | None = None) -> None:
        """Change the job limit. Running jobs continue."""
        for account in self._accounts(gateway):
            account.limit = limit

    def set_limit_schedule(self, schedule: Sequence[tuple[float, int | None]], gateway: Gateway | None = None) -> None:
        """Change the job limit at these times of the simulator's clock."""
        for account in self._accounts(gateway):
            account.set_schedule(schedule)

    def add_credits(self, amount: Decimal | int | str, gateway: Gateway | None = None) -> None:
        """Add credits to the account; no effect if they are unlimited."""
        for account in self._accounts(gateway):
            account.pay(-Decimal(amount))

    def stats(self, now: float, *, connections: int = 0) -> EmulatorStats:
        """Return everything counted up to now."""
        self._state.advance_to(now)
        return self._state.counters.snapshot(self._state.remaining(), self._state.files, connections)

    def jobs(self, now: float) -> Iterator[JobFacts]:
        """Yield the facts of each accepted create, oldest first."""
        self._state.advance_to(now)
        for task in list(self._state.tasks.values()):
            if not task.foreign:
                yield job_facts(task, now)

    def add_foreign_tasks(self, now: float, created_at: Sequence[float], *, duration_s: float = 0.5) -> list[str]:
        """Add API Mall tasks that another client created at these times, past or future; return their ids."""
        self._state.advance_to(now)
        return [self._state.add_foreign(now, at, duration_s).task_id for at in created_at]

    def _accounts(self, gateway: Gateway | None) -> list[Account]:
        accounts = self._state.accounts
        return list({accounts[gateway]} if gateway else set(accounts.values()))

    def _process(self, now: float, endpoint: Endpoint, request: EmulatedRequest, *, read: bool) -> EmulatedResponse:
        self._state.advance_to(now)
        return respond(self._state, now, endpoint, request, read=read)

    def _with_fault(self, now: float, endpoint: Endpoint, request: EmulatedRequest, fault: Fault) -> EmulatedResponse:
        if fault.sending.mode is SendMode.LATE:
            return EmulatedResponse(0, {}, b"", fault.sending)
        response = EmulatedResponse(503, JSON, b"")
        if fault.processed:
            response = self._process(now, endpoint, request, read=fault.delivers)
        if fault.status is not None or not fault.processed:
            response = self._fault_response(now, endpoint, fault)
        if not fault.processed and fault.status is not None:
            self._count_refusal(endpoint, fault.status)
        return fault.distort(response)

    def _fault_response(self, now: float, endpoint: Endpoint, fault: Fault) -> EmulatedResponse:
        if endpoint in ("cdn", "apimall.put"):
            return EmulatedResponse(fault.status or 503, {"Content-Type": "text/plain"}, b"")
        return refuse_for(self._state, now, endpoint, fault)

    def _count_refusal(self, endpoint: Endpoint, status: int) -> None:
        if endpoint.endswith(".create") and status >= 400:
            self._state.counters.refused[status] += 1
        if status == 429:
            self._state.counters.refusals_429["fault"] += 1

    def _no_such_endpoint(self, now: float, request: EmulatedRequest, endpoint: Endpoint | None) -> EmulatedResponse:
        gateway: Gateway = "apimall" if request.path.startswith("/api/v1/") else "defapi"
        refusal = _NO_ENDPOINT if endpoint is None else _NO_METHOD
        return refuse(self._state, now, gateway, refusal)
