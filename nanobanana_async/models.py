"""Requests and results: immutable values, validated on creation."""

from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from typing import Any, Literal, TypedDict, get_args
from urllib.parse import urlsplit

from attrs import Attribute, evolve, field, fields, frozen

from nanobanana_async.errors import ConfigurationError, InvalidRequest
from nanobanana_async.formatting import duration, number
from nanobanana_async.misspelt import unknown_fields
from nanobanana_async.notebook_html import LabelledValue, card, image_gallery

Resolution = Literal["1K", "2K", "4K"]
OutputFormat = Literal["jpeg", "jpg", "png"]
TaskType = Literal["text-to-image", "image-to-image"]

MAX_IMAGES = 6  # API Mall's reference: "num_images ... Range: 1 - 6"


class RequestFields(TypedDict, total=False):
    """The fields that `generate` and `submit` accept beside the prompt; see `ImageRequest`."""

    images: tuple[str, ...] | list[str]
    num_images: int
    aspect_ratio: str | None
    resolution: Resolution | None
    output_format: OutputFormat | None
    model: str | None
    task_type: TaskType | None
    callback_url: str | None


def _check_prompt(_: Any, __: "Attribute[str]", prompt: object) -> None:
    if not isinstance(prompt, str):
        raise InvalidRequest(f"prompt must be text, not {type(prompt).__name__}")
    if not prompt.strip():
        raise InvalidRequest("prompt is empty")
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest(f"prompt contains a lone surrogate at index {error.start}") from None


def _check_text(_: Any, attribute: "Attribute[str | None]", text: object) -> None:
    if text is not None and (not isinstance(text, str) or not text.strip() or not text.isprintable()):
        raise InvalidRequest(f"{attribute.name} must be non-empty printable text, not {text!r}")


def _check_count(_: Any, __: "Attribute[int]", count: object) -> None:
    if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= MAX_IMAGES:
        raise InvalidRequest(f"num_images must be a whole number from 1 to {MAX_IMAGES}, not {count!r}")


def _one_of(allowed: tuple[str, ...]) -> Any:
    def check(_: Any, attribute: "Attribute[str | None]", value: object) -> None:
        if value is not None and value not in allowed:
            choices = ", ".join(allowed)
            raise InvalidRequest(f"{attribute.name} must be one of {choices}, not {value!r}")

    return check


def _check_url(name: str, url: object) -> None:
    try:
        fits = isinstance(url, str) and url.isprintable() and " " not in url
        parts = urlsplit(url) if fits and isinstance(url, str) else None
        fits = parts is not None and parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:  # urlsplit raises for an invalid IPv6 literal
        fits = False
    if not fits:
        raise InvalidRequest(f"{name} must be an http or https URL, not {str(url)[:80]!r}")


def _check_urls(_: Any, __: "Attribute[tuple[str, ...]]", urls: tuple[str, ...]) -> None:
    for index, url in enumerate(urls):
        _check_url(f"images[{index}]", url)


def _check_callback(_: Any, attribute: "Attribute[str | None]", url: object) -> None:
    if url is not None:
        _check_url(attribute.name, url)


def _to_urls(images: object) -> tuple[str, ...]:
    # A string is a sequence of characters: without this check each character would be refused as a URL.
    if isinstance(images, str):
        raise InvalidRequest("images must be a list of URLs, not one string")
    if not isinstance(images, (list, tuple)):
        raise InvalidRequest(f"images must be a list of URLs, not {type(images).__name__}")
    return tuple(images)


@frozen(weakref_slot=False)
class ImageRequest:
    """One purchase of one or more images.

    Fields left out are not sent, so the gateway's defaults apply. Each gateway refuses fields that it does not take,
    by name, before anything is sent. Raises `InvalidRequest` (status None) for values that no gateway takes.
    """

    prompt: str = field(validator=_check_prompt)
    images: tuple[str, ...] = field(default=(), kw_only=True, converter=_to_urls, validator=_check_urls)
    """URLs of reference images, for edits and compositions; at most 4 on defapi."""
    num_images: int = field(default=1, kw_only=True, validator=_check_count)
    aspect_ratio: str | None = field(default=None, kw_only=True, validator=_check_text)
    """Such as "16:9". Not validated, since the references list no values."""
    resolution: Resolution | None = field(default=None, kw_only=True, validator=_one_of(get_args(Resolution)))
    output_format: OutputFormat | None = field(default=None, kw_only=True, validator=_one_of(get_args(OutputFormat)))
    model: str | None = field(default=None, kw_only=True, validator=_check_text)
    """None means the model of the gateway's settings."""
    task_type: TaskType | None = field(default=None, kw_only=True, validator=_one_of(get_args(TaskType)))
    """None means image-to-image if there are `images`, otherwise text-to-image."""
    callback_url: str | None = field(default=None, kw_only=True, validator=_check_callback)


@frozen(kw_only=True)
class GeneratedImage:
    """One generated image: an http(s) URL, or a `data:` URI on gateways that send images inline."""

    url: str = field(repr=lambda url: repr(shorten(url)))
    index: int = 0
    task_id: str = field(default="", repr=False)
    """The task that made the image. It is polled for a new link when this one has expired."""
    ended_at: datetime | None = field(default=None, repr=False, eq=False)
    """When the job was seen to end. A host may not have the image of a job that ended moments ago."""

    def _repr_html_(self) -> str:
        return image_gallery([self.url])


@frozen(kw_only=True)
class GenerationResult:
    """The result of one job.

    `credits` is the cost after refunds, if the gateway stated it. `raw` is the gateway's last answer without inline
    images. Links expire: download the images soon with `session.save`.
    """

    key: str
    task_id: str
    images: tuple[GeneratedImage, ...]
    missing: Mapping[int, str] = field(factory=dict, hash=False)
    """The images that were bought and not delivered: index and reason. The others keep their `index`."""
    model: str | None = None
    credits: Decimal | None = None
    created_at: datetime | None = None
    completed_at: datetime | None = None
    raw: Mapping[str, Any] = field(factory=dict, repr=False, eq=False)
    request: ImageRequest | None = field(default=None, repr=False, eq=False)
    """The request; None for a task that was attached by its id alone."""

    @property
    def url(self) -> str:
        """The first image's URL."""
        return self.images[0].url

    # Only HTML: every notebook shows it, it can hold several images, and IPython adds the repr as plain text.
    def _repr_html_(self) -> str:
        prompt = None if self.request is None else self.request.prompt
        return card(prompt, result_facts(self), image_gallery(image.url for image in self.images))


def result_facts(result: GenerationResult) -> list[LabelledValue]:
    """Return the labelled values that a notebook shows beside the images of a result."""
    created, completed = result.created_at, result.completed_at
    return [
        *request_facts(result.request),
        ("credits", None if result.credits is None else number(result.credits)),
        ("time", None if created is None or completed is None else duration((completed - created).total_seconds())),
        ("model", result.model),
        ("key", result.key),
        ("task", result.task_id),
    ]


def request_facts(request: ImageRequest | None) -> list[LabelledValue]:
    """Return the labelled values that a notebook shows beside the prompt of a request."""
    if request is None:
        return []
    return [
        ("aspect ratio", request.aspect_ratio),
        ("resolution", request.resolution),
        ("images", request.num_images if request.num_images > 1 else None),
        ("references", len(request.images) or None),
        ("format", request.output_format),
    ]


def to_request(request: str | ImageRequest, fields: RequestFields) -> ImageRequest:
    """Return the request for a prompt with fields, or the request itself; raise `InvalidRequest` for a mixture."""
    known = RequestFields.__annotations__
    if unknown := [name for name in fields if name not in known]:
        raise ConfigurationError(unknown_fields(unknown, (*known, "idempotency_key", "timeout")))
    if isinstance(request, str):
        return ImageRequest(request, **fields)
    if isinstance(request, (list, tuple)):
        raise ConfigurationError("generate and submit take one request: session.generate_many takes a list of them")
    if not isinstance(request, ImageRequest):
        raise ConfigurationError(f"a request is a prompt or an ImageRequest, not {type(request).__name__}")
    if fields:
        raise ConfigurationError(f"{', '.join(fields)}: put it into the ImageRequest, or pass the prompt as text")
    return request


def same_request(one: ImageRequest, other: ImageRequest) -> bool:
    """Return whether two requests ask for the same images; `callback_url` does not count."""
    return one is other or evolve(one, callback_url=None) == evolve(other, callback_url=None)


def with_model(request: ImageRequest, model: str) -> ImageRequest:
    """Return the request with this model if it names none."""
    return evolve(request, model=model) if request.model is None else request


def difference(one: ImageRequest, other: ImageRequest) -> str:
    """Return the fields in which two requests differ. Of the model, which may be a default, also return the values."""
    names = [field.name for field in fields(ImageRequest) if field.name != "callback_url"]
    differing = [name for name in names if getattr(one, name) != getattr(other, name)]
    parts = [f"model is {one.model}, not {other.model}" if name == "model" else f"{name} differs" for name in differing]
    return ", ".join(parts)


def shorten(url: str, limit: int = 96) -> str:
    """Cut a long URL for display: a data URI may have megabytes."""
    return url if len(url) <= limit else f"{url[:limit]}... ({len(url)} characters)"
