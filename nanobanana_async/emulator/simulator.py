"""Both gateways as one thing without sockets, clock or event loop: calls in, answers out.

`now` is an argument everywhere, in seconds since `EmulatorSettings.started_at`; it should never go
back. Jobs end by themselves as `now` passes: nothing needs a timer except the callbacks, for which
`next_due` tells when to call `due`.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal

from nanobanana_async.emulator import apimall, defapi
from nanobanana_async.emulator import images as cdn
from nanobanana_async.emulator.accounts import Account, Refusal
from nanobanana_async.emulator.endpoints import JSON, callback_body, create, download, query, refuse, refuse_for
from nanobanana_async.emulator.faults import Fault, FaultSource
from nanobanana_async.emulator.messages import (
    Callback,
    DeliveryMode,
    EmulatedRequest,
    EmulatedResponse,
    Endpoint,
    Gateway,
)
from nanobanana_async.emulator.settings import EmulatorSettings
from nanobanana_async.emulator.state import State
from nanobanana_async.emulator.stats import EmulatorStats, JobFacts, facts

_NO_ENDPOINT = Refusal(404, "not_found", "endpoint not found")
_NO_METHOD = Refusal(405, "method_not_allowed", "method not allowed")


class GatewaySimulator:
    """An account at both gateways, a CDN, and everything that goes wrong between."""

    def __init__(self, settings: EmulatorSettings | None = None) -> None:
        self.settings = settings or EmulatorSettings()
        self._state = State(self.settings)
        rng = random.Random(f"{self.settings.seed} faults")
        self._faults = FaultSource(self.settings.script, self.settings.chances, rng)

    @property
    def base_url(self) -> str:
        """Return what the links to pictures begin with; the driver sets it."""
        return self._state.base_url

    @base_url.setter
    def base_url(self, url: str) -> None:
        self._state.base_url = url.rstrip("/")

    def handle(self, now: float, call: EmulatedRequest) -> EmulatedResponse:
        """Return the answer to a call, with the fault that script or chance has for it.

        Do with it what `Answer` says. After `Manner.LATE` the call has not been looked at yet:
        wait for `delivery.delay_s`, then send what `process` returns.
        """
        endpoint = _endpoint(call)
        if endpoint is None or (call.method not in _METHODS[endpoint]):
            return self._no_such_endpoint(now, call, endpoint)
        self._state.tally.requests[endpoint] += 1
        fault = self._faults.next(endpoint)
        if fault is None:
            return self._process(now, endpoint, call, read=True)
        self._state.tally.faults[fault.name] += 1
        return self._with_fault(now, endpoint, call, fault)

    def process(self, now: float, call: EmulatedRequest) -> EmulatedResponse:
        """Return the true answer to a call, passing by all faults and the counts of requests."""
        endpoint = _endpoint(call)
        if endpoint is None or call.method not in _METHODS[endpoint]:
            return self._no_such_endpoint(now, call, endpoint)
        return self._process(now, endpoint, call, read=True)

    def next_due(self) -> float | None:
        """Return when `due` must be called next, or None; a create may change it."""
        return self._state.callbacks.next_due()

    def due(self, now: float) -> list[Callback]:
        """Return the callbacks that are due; the driver posts each once, on loopback only."""
        self._state.advance_to(now)
        return [
            Callback(task.order.callback_url or "", callback_body(self._state, now, task), task.task_id)
            for task in self._state.callbacks.due(now)
        ]

    def callback_done(self, *, delivered: bool) -> None:
        """Count how a callback fared."""
        self._state.tally.callbacks["sent" if delivered else "failed"] += 1

    def queue_faults(self, endpoint: Endpoint, *faults: Fault | None) -> None:
        """Let the next calls of an endpoint meet these, one each; None is a normal answer."""
        self._faults.queue(endpoint, *faults)

    def set_job_limit(self, limit: int | None, gateway: Gateway | None = None) -> None:
        """Change the limit from now on; what runs already goes on."""
        for account in self._accounts(gateway):
            account.limit = limit

    def set_limit_schedule(self, schedule: Sequence[tuple[float, int | None]], gateway: Gateway | None = None) -> None:
        """Let the limit change at these moments of the world's time."""
        for account in self._accounts(gateway):
            account.set_schedule(schedule)

    def add_credits(self, amount: Decimal | int | str, gateway: Gateway | None = None) -> None:
        """Put credits on the account; without effect where they are endless."""
        for account in self._accounts(gateway):
            account.pay(-Decimal(amount))

    def stats(self, now: float, *, connections: int = 0) -> EmulatorStats:
        """Return everything counted up to now."""
        self._state.advance_to(now)
        return self._state.tally.snapshot(self._state.remaining(), connections)

    def jobs(self, now: float) -> Iterator[JobFacts]:
        """Yield what is known about each accepted create, oldest first."""
        self._state.advance_to(now)
        for task in list(self._state.tasks.values()):
            yield facts(task, now)

    def _accounts(self, gateway: Gateway | None) -> list[Account]:
        accounts = self._state.accounts
        return list({accounts[gateway]} if gateway else set(accounts.values()))

    def _process(self, now: float, endpoint: Endpoint, call: EmulatedRequest, *, read: bool) -> EmulatedResponse:
        self._state.advance_to(now)
        headers = {name.lower(): value for name, value in call.headers.items()}
        match endpoint:
            case "apimall.create" | "defapi.create":
                gateway = _gateway(endpoint)
                return create(self._state, now, gateway, headers, call.body, read=read)
            case "apimall.query":
                task_id = call.path[len(apimall.QUERY_PREFIX) :]
                return query(self._state, now, "apimall", headers, task_id, read=read)
            case "defapi.query":
                task_id = call.query.get("task_id", "")
                return query(self._state, now, "defapi", headers, task_id, read=read)
            case "cdn":
                return download(self._state, now, call, headers)

    def _with_fault(self, now: float, endpoint: Endpoint, call: EmulatedRequest, fault: Fault) -> EmulatedResponse:
        if fault.delivery.manner is DeliveryMode.LATE:
            return EmulatedResponse(0, {}, b"", fault.delivery)
        answer = EmulatedResponse(503, JSON, b"")
        if fault.processed:
            answer = self._process(now, endpoint, call, read=fault.delivers)
        if fault.status is not None or not fault.processed:
            answer = self._envelope(now, endpoint, fault)
        if not fault.processed and fault.status is not None:
            self._count_refusal(endpoint, fault.status)
        return fault.spoil(answer)

    def _envelope(self, now: float, endpoint: Endpoint, fault: Fault) -> EmulatedResponse:
        if endpoint == "cdn":
            return EmulatedResponse(fault.status or 503, {"Content-Type": "text/plain"}, b"")
        return refuse_for(self._state, now, endpoint, fault)

    def _count_refusal(self, endpoint: Endpoint, status: int) -> None:
        if endpoint.endswith(".create") and status >= 400:
            self._state.tally.refused[status] += 1
        if status == 429:
            self._state.tally.refusals_429["fault"] += 1

    def _no_such_endpoint(self, now: float, call: EmulatedRequest, endpoint: Endpoint | None) -> EmulatedResponse:
        gateway: Gateway = "apimall" if call.path.startswith("/api/v1/") else "defapi"
        refusal = _NO_ENDPOINT if endpoint is None else _NO_METHOD
        return refuse(self._state, now, gateway, refusal)


_METHODS: Mapping[Endpoint, tuple[str, ...]] = {
    "apimall.create": ("POST",),
    "apimall.query": ("GET",),
    "defapi.create": ("POST",),
    "defapi.query": ("GET",),
    "cdn": ("GET", "HEAD"),
}


def _endpoint(call: EmulatedRequest) -> Endpoint | None:
    path = call.path
    if path == apimall.CREATE_PATH:
        return "apimall.create"
    if path.startswith(apimall.QUERY_PREFIX) and "/" not in path[len(apimall.QUERY_PREFIX) :]:
        return "apimall.query"
    if path == defapi.CREATE_PATH:
        return "defapi.create"
    if path == defapi.QUERY_PATH:
        return "defapi.query"
    return "cdn" if path.startswith(cdn.PREFIX) else None


def _gateway(endpoint: Endpoint) -> Gateway:
    return "apimall" if endpoint.startswith("apimall") else "defapi"
