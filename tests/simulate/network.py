"""The network and the gateway behind it: the seed decides what happens to each request."""

import asyncio
import json
import random
from collections.abc import Callable
from typing import Literal, Protocol
from urllib.parse import parse_qsl, urlsplit

from attrs import define

from nanobanana_async.emulator import GatewaySimulator
from nanobanana_async.emulator.messages import EmulatedRequest, EmulatedResponse, Endpoint, SendMode
from nanobanana_async.emulator.settings import API_KEY
from nanobanana_async.errors import TransportError
from nanobanana_async.gateways.contract import HttpRequest, HttpResponse
from tests.simulate.disturbances import CREATES, FINE, QUERIES, REFUSALS_OF_CREATES, Disturbance, away
from tests.simulate.plan import Plan
from tests.support.disk import Disk
from tests.support.machine import Machine, Process

Fate = Literal["open", "accepted", "refused", "doubt"]

REFUSALS = frozenset({400, 401, 402, 403, 404, 429, 451})


@define(eq=False)
class SentRequest:
    """One request that left a process."""

    number: int
    process: Process
    request: HttpRequest
    key: str
    """Our key of the job, read off its prompt; empty for a query."""
    generation: int
    left_at: float
    answer: "asyncio.Future[HttpResponse | TransportError]"
    owner: str = ""
    """The owner of its process when it left."""
    in_flight: bool = True
    fate: Fate = "open"
    timed_out: bool = False
    conflict: bool = False
    """It was the first create of its generation that may have arrived, and its key was already known (409)."""
    task_id: str | None = None
    accepted_by: EmulatedResponse | None = None

    @property
    def creates(self) -> bool:
        return self.request.method == "POST"

    @property
    def wire_key(self) -> str | None:
        return self.request.headers.get("Idempotency-Key")


class Watcher(Protocol):
    """Gets each request and answer: implemented by the oracle."""

    def left(self, sent: SentRequest) -> None: ...

    def answered(self, sent: SentRequest, delivered: bool) -> None: ...


class Network:
    """Carries the requests of all processes to one simulated gateway."""

    def __init__(self, machine: Machine, plan: Plan, disk: Disk, chance: random.Random) -> None:
        self.machine = machine
        self.plan = plan
        self._disk = disk
        self.world = GatewaySimulator(plan.world)
        self.creates: list[SentRequest] = []
        """The creates; queries are not kept."""
        self.lost_answers = 0
        self.quiet = False
        self._chance = chance
        self._others = random.Random(f"{plan.seed} others")
        self._sent = 0
        self.watcher: Watcher | None = None

    def of_key(self, key: str) -> list[SentRequest]:
        """Return the creates of a job, in the order in which they left."""
        return [sent for sent in self.creates if sent.key == key]

    @property
    def moved(self) -> int:
        """How many jobs were sent with another account, too: none, there is only one."""
        return 0

    def draw(self, creates: bool, key: str) -> Disturbance:
        """Say what happens to the next request."""
        if self.quiet:
            return FINE
        now = self.machine.time()
        for begin, end, how in self.plan.outages:
            if begin <= now < end:
                return away(how)
        kinds = CREATES if creates else QUERIES
        if creates and any(sent.fate == "doubt" for sent in self.of_key(key)) and self._chance.random() < 0.3:
            kinds = REFUSALS_OF_CREATES  # right after a lost answer a refusal says nothing about it
        elif self._chance.random() >= self.plan.trouble:
            return FINE
        return self._chance.choice(kinds)(self._chance, self.plan)

    def post(self, sent: SentRequest, disturbance: Disturbance) -> None:
        """Send a request; it arrives even if its sender is killed."""
        self._sent += 1
        if sent.creates:
            self.creates.append(sent)
        self.machine.after(self._latency() + disturbance.out_s, lambda: self._arrive(sent, disturbance))

    def new_request(self, process: Process, request: HttpRequest, key: str, generation: int) -> SentRequest:
        """Return a request that is about to leave."""
        answer: asyncio.Future[HttpResponse | TransportError] = self.machine.create_future()
        left_at, owner = self.machine.time(), process.owner
        return SentRequest(self._sent + 1, process, request, key, generation, left_at, answer, owner)

    def _latency(self) -> float:
        return self.plan.latency_s * self._chance.uniform(0.5, 1.5)

    def _arrive(self, sent: SentRequest, disturbance: Disturbance) -> None:
        sent.in_flight = False
        back_s = self._latency() + disturbance.back_s
        if disturbance.lost:
            self.machine.note("net", f"request {sent.number} is lost")
            self._give_back(
                sent, TransportError("the connection was reset", possibly_sent=True), back_s, disturbance.hangs
            )
            return
        answer = self._handled(sent.request, disturbance)
        if sent.creates:
            sent.task_id = _task_id_in(answer)
            other = self._recorded_answer(sent) if disturbance.other_answer else None
            if other is not None:
                answer, sent.task_id = other, None  # the accepted task is reported to no process
            elif sent.task_id is not None:
                sent.accepted_by = answer
            self.machine.note(
                "gateway", f"request {sent.number} -> {answer.status} {disturbance.name} {_short(answer)}"
            )
        if disturbance.answer_lost or answer.sending.mode in (SendMode.RESET, SendMode.CUT):
            lost = TransportError("the answer was cut off", possibly_sent=True)
            self._give_back(sent, lost, back_s, disturbance.hangs)
            return
        headers = {name.lower(): value for name, value in answer.headers.items()}
        self._give_back(sent, HttpResponse(status=answer.status, headers=headers, body=answer.content()), back_s)

    def _recorded_answer(self, sent: SentRequest) -> EmulatedResponse | None:
        """Return the answer to a create of another job whose task id is in the ledger: only then it can be noticed."""
        for other in self.creates:
            record = self._disk.record(other.key)
            if other.key != sent.key and other.accepted_by and record and record.task_id == other.task_id:
                return other.accepted_by
        return None

    def _handled(self, request: HttpRequest, disturbance: Disturbance) -> EmulatedResponse:
        parts = urlsplit(request.url)
        headers = {
            "authorization": f"Bearer {API_KEY}",
            "host": parts.netloc,
            **{name.lower(): value for name, value in request.headers.items()},
        }
        if self.plan.shared and self._others.random() < 0.05:
            self.world.add_foreign_tasks(self.machine.time(), [self.machine.time()], duration_s=5.0)
        self.world.queue_faults(self._endpoint(request), disturbance.fault)
        call = EmulatedRequest(request.method, parts.path, dict(parse_qsl(parts.query)), headers, request.body or b"")
        return self.world.handle(self.machine.time(), call)

    def _endpoint(self, request: HttpRequest) -> Endpoint:
        if "/history?" in request.url:
            return "apimall.history"
        if self.plan.keyed:
            return "apimall.create" if request.method == "POST" else "apimall.query"
        return "defapi.create" if request.method == "POST" else "defapi.query"

    def _give_back(
        self, sent: SentRequest, reply: HttpResponse | TransportError, back_s: float, hangs: bool = False
    ) -> None:
        if hangs:
            if sent.creates:
                self._resolve(sent, reply, delivered=False)
            return
        self.machine.after(back_s, lambda: self._deliver(sent, reply))

    def _deliver(self, sent: SentRequest, reply: HttpResponse | TransportError) -> None:
        delivered = sent.process.alive and not sent.answer.done()
        if sent.creates:
            self._resolve(sent, reply, delivered=delivered)
        if delivered:
            sent.answer.set_result(reply)

    def _resolve(self, sent: SentRequest, reply: HttpResponse | TransportError, *, delivered: bool) -> None:
        if delivered and isinstance(reply, HttpResponse) and reply.status == 409:
            before = [old for old in self.of_key(sent.key) if old.number < sent.number]
            sent.conflict = all(old.fate == "refused" for old in before if old.generation == sent.generation)
        if delivered and isinstance(reply, HttpResponse) and reply.status in REFUSALS:
            sent.fate = "refused"
        elif delivered and isinstance(reply, HttpResponse) and sent.task_id is not None:
            sent.fate = "accepted"
        else:
            sent.fate = "doubt"
            self.lost_answers += 1
            self.machine.note("net", f"no process gets the outcome of request {sent.number}")
        if self.watcher is not None:
            self.watcher.answered(sent, delivered)


class SimulatedTransport:
    """A session's transport on the simulated network."""

    def __init__(self, network: Network, process: Process, key_of: Callable[[HttpRequest], tuple[str, int]]) -> None:
        self._network = network
        self._process = process
        self._key_of = key_of

    async def open(self) -> None:
        """Do nothing."""

    async def aclose(self) -> None:
        """Do nothing."""

    async def send(self, request: HttpRequest, *, timeout_s: float, fresh_connection: bool = False) -> HttpResponse:
        """Send a request and wait for what comes back; on a killed process nothing leaves and nothing comes."""
        network, process = self._network, self._process
        del fresh_connection  # there are no connections
        key, generation = self._key_of(request)
        creates = request.method == "POST"
        disturbance = network.draw(creates, key)
        if disturbance.unsent:
            network.machine.note(process.name, f"can't send a {request.method}")
            await asyncio.sleep(0.01)
            raise TransportError("connection refused", possibly_sent=False)
        sent = network.new_request(process, request, key, generation)
        if not process.alive or not process.lives_past("before request"):
            await sent.answer  # never: it is dead
        if creates:
            network.machine.note(process.name, f"POST {key} generation {generation} as request {sent.number}")
        if network.watcher is not None:
            network.watcher.left(sent)
        network.post(sent, disturbance)
        process.lives_past("after request")
        try:
            async with asyncio.timeout(timeout_s):
                reply = await sent.answer
        except TimeoutError:
            sent.timed_out = True
            raise TransportError("no answer in time", possibly_sent=True) from None
        if isinstance(reply, TransportError):
            raise reply
        return reply


def _task_id_in(answer: EmulatedResponse) -> str | None:
    if answer.status != 200:
        return None
    try:
        data = json.loads(answer.content()).get("data")
    except ValueError:
        return None
    return data.get("task_id") if isinstance(data, dict) else None


def _short(answer: EmulatedResponse) -> str:
    return repr(answer.content()[:90])[2:-1]
