"""Faults between gateway and client, queued, scripted or at random."""

import random
from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence

from attrs import evolve, field, frozen
from attrs.validators import in_

from nanobanana_async.emulator.checks import PROBABILITY
from nanobanana_async.emulator.messages import (
    ENDPOINTS,
    WHOLE,
    EmulatedResponse,
    Endpoint,
    ResponseSending,
    SendMode,
)

_PROXY_PAGE = (
    b"<html>\r\n<head><title>%d</title></head>\r\n<body>\r\n<center><h1>%d</h1></center>\r\n"
    b"<hr><center>nginx</center>\r\n</body>\r\n</html>\r\n"
)


@frozen(kw_only=True)
class Fault:
    """One fault of one request.

    With `processed` the gateway handles the request first: a job runs and is charged, though the client may never see
    the response. A `status` without a `body` is sent in the gateway's own envelope. Without a `status` the true
    response is kept, and only its sending fails, or `change` makes another body of it.
    """

    name: str  # in the counts
    processed: bool = False  # True: the gateway does its work first
    status: int | None = None  # the HTTP status; None: the true response
    headers: Mapping[str, str] = field(factory=dict)  # of the response
    body: bytes | None = None  # in the place of an envelope
    code: str | None = None  # the gateway's own code
    message: str | None = None  # in the envelope
    sending: ResponseSending = WHOLE  # how it is sent
    change: Callable[[EmulatedResponse], bytes] | None = None  # makes another body of the true response

    @property
    def delivers(self) -> bool:
        """Whether the client receives the true response."""
        return self.status is None and self.sending.mode is SendMode.WHOLE

    def distort(self, response: EmulatedResponse) -> EmulatedResponse:
        """Return the response that is sent instead."""
        if self.sending.mode is SendMode.RESET:
            return EmulatedResponse(0, {}, b"", self.sending)
        if self.change is not None and response.status == 200:
            return evolve(response, body=self.change(response), make_body=None)
        if self.status is None:
            return evolve(response, sending=self.sending)
        if self.body is None:
            # Not `self.status`: with `refusals_in_200` the envelope comes with status 200.
            headers = {**response.headers, **self.headers}
            return EmulatedResponse(response.status, headers, response.body, self.sending)
        return EmulatedResponse(self.status, dict(self.headers), self.body, self.sending)


def reset(*, processed: bool = False) -> Fault:
    """Reset the connection before the first byte of the response."""
    return Fault(name="reset", processed=processed, sending=ResponseSending(mode=SendMode.RESET))


def stall(seconds: float, *, processed: bool = False) -> Fault:
    """Wait this long, then reset the connection."""
    sending = ResponseSending(mode=SendMode.RESET, delay_s=seconds)
    return Fault(name="stall", processed=processed, sending=sending)


def delay(seconds: float) -> Fault:
    """Process the request at once, and send the true response this much later."""
    return Fault(name="delay", processed=True, sending=ResponseSending(delay_s=seconds))


def late(seconds: float) -> Fault:
    """Process the request only after this long, even if the client has disconnected."""
    return Fault(name="late", sending=ResponseSending(mode=SendMode.LATE, delay_s=seconds))


def error(
    status: int,
    *,
    processed: bool = False,
    envelope: bool = True,
    code: str | None = None,
    message: str | None = None,
    retry_after: str | None = None,
) -> Fault:
    """Respond with this status, in the gateway's envelope or with an empty body."""
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
    """Respond with the HTML page of a proxy; the status may be 200."""
    return answer(
        status,
        headers={"Content-Type": "text/html"},
        body=_PROXY_PAGE % (status, status),
        processed=processed,
        name="html",
    )


def garbage(status: int = 200, *, processed: bool = False) -> Fault:
    """Respond with invalid bytes labelled as JSON."""
    return answer(
        status,
        headers={"Content-Type": "application/json"},
        body=b'\x00\xff{"success": tru\xc3\x28',
        processed=processed,
        name="garbage",
    )


def cut(*, sent_share: float = 0.5, processed: bool = True) -> Fault:
    """Send the true Content-Length and this share of the body, then close the connection."""
    sending = ResponseSending(mode=SendMode.CUT, sent_share=sent_share)
    return Fault(name="cut", processed=processed, sending=sending)


def wrong_length(*, sent_share: float = 0.5, processed: bool = True) -> Fault:
    """Send this share of the true length as Content-Length and the whole body, then close the connection."""
    sending = ResponseSending(mode=SendMode.SHORT, sent_share=sent_share)
    return Fault(name="wrong length", processed=processed, sending=sending)


def answer(
    status: int,
    *,
    headers: Mapping[str, str] | None = None,
    body: bytes = b"",
    processed: bool = False,
    name: str = "answer",
) -> Fault:
    """Respond with exactly this status, these headers and this body."""
    return Fault(name=name, processed=processed, status=status, headers=dict(headers or {}), body=body)


def _known_endpoints(_: object, __: object, value: Mapping[Endpoint, object]) -> None:
    if unknown := set(value) - set(ENDPOINTS):
        raise ValueError(f"not an endpoint: {sorted(unknown)}; endpoints are {', '.join(ENDPOINTS)}")


@frozen
class Script:
    """The fault of the n-th request of each endpoint; None is a normal response.

    With `repeat_last` the last entry of each list applies to all later requests too.
    """

    steps: Mapping[Endpoint, Sequence[Fault | None]] = field(validator=_known_endpoints)  # by endpoint
    repeat_last: bool = False  # True: for all later requests too

    def at(self, endpoint: Endpoint, number: int) -> Fault | None:
        """Return the fault of a request by its number, from 0."""
        steps = self.steps.get(endpoint, ())
        if number < len(steps):
            return steps[number]
        return steps[-1] if steps and self.repeat_last else None


NO_SCRIPT = Script({})


@frozen
class RandomFault:
    """A fault with this probability, on one endpoint, or on all if `endpoint` is None."""

    probability: float = field(validator=PROBABILITY)  # of each request
    fault: Fault  # what happens then
    endpoint: Endpoint | None = field(default=None, validator=in_((*ENDPOINTS, None)))  # None: all


class FaultSource:
    """Choose the fault of each request: queued faults first, then the script, then chance."""

    def __init__(self, script: Script, chances: Sequence[RandomFault], rng: random.Random) -> None:
        self._script = script
        self._chances: dict[Endpoint, list[RandomFault]] = {
            endpoint: [chance for chance in chances if chance.endpoint in (endpoint, None)] for endpoint in ENDPOINTS
        }
        self._rng = rng
        self._counts: defaultdict[Endpoint, int] = defaultdict(int)
        self._queued: dict[Endpoint, deque[Fault | None]] = {e: deque() for e in ENDPOINTS}

    def queue(self, endpoint: Endpoint, *faults: Fault | None) -> None:
        """Apply these faults to the next requests of an endpoint, one each, before the script."""
        self._queued[endpoint].extend(faults)

    def next(self, endpoint: Endpoint) -> Fault | None:
        """Count one request of the endpoint and return its fault, or None."""
        number = self._counts[endpoint]
        self._counts[endpoint] = number + 1
        if self._queued[endpoint]:
            return self._queued[endpoint].popleft()
        if (scripted := self._script.at(endpoint, number)) is not None:
            return scripted
        for chance in self._chances[endpoint]:
            if self._rng.random() < chance.probability:
                return chance.fault
        return None
