"""The sans-I/O protocol of a gateway: it builds requests and parses answers, and sends nothing itself."""

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
    """An HTTP request without the API key, which the transport adds when it sends."""

    method: Literal["GET", "POST", "PUT", "DELETE"]  # of HTTP
    url: str  # the whole URL
    headers: Mapping[str, str] = field(factory=dict)  # beside `Authorization`
    body: bytes | None = field(default=None, repr=False)  # None for none
    max_answer_bytes: int = MIB  # a longer answer is an `UnexpectedResponse`
    max_text_bytes: int | None = None
    """Bound of the bytes outside inline images, which reach from `;base64,` to the next quote; None for no bound."""


@frozen(kw_only=True)
class HttpResponse:
    """A complete HTTP answer. Header names are in lower case."""

    status: int  # of HTTP
    headers: Mapping[str, str] = field(factory=dict, repr=False)  # names in lower case
    body: bytes = field(default=b"", repr=False)  # all of it


@runtime_checkable
class Gateway(Protocol):
    """One gateway: its address and account, the requests it accepts, its formats. Implement it to add another.

    No method awaits, reads a clock or opens a socket. The `read_*` methods raise `GatewayError` for an error in the
    gateway's own format, and `UnexpectedResponse` for an answer that does not match its reference.
    """

    @property
    def name(self) -> str:
        """A short name that never changes, since ledgers store it."""
        ...

    @property
    def base_url(self) -> str:
        """Where requests go, without a slash at the end."""
        ...

    @property
    def api_key(self) -> Secret:
        """The key that each request carries as `Authorization: Bearer`; masked in every repr and string."""
        ...

    @property
    def account(self) -> str:
        """The account as ledgers store it: a name or a fingerprint, never the API key."""
        ...

    @property
    def model(self) -> str:
        """The model that `encode` writes for requests that name none."""
        ...

    @property
    def supports_idempotency_keys(self) -> bool:
        """Whether a create that is repeated with its key is processed and charged once."""
        ...

    @property
    def supports_callbacks(self) -> bool:
        """Whether requests may have a `callback_url`."""
        ...

    @property
    def key_lifetime_s(self) -> float:
        """Seconds after the first send for which the gateway recognises a key; no create is repeated after them."""
        ...

    @property
    def expected_job_s(self) -> float:
        """The first guess of a job's duration in seconds, until the session has learned it."""
        ...

    def check(self, request: ImageRequest) -> None:
        """Raise `InvalidRequest`, which names the first field that this gateway does not take."""
        ...

    def slots_for(self, request: ImageRequest) -> int:
        """Return how many job slots of the account the request takes."""
        ...

    def price_class(self, request: ImageRequest) -> str:
        """Return the class of the request: requests of one class cost the same and take about as long."""
        ...

    def example_credits(self, request: ImageRequest) -> Decimal:
        """Return the cost by the example of the gateway's reference: an estimate until the gateway states a price."""
        ...

    def encode(self, request: ImageRequest) -> bytes:
        """Return the canonical body: the same request always gives the same bytes."""
        ...

    def build_create(self, body: bytes, *, wire_key: str) -> HttpRequest:
        """Return the create; a repeat under the key has the same bytes."""
        ...

    def read_create(self, response: HttpResponse) -> Accepted:
        """Return the accepted task, or raise the error that the answer holds."""
        ...

    def build_query(self, task_id: str) -> HttpRequest:
        """Return the request for the status of a task."""
        ...

    def read_query(self, response: HttpResponse) -> Observation:
        """Return the status of a task, or raise the error that the answer holds."""
        ...

    def read_callback(self, body: bytes) -> Observation:
        """Parse a callback; raise `UnexpectedResponse` if the gateway sends none."""
        ...


@runtime_checkable
class Transport(Protocol):
    """Sends requests to a gateway: the HTTP transport, or a fake of `nanobanana_async.testing`."""

    async def open(self) -> None: ...

    async def aclose(self) -> None: ...

    async def send(self, request: HttpRequest, *, timeout_s: float, fresh_connection: bool = False) -> HttpResponse:
        """Return the complete answer; raise `TransportError` or `UnexpectedResponse` if there is none."""
        ...
