"""What is wanted and what came back: frozen values, checked at birth."""

from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from typing import Any, Literal, TypedDict, get_args
from urllib.parse import urlsplit

from attrs import Attribute, evolve, field, fields, frozen

from nanobanana_async.errors import ConfigurationError, InvalidRequest
from nanobanana_async.notebook_html import LabelledValue, amount, card, image_gallery, seconds

Resolution = Literal["1K", "2K", "4K"]
OutputFormat = Literal["jpeg", "jpg", "png"]
TaskType = Literal["text-to-image", "image-to-image"]

MAX_IMAGES = 6  # API Mall's reference: "num_images ... Range: 1 - 6"


class RequestFields(TypedDict, total=False):
    """The fields that `generate` and `submit` take beside the prompt; see `ImageRequest`."""

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
        raise InvalidRequest(f"prompt holds a lone surrogate at {error.start}") from None


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
    except ValueError:  # urlsplit refuses a broken IPv6 literal
        fits = False
    if not fits:
        raise InvalidRequest(f"{name} must be an http or https URL, not {str(url)[:80]!r}")


def _check_urls(_: Any, __: "Attribute[tuple[str, ...]]", urls: tuple[str, ...]) -> None:
    for number, url in enumerate(urls):
        _check_url(f"images[{number}]", url)


def _check_callback(_: Any, attribute: "Attribute[str | None]", url: object) -> None:
    if url is not None:
        _check_url(attribute.name, url)


def _to_urls(images: object) -> tuple[str, ...]:
    # A bare string is a sequence of characters, which would be refused with sixty confusing errors.
    if isinstance(images, str):
        raise InvalidRequest("images must be a list of URLs, not one string")
    if not isinstance(images, (list, tuple)):
        raise InvalidRequest(f"images must be a list of URLs, not {type(images).__name__}")
    return tuple(images)


@frozen
class ImageRequest:
    """What is wanted: one purchase of one or more images.

    Fields left out are not sent, so the gateway's own defaults hold. Each gateway refuses, by name and before anything
    is sent, a field that it does not take. Raises `InvalidRequest` (status None) for what no gateway takes.
    """

    prompt: str = field(validator=_check_prompt)
    images: tuple[str, ...] = field(default=(), kw_only=True, converter=_to_urls, validator=_check_urls)
    """Reference image URLs, for edits and compositions; at most 4 on defapi."""
    num_images: int = field(default=1, kw_only=True, validator=_check_count)
    aspect_ratio: str | None = field(default=None, kw_only=True, validator=_check_text)
    """Such as "16:9"; passed through, since the reference lists no values."""
    resolution: Resolution | None = field(default=None, kw_only=True, validator=_one_of(get_args(Resolution)))
    output_format: OutputFormat | None = field(default=None, kw_only=True, validator=_one_of(get_args(OutputFormat)))
    model: str | None = field(default=None, kw_only=True, validator=_check_text)
    """The gateway's own default when None."""
    task_type: TaskType | None = field(default=None, kw_only=True, validator=_one_of(get_args(TaskType)))
    """Follows from the presence of `images` when None."""
    callback_url: str | None = field(default=None, kw_only=True, validator=_check_callback)


@frozen(kw_only=True)
class GeneratedImage:
    """One picture that came back: an http(s) URL, or a `data:` URI on gateways that inline their pictures."""

    url: str = field(repr=lambda url: repr(shorten(url)))
    index: int = 0
    task_id: str = field(default="", repr=False)
    """The gateway's task that made it: it is asked for a new link when this one has expired."""

    def _repr_html_(self) -> str:
        return image_gallery([self.url])


@frozen(kw_only=True)
class GenerationResult:
    """What one job brought back.

    `credits` is what it cost after refunds, where the gateway said so. `raw` is the gateway's last answer with inline
    pictures left out. Links expire: fetch them soon with `session.save`.
    """

    key: str
    task_id: str
    images: tuple[GeneratedImage, ...]
    missing: Mapping[int, str] = field(factory=dict, hash=False)
    """The images that were bought and not delivered: their index, and why. Those in `images` keep their own index."""
    model: str | None = None
    credits: Decimal | None = None
    created_at: datetime | None = None
    completed_at: datetime | None = None
    raw: Mapping[str, Any] = field(factory=dict, repr=False, eq=False)
    request: ImageRequest | None = field(default=None, repr=False, eq=False)
    """What was wanted; None for a task that was attached by its id alone."""

    @property
    def url(self) -> str:
        """The first image's URL."""
        return self.images[0].url

    # Only HTML: every notebook takes it, it holds several pictures, and IPython adds the plain text from the repr.
    def _repr_html_(self) -> str:
        prompt = None if self.request is None else self.request.prompt
        return card(prompt, result_facts(self), image_gallery(image.url for image in self.images))


def result_facts(result: GenerationResult) -> list[LabelledValue]:
    """Return what is told of a result beside its pictures."""
    begun, ended = result.created_at, result.completed_at
    return [
        *request_facts(result.request),
        ("credits", None if result.credits is None else amount(result.credits)),
        ("time", None if begun is None or ended is None else seconds((ended - begun).total_seconds())),
        ("model", result.model),
        ("key", result.key),
        ("task", result.task_id),
    ]


def request_facts(request: ImageRequest | None) -> list[LabelledValue]:
    """Return what a request says beside its prompt."""
    if request is None:
        return []
    return [
        ("aspect ratio", request.aspect_ratio),
        ("resolution", request.resolution),
        ("pictures", request.num_images if request.num_images > 1 else None),
        ("references", len(request.images) or None),
        ("format", request.output_format),
    ]


def to_request(request: str | ImageRequest, fields: RequestFields) -> ImageRequest:
    """Return what a caller wants, who gave a prompt with fields, or all in one."""
    if isinstance(request, str):
        return ImageRequest(request, **fields)
    if not isinstance(request, ImageRequest):
        raise ConfigurationError(f"a request is a prompt or an ImageRequest, not {type(request).__name__}")
    if fields:
        raise ConfigurationError(f"{', '.join(fields)}: put it into the ImageRequest, or pass the prompt as text")
    return request


def same_request(one: ImageRequest, other: ImageRequest) -> bool:
    """Tell whether two requests want the same pictures; where the gateway calls back is no part of the wish."""
    return evolve(one, callback_url=None) == evolve(other, callback_url=None)


def with_model(request: ImageRequest, model: str) -> ImageRequest:
    """Return the request with this model if it names none: what is bought, and what a key stands for."""
    return evolve(request, model=model) if request.model is None else request


def difference(one: ImageRequest, other: ImageRequest) -> str:
    """Name the fields in which two requests differ; of the model, which a gateway may have chosen, also the values."""
    names = [field.name for field in fields(ImageRequest) if field.name != "callback_url"]
    differing = [name for name in names if getattr(one, name) != getattr(other, name)]
    said = [f"model is {one.model}, not {other.model}" if name == "model" else f"{name} differs" for name in differing]
    return ", ".join(said)


def shorten(url: str, limit: int = 96) -> str:
    """Cut a long URL (a data URI has megabytes) for people's eyes."""
    return url if len(url) <= limit else f"{url[:limit]}... ({len(url)} characters)"
