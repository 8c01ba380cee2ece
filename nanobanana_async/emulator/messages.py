"""Requests and responses of the simulator, and how a response is delivered."""

import enum
import functools
from collections.abc import Callable, Mapping
from typing import Literal, get_args

from attrs import field, frozen

from nanobanana_async.emulator.bodies import Content, JsonBody, read_json
from nanobanana_async.emulator.checks import number_validator

Gateway = Literal["apimall", "defapi"]
Endpoint = Literal[
    "apimall.create",
    "apimall.query",
    "apimall.history",
    "apimall.balance",
    "apimall.upload",
    "apimall.put",
    "apimall.webhooks",
    "defapi.create",
    "defapi.query",
    "defapi.balance",
    "cdn",
]

GATEWAYS: tuple[Gateway, ...] = ("apimall", "defapi")
ENDPOINTS: tuple[Endpoint, ...] = get_args(Endpoint)


@frozen
class EmulatedRequest:
    """One HTTP request. Header names may have any case; `path` is without the query string."""

    method: str  # in capitals
    path: str  # without the query string
    query: Mapping[str, str] = field(factory=dict)  # decoded
    headers: Mapping[str, str] = field(factory=dict)  # with the API key
    body: bytes = b""  # as it came

    @functools.cached_property
    def json(self) -> JsonBody | str:
        """The JSON object in the body, or an error message."""
        return read_json({name.lower(): value for name, value in self.headers.items()}, self.body)

    @functools.cached_property
    def content(self) -> Content:
        """The body as a file."""
        return Content.of(self.body)

    def read_body(self) -> None:
        """Do now what takes long for a large body. The driver calls it in a thread, before `handle`."""
        _ = self.content if self.method == "PUT" else self.json


class SendMode(enum.Enum):
    """How the driver must send a response."""

    WHOLE = "whole"  # send it unchanged
    RESET = "reset"  # send nothing, reset the connection
    CUT = "cut"  # send the true Content-Length and `sent_share` of the body, then close
    SHORT = "short"  # send `sent_share` of the length as Content-Length and the whole body, then close
    LATE = "late"  # not processed yet: wait, then call `GatewaySimulator.process`


@frozen(kw_only=True)
class ResponseSending:
    """How a response reaches the client: after `delay_s`, in this mode."""

    mode: SendMode = SendMode.WHOLE  # whole, or how it fails
    delay_s: float = field(default=0.0, validator=number_validator(endless=True))  # before it is sent
    sent_share: float = field(default=1.0, validator=number_validator(most=1))  # of the body, for CUT and SHORT


WHOLE = ResponseSending()


@frozen
class EmulatedResponse:
    """The simulator's response to one request.

    The driver waits `sending.delay_s`, then sends it as `sending.mode` says. `status` is 0 when there is nothing to
    send. With `make_body` the body is not made yet: `content()` makes it, which may take a second of processor time, so
    run it in a thread.
    """

    status: int  # of HTTP; 0: nothing is sent
    headers: Mapping[str, str]  # of HTTP
    body: bytes  # empty if `make_body` is set
    sending: ResponseSending = WHOLE  # how it is sent
    make_body: Callable[[], bytes] | None = None  # makes a body that takes long

    def content(self) -> bytes:
        """Return the whole body; make it first if needed."""
        return self.body if self.make_body is None else self.make_body()


@frozen
class Callback:
    """One POST due to a callback URL or a webhook."""

    url: str  # on loopback
    body: bytes  # JSON
    task_id: str  # the job that has ended
    headers: Mapping[str, str] = field(factory=dict)  # the signature of a delivery
    webhook_id: str | None = None  # None: a callback of defapi
    attempt: int = 1  # from 1
