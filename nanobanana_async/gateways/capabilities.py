"""What a gateway may offer beside creates and queries. It offers it by having the methods: ask with `isinstance`."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Protocol, runtime_checkable

from attrs import frozen

from nanobanana_async.gateways.contract import HttpRequest, HttpResponse


@runtime_checkable
class HasBalance(Protocol):
    """The gateway says how many credits the API may spend."""

    def build_balance(self) -> HttpRequest: ...

    def read_balance(self, response: HttpResponse) -> Decimal: ...


@frozen(kw_only=True)
class PastTask:
    """A task in the gateway's history, which shows no prompt."""

    task_id: str
    created_at: datetime
    model: str | None = None
    status: str | None = None
    image_url: str | None = None
    credits_used: Decimal | None = None


@frozen
class HistoryPage:
    """Tasks of the account, newest first."""

    tasks: Sequence[PastTask]
    is_last: bool
    answered_at: datetime | None = None
    """When it was sent, by the gateway's clock: the HTTP header `Date`."""


@runtime_checkable
class HasHistory(Protocol):
    """The gateway lists the tasks of the account."""

    @property
    def history_delay_s(self) -> float:
        """Seconds after a create until its task is in the history for certain.

        A task that is not there three times as long after a create was never made.
        """
        ...

    def build_history(self, page: int) -> HttpRequest:
        """Return the request for a page, counted from 1."""
        ...

    def read_history(self, response: HttpResponse) -> HistoryPage: ...


@frozen(kw_only=True)
class UploadAnswer:
    """What the answer to an upload says: where the image is, or is to be sent.

    With `put_url` (pre-signed, on another host) the bytes are still to be sent there, without the API key.
    """

    url: str
    put_url: str | None = None
    content_type: str | None = None
    """The type with which the bytes must be sent to `put_url`."""
    size: int | None = None
    """The size in bytes that the gateway has, or accepts at most for `put_url`."""


@runtime_checkable
class HasUploads(Protocol):
    """The gateway stores reference images."""

    @property
    def max_upload_bytes(self) -> int: ...

    @property
    def upload_lifetime_s(self) -> float:
        """Seconds for which an upload is used again; after them the image is uploaded once more."""
        ...

    def build_upload(self, content: bytes, *, content_type: str, filename: str) -> HttpRequest:
        """Return the upload itself, or for a large image the request for a `put_url`."""
        ...

    def read_upload(self, response: HttpResponse) -> UploadAnswer: ...


@runtime_checkable
class TakesInlineImages(Protocol):
    """The gateway takes reference images as data URIs in the create."""

    @property
    def max_inline_bytes(self) -> int:
        """The size of one image before base64."""
        ...


@frozen(kw_only=True)
class Webhook:
    """A webhook of the account, which the gateway calls when a task of the account ends."""

    id: str
    url: str
    is_active: bool = True
    status: str | None = None
    total_sent: int | None = None
    total_failed: int | None = None
    last_error: str | None = None


MAX_WEBHOOKS_READ = 1000
"""How many webhooks of an account are read."""


@frozen
class WebhookPage:
    """Webhooks of the account."""

    webhooks: Sequence[Webhook]
    is_last: bool = True
    next_cursor: str | None = None
    """What the request for the next page names in place of its number."""


@frozen(kw_only=True)
class Signature:
    """The signature of a delivery, in the form that the gateway documents."""

    is_valid: bool
    signed_at: datetime
    """As the delivery says; to be believed only if the signature is right."""


@runtime_checkable
class HasWebhooks(Protocol):
    """The gateway calls one URL for all tasks of the account."""

    def build_webhook_list(self, page: int, cursor: str | None) -> HttpRequest:
        """Return the request for a page, counted from 1, or for the one at the cursor of the page before."""
        ...

    def read_webhook_list(self, response: HttpResponse) -> WebhookPage: ...

    def build_webhook_registration(self, url: str, *, secret: str) -> HttpRequest:
        """Return the request that registers a webhook; raise `ConfigurationError` for a URL that is never called."""
        ...

    def read_webhook_registration(self, response: HttpResponse) -> Webhook:
        """Return the webhook that was registered. Its id is not trusted: only the list says which webhook is whose."""
        ...

    def build_webhook_removal(self, webhook_id: str) -> HttpRequest: ...

    def read_webhook_removal(self, response: HttpResponse) -> None:
        """Raise `TaskNotFound` if there is no such webhook."""
        ...

    def read_delivery(self, body: bytes) -> str:
        """Return the task id that a delivery names; raise `UnexpectedResponse` if it names none. Do not trust it."""
        ...

    def read_signature(self, headers: Mapping[str, str], body: bytes, *, secret: str) -> Signature | None:
        """Return the signature of a delivery; None if there is none, or one of an unknown form.

        Header names are in lower case.
        """
        ...
