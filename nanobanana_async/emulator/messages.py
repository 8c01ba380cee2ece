"""The values that go in and out of the emulated world: calls, answers, how they are delivered."""

import enum
from collections.abc import Callable, Mapping
from typing import Literal

from attrs import field, frozen

from nanobanana_async.emulator.validators import number

Gateway = Literal["apimall", "defapi"]
Endpoint = Literal["apimall.create", "apimall.query", "defapi.create", "defapi.query", "cdn"]

GATEWAYS: tuple[Gateway, ...] = ("apimall", "defapi")
ENDPOINTS: tuple[Endpoint, ...] = (
    "apimall.create",
    "apimall.query",
    "defapi.create",
    "defapi.query",
    "cdn",
)


@frozen
class EmulatedRequest:
    """One HTTP request as it arrived; header names in any case, `path` without the query."""

    method: str
    path: str
    query: Mapping[str, str] = field(factory=dict)
    headers: Mapping[str, str] = field(factory=dict)
    body: bytes = b""


class DeliveryMode(enum.Enum):
    """What the driver must do with an answer on the wire."""

    WHOLE = "whole"  # send it as it is
    RESET = "reset"  # send nothing, reset the connection
    CUT = "cut"  # state the whole length, send `sent_bytes` of the body, close
    SHORT = "short"  # state `sent_bytes` as the length, send the whole body, close
    LATE = "late"  # nothing has been processed yet: wait, then ask `World.process`


@frozen(kw_only=True)
class Delivery:
    """How an answer reaches the caller: after `delay_s`, in this manner."""

    manner: DeliveryMode = DeliveryMode.WHOLE
    delay_s: float = field(default=0.0, validator=number(endless=True))
    sent_share: float = field(default=1.0, validator=number(most=1))  # of the body, for CUT and SHORT


WHOLE = Delivery()


@frozen
class EmulatedResponse:
    """What the world says to one call.

    The driver waits `delivery.delay_s`, then does what `delivery.manner` says. `status` is 0 when
    there is nothing to send. When `paint` is set the body is not made yet: `content()` makes it,
    and that may take a second of processor time, so run it in a thread.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    delivery: Delivery = WHOLE
    make_body: Callable[[], bytes] | None = None

    def content(self) -> bytes:
        """Return the whole body, made now if it was not made yet."""
        return self.body if self.make_body is None else self.make_body()


@frozen
class Callback:
    """One POST that a gateway owes to a callback URL."""

    url: str
    body: bytes
    task_id: str
