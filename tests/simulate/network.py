"""The network and the gateway behind it: the seed decides what happens to each request."""

import asyncio
import json
import random
from collections.abc import Callable
from typing import Literal, Protocol
from urllib.parse import parse_qsl, urlsplit

from attrs import define

from nanobanana_async.emulator import GatewaySimulator
from nanobanana_async.emulator.messages import DeliveryMode, EmulatedRequest, EmulatedResponse, Endpoint
from nanobanana_async.emulator.settings import API_KEY
from nanobanana_async.errors import TransportError
from nanobanana_async.gateways.contract import HttpRequest, HttpResponse
from tests.simulate.ordeals import CREATES, FINE, QUERIES, REFUSALS_OF_CREATES, Disturbance, away
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

    def left(self, letter: SentRequest) -> None: ...

    def answered(self, letter: SentRequest, delivered: bool) -> None: ...


class Network:
    """Carries the letters of all processes to one world."""

    def __init__(self, machine: Machine, plan: Plan, disk: Disk, chance: random.Random) -> None:
        self.machine = machine
        self.plan = plan
        self._disk = disk
        self.world = GatewaySimulator(plan.world)
        self.letters: list[SentRequest] = []
        """The creates; queries are not kept."""
        self.lost_answers = 0
        self.quiet = False
        self._chance = chance
        self._sent = 0
        self.watcher: Watcher | None = None

    def of_key(self, key: str) -> list[SentRequest]:
        """Return the creates of a job, in the order in which they left."""
        return [letter for letter in self.letters if letter.key == key]

    def draw(self, creates: bool, key: str) -> Disturbance:
        """Say what happens to the next request."""
        if self.quiet:
            return FINE
        now = self.machine.time()
        for begin, end, how in self.plan.outages:
            if begin <= now < end:
                return away(how)
        kinds = CREATES if creates else QUERIES
        if creates and any(letter.fate == "doubt" for letter in self.of_key(key)) and self._chance.random() < 0.3:
            kinds = REFUSALS_OF_CREATES  # right after a lost answer a refusal says nothing about it
        elif self._chance.random() >= self.plan.trouble:
            return FINE
        return self._chance.choice(kinds)(self._chance, self.plan)

    def post(self, letter: SentRequest, ordeal: Disturbance) -> None:
        """Send a request; it arrives even if its sender is killed."""
        self._sent += 1
        if letter.creates:
            self.letters.append(letter)
        self.machine.after(self._latency() + ordeal.out_s, lambda: self._arrive(letter, ordeal))

    def letter(self, process: Process, request: HttpRequest, key: str, generation: int) -> SentRequest:
        """Return a letter that is about to leave."""
        answer: asyncio.Future[HttpResponse | TransportError] = self.machine.create_future()
        return SentRequest(self._sent + 1, process, request, key, generation, self.machine.time(), answer)

    def _latency(self) -> float:
        return self.plan.latency_s * self._chance.uniform(0.5, 1.5)

    def _arrive(self, letter: SentRequest, ordeal: Disturbance) -> None:
        letter.in_flight = False
        back_s = self._latency() + ordeal.back_s
        if ordeal.lost:
            self.machine.note("net", f"letter {letter.number} is lost")
            self._give_back(
                letter, TransportError("the connection was reset", possibly_sent=True), back_s, ordeal.hangs
            )
            return
        answer = self._handled(letter.request, ordeal)
        if letter.creates:
            letter.task_id = _task_id_in(answer)
            other = self._recorded_answer(letter) if ordeal.other_answer else None
            if other is not None:
                answer, letter.task_id = other, None  # the accepted task is reported to no process
            elif letter.task_id is not None:
                letter.accepted_by = answer
            self.machine.note("gateway", f"letter {letter.number} -> {answer.status} {ordeal.name} {_short(answer)}")
        if ordeal.answer_lost or answer.delivery.mode in (DeliveryMode.RESET, DeliveryMode.CUT):
            lost = TransportError("the answer was cut off", possibly_sent=True)
            self._give_back(letter, lost, back_s, ordeal.hangs)
            return
        headers = {name.lower(): value for name, value in answer.headers.items()}
        self._give_back(letter, HttpResponse(status=answer.status, headers=headers, body=answer.content()), back_s)

    def _recorded_answer(self, letter: SentRequest) -> EmulatedResponse | None:
        """Return the answer to a create of another job whose task id is in the ledger: only then it can be noticed."""
        for other in self.letters:
            record = self._disk.record(other.key)
            if other.key != letter.key and other.accepted_by and record and record.task_id == other.task_id:
                return other.accepted_by
        return None

    def _handled(self, request: HttpRequest, ordeal: Disturbance) -> EmulatedResponse:
        parts = urlsplit(request.url)
        headers = {
            "authorization": f"Bearer {API_KEY}",
            "host": parts.netloc,
            **{name.lower(): value for name, value in request.headers.items()},
        }
        self.world.queue_faults(self._endpoint(request), ordeal.fault)
        call = EmulatedRequest(request.method, parts.path, dict(parse_qsl(parts.query)), headers, request.body or b"")
        return self.world.handle(self.machine.time(), call)

    def _endpoint(self, request: HttpRequest) -> Endpoint:
        if self.plan.keyed:
            return "apimall.create" if request.method == "POST" else "apimall.query"
        return "defapi.create" if request.method == "POST" else "defapi.query"

    def _give_back(
        self, letter: SentRequest, reply: HttpResponse | TransportError, back_s: float, hangs: bool = False
    ) -> None:
        if hangs:
            if letter.creates:
                self._resolve(letter, reply, delivered=False)
            return
        self.machine.after(back_s, lambda: self._deliver(letter, reply))

    def _deliver(self, letter: SentRequest, reply: HttpResponse | TransportError) -> None:
        delivered = letter.process.alive and not letter.answer.done()
        if letter.creates:
            self._resolve(letter, reply, delivered=delivered)
        if delivered:
            letter.answer.set_result(reply)

    def _resolve(self, letter: SentRequest, reply: HttpResponse | TransportError, *, delivered: bool) -> None:
        if delivered and isinstance(reply, HttpResponse) and reply.status == 409:
            before = [old for old in self.of_key(letter.key) if old.number < letter.number]
            letter.conflict = all(old.fate == "refused" for old in before if old.generation == letter.generation)
        if delivered and isinstance(reply, HttpResponse) and reply.status in REFUSALS:
            letter.fate = "refused"
        elif delivered and isinstance(reply, HttpResponse) and letter.task_id is not None:
            letter.fate = "accepted"
        else:
            letter.fate = "doubt"
            self.lost_answers += 1
            self.machine.note("net", f"no process gets the outcome of request {letter.number}")
        if self.watcher is not None:
            self.watcher.answered(letter, delivered)


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
        ordeal = network.draw(creates, key)
        if ordeal.unsent:
            network.machine.note(process.name, f"can't send a {request.method}")
            await asyncio.sleep(0.01)
            raise TransportError("connection refused", possibly_sent=False)
        letter = network.letter(process, request, key, generation)
        if not process.alive or not process.lives_past("before request"):
            await letter.answer  # never: it is dead
        if creates:
            network.machine.note(process.name, f"POST {key} generation {generation} as letter {letter.number}")
        if network.watcher is not None:
            network.watcher.left(letter)
        network.post(letter, ordeal)
        process.lives_past("after request")
        try:
            async with asyncio.timeout(timeout_s):
                reply = await letter.answer
        except TimeoutError:
            letter.timed_out = True
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
