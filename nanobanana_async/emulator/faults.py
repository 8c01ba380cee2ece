"""Everything that can go wrong between a gateway and its caller, by script and by chance."""

import random
from collections import defaultdict, deque
from collections.abc import Mapping, Sequence

from attrs import evolve, field, frozen
from attrs.validators import in_

from nanobanana_async.emulator.messages import ENDPOINTS, WHOLE, Delivery, DeliveryMode, EmulatedResponse, Endpoint
from nanobanana_async.emulator.validators import PROBABILITY

_PROXY_PAGE = (
    b"<html>\r\n<head><title>%d</title></head>\r\n<body>\r\n<center><h1>%d</h1></center>\r\n"
    b"<hr><center>nginx</center>\r\n</body>\r\n</html>\r\n"
)


@frozen(kw_only=True)
class Fault:
    """One thing that goes wrong with one call.

    `processed` says whether the gateway did its work first: the job runs and is charged although
    the caller may never learn it. A `status` without a `body` gets the gateway's own envelope.
    Without a `status` the true answer is kept and only its delivery is spoiled.
    """

    name: str
    processed: bool = False
    status: int | None = None
    headers: Mapping[str, str] = field(factory=dict)
    body: bytes | None = None
    code: str | None = None
    message: str | None = None
    delivery: Delivery = WHOLE

    @property
    def delivers(self) -> bool:
        """Tell whether the caller reads the true answer in the end."""
        return self.status is None and self.delivery.manner is DeliveryMode.WHOLE

    def spoil(self, answer: EmulatedResponse) -> EmulatedResponse:
        """Return what is sent instead of `answer`."""
        if self.delivery.manner is DeliveryMode.RESET:
            return EmulatedResponse(0, {}, b"", self.delivery)
        if self.status is None:
            return evolve(answer, delivery=self.delivery)
        if self.body is None:
            headers = {**answer.headers, **self.headers}
            return EmulatedResponse(
                answer.status, headers, answer.body, self.delivery
            )  # 200 where refusals come inside one
        return EmulatedResponse(self.status, dict(self.headers), self.body, self.delivery)


def reset(*, processed: bool = False) -> Fault:
    """Reset the connection without a byte of an answer."""
    return Fault(name="reset", processed=processed, delivery=Delivery(manner=DeliveryMode.RESET))


def stall(seconds: float, *, processed: bool = False) -> Fault:
    """Say nothing for so long, then reset the connection."""
    delivery = Delivery(manner=DeliveryMode.RESET, delay_s=seconds)
    return Fault(name="stall", processed=processed, delivery=delivery)


def delay(seconds: float) -> Fault:
    """Do the work at once and send the true answer so much later."""
    return Fault(name="delay", processed=True, delivery=Delivery(delay_s=seconds))


def late(seconds: float) -> Fault:
    """Do the work only after so long, even if the caller has gone away meanwhile."""
    return Fault(name="late", delivery=Delivery(manner=DeliveryMode.LATE, delay_s=seconds))


def error(
    status: int,
    *,
    processed: bool = False,
    envelope: bool = True,
    code: str | None = None,
    message: str | None = None,
    retry_after: str | None = None,
) -> Fault:
    """Answer with this status, in the gateway's envelope or with an empty body."""
    return Fault(
        name=f"error {status}",
        processed=processed,
        status=status,
        headers={} if retry_after is None else {"Retry-After": retry_after},
        body=None if envelope else b"",
        code=code,
        message=message,
    )


def html(status: int = 502, *, processed: bool = False) -> Fault:
    """Answer with the HTML page of a proxy, also with status 200."""
    return answer(
        status,
        headers={"Content-Type": "text/html"},
        body=_PROXY_PAGE % (status, status),
        processed=processed,
        name="html",
    )


def garbage(status: int = 200, *, processed: bool = False) -> Fault:
    """Answer with bytes that call themselves JSON and are none."""
    return answer(
        status,
        headers={"Content-Type": "application/json"},
        body=b'\x00\xff{"success": tru\xc3\x28',
        processed=processed,
        name="garbage",
    )


def cut(*, sent_share: float = 0.5, processed: bool = True) -> Fault:
    """State the true length, send this share of the body, close the connection."""
    delivery = Delivery(manner=DeliveryMode.CUT, sent_share=sent_share)
    return Fault(name="cut", processed=processed, delivery=delivery)


def wrong_length(*, sent_share: float = 0.5, processed: bool = True) -> Fault:
    """State only this share of the true length, send the whole body, close the connection."""
    delivery = Delivery(manner=DeliveryMode.SHORT, sent_share=sent_share)
    return Fault(name="wrong length", processed=processed, delivery=delivery)


def answer(
    status: int,
    *,
    headers: Mapping[str, str] | None = None,
    body: bytes = b"",
    processed: bool = False,
    name: str = "answer",
) -> Fault:
    """Answer with exactly this status, these headers and this body."""
    return Fault(name=name, processed=processed, status=status, headers=dict(headers or {}), body=body)


def _known_endpoints(_: object, __: object, value: Mapping[Endpoint, object]) -> None:
    if strange := set(value) - set(ENDPOINTS):
        raise ValueError(f"not an endpoint: {sorted(strange)}; there are {', '.join(ENDPOINTS)}")


@frozen
class Script:
    """Say what the n-th call of an endpoint meets: a fault, or None for a normal answer.

    With `repeat_last` the last entry of each list holds for all later calls too.
    """

    steps: Mapping[Endpoint, Sequence[Fault | None]] = field(validator=_known_endpoints)
    repeat_last: bool = False

    def at(self, endpoint: Endpoint, number: int) -> Fault | None:
        """Return the fault for the call with this number, the first being 0."""
        steps = self.steps.get(endpoint, ())
        if number < len(steps):
            return steps[number]
        return steps[-1] if steps and self.repeat_last else None


NO_SCRIPT = Script({})


@frozen
class RandomFault:
    """Let a fault happen with this probability on one endpoint, or on all when it is None."""

    probability: float = field(validator=PROBABILITY)
    fault: Fault
    endpoint: Endpoint | None = field(default=None, validator=in_((*ENDPOINTS, None)))


class FaultSource:
    """Decide for each call whether something goes wrong: queued faults, the script, chance."""

    def __init__(self, script: Script, chances: Sequence[RandomFault], rng: random.Random) -> None:
        self._script = script
        self._chances: dict[Endpoint, list[RandomFault]] = {
            endpoint: [chance for chance in chances if chance.endpoint in (endpoint, None)] for endpoint in ENDPOINTS
        }
        self._rng = rng
        self._calls: defaultdict[Endpoint, int] = defaultdict(int)
        self._queued: dict[Endpoint, deque[Fault | None]] = {e: deque() for e in ENDPOINTS}

    def queue(self, endpoint: Endpoint, *faults: Fault | None) -> None:
        """Let the next calls of an endpoint meet these, one each; they go before the script."""
        self._queued[endpoint].extend(faults)

    def next(self, endpoint: Endpoint) -> Fault | None:
        """Count one call of the endpoint and return what goes wrong with it."""
        number = self._calls[endpoint]
        self._calls[endpoint] = number + 1
        if self._queued[endpoint]:
            return self._queued[endpoint].popleft()
        if (scripted := self._script.at(endpoint, number)) is not None:
            return scripted
        for chance in self._chances[endpoint]:
            if self._rng.random() < chance.probability:
                return chance.fault
        return None
