"""What a gateway is: settings, and a sans-I/O contract that turns values into requests and answers into values."""

from collections.abc import Mapping
from decimal import Decimal
from typing import Literal, Protocol, runtime_checkable

from attrs import field, frozen

from nanobanana_async.gateways.secret import Secret
from nanobanana_async.jobs import Accepted, Observation
from nanobanana_async.models import ImageRequest

MIB = 1024 * 1024


@frozen(kw_only=True)
class HttpRequest:
    """A request as the wire shall carry it, but for the API key, which the door adds at the last moment."""

    method: Literal["GET", "POST"]
    url: str
    headers: Mapping[str, str] = field(factory=dict)
    body: bytes | None = field(default=None, repr=False)
    max_answer_bytes: int = MIB
    max_text_bytes: int | None = None
    """How many bytes of the answer may belong to no inline image (`;base64,` and all up to a quote); None: any."""


@frozen(kw_only=True)
class HttpResponse:
    """An answer, read whole. Header names are found in lower case."""

    status: int
    headers: Mapping[str, str] = field(factory=dict, repr=False)
    body: bytes = field(default=b"", repr=False)


@runtime_checkable
class Gateway(Protocol):
    """One gateway: how it is reached, what it takes, how it speaks. Implement it to add a third.

    No method awaits, reads a clock or touches a socket. `read_*` raise `GatewayError` for a no in the gateway's own
    envelope and `UnexpectedResponse` for an answer that does not fit its reference.
    """

    @property
    def name(self) -> str:
        """A short stable word; it stands in ledgers."""
        ...

    @property
    def base_url(self) -> str: ...

    @property
    def api_key(self) -> Secret:
        """What each request carries as `Authorization: Bearer`; masked wherever it is printed."""
        ...

    @property
    def account(self) -> str:
        """What stands for the account in a ledger: a name or a fingerprint, never the API key."""
        ...

    @property
    def model(self) -> str:
        """The model that `encode` writes for requests that name none."""
        ...

    @property
    def supports_idempotency_keys(self) -> bool:
        """Whether a create that is repeated under its key is answered once and charged once."""
        ...

    @property
    def supports_callbacks(self) -> bool: ...

    @property
    def key_lifetime_s(self) -> float:
        """How long after the first send a key is trusted to be remembered; no repeat after it."""
        ...

    @property
    def expected_job_s(self) -> float:
        """A first guess of how long a job takes, until the session has learned it."""
        ...

    def check(self, request: ImageRequest) -> None:
        """Raise `InvalidRequest` naming the first field that this gateway does not take."""
        ...

    def slots_for(self, request: ImageRequest) -> int:
        """How many job slots the request takes in the gateway's count."""
        ...

    def price_class(self, request: ImageRequest) -> str:
        """Requests of one class are taken to cost the same and to last about as long."""
        ...

    def example_credits(self, request: ImageRequest) -> Decimal:
        """Return what such a request costs by the example of the gateway's reference: an estimate until it says."""
        ...

    def encode(self, request: ImageRequest) -> bytes:
        """Return the canonical body: the same request gives the same bytes, always."""
        ...

    def build_create(self, body: bytes, *, wire_key: str) -> HttpRequest: ...

    def read_create(self, response: HttpResponse) -> Accepted: ...

    def build_query(self, task_id: str) -> HttpRequest: ...

    def read_query(self, response: HttpResponse) -> Observation: ...

    def read_callback(self, body: bytes) -> Observation:
        """Read what a callback claims; raise `UnexpectedResponse` where the gateway sends none."""
        ...


@runtime_checkable
class Transport(Protocol):
    """What carries requests to a gateway: the HTTP door, or a fake of `nanobanana_async.testing`."""

    async def open(self) -> None: ...

    async def aclose(self) -> None: ...

    async def send(self, request: HttpRequest, *, timeout_s: float, fresh_connection: bool = False) -> HttpResponse:
        """Return the gateway's answer, read whole; raise `TransportError` or `UnexpectedResponse` if there is none."""
        ...
