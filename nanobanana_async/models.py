"""Requests and results: immutable values, validated on creation."""

import math
import os
from collections.abc import Mapping, Sequence
from copy import copy
from datetime import datetime, time
from decimal import Decimal
from typing import Any, Literal, cast, get_args

from attrs import Attribute, asdict, evolve, field, fields, fields_dict, frozen

from nanobanana_async.errors import ConfigurationError, InvalidRequest
from nanobanana_async.escaping import as_plain_str
from nanobanana_async.extra import NO_EXTRA, ExtraFields, to_extra
from nanobanana_async.formatting import duration, number, shorten
from nanobanana_async.misspelt import unknown_fields
from nanobanana_async.notebook_html import LabelledValue, card, image_gallery
from nanobanana_async.references import LocalImage, check_url, digest_of, image_identity, one_text_error, to_reference
from nanobanana_async.values import as_choice, as_ratio, as_small_count, as_text, is_absent, to_mapping

Resolution = Literal["1K", "2K", "4K"]
OutputFormat = Literal["jpeg", "jpg", "png"]
TaskType = Literal["text-to-image", "image-to-image", "upscale"]

MAX_IMAGES = 6  # API Mall's reference: "num_images ... Range: 1 - 6"

Reference = str | LocalImage
"""A reference image of a request: a URL, the stored form of a local image, or one that was not read yet."""


def _check_prompt(_: Any, __: "Attribute[str]", prompt: object) -> None:
    if is_absent(prompt):
        raise InvalidRequest("prompt is empty")
    if not isinstance(prompt, str):
        raise InvalidRequest(f"prompt must be text, not {type(prompt).__name__}")
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest(f"prompt contains a lone surrogate at index {error.start}") from None
    if "\0" in prompt:
        raise InvalidRequest(f"prompt contains a NUL character at index {prompt.index(chr(0))}: that is no text")


def _to_prompt(prompt: str) -> str:
    return as_plain_str(prompt)


def _to_count(value: float | str | None) -> int:
    return 1 if is_absent(value) else as_small_count("num_images", value, MAX_IMAGES)


def _to_ratio(value: str | time | None) -> str | None:
    return None if is_absent(value) else as_ratio("aspect_ratio", value)


def _to_resolution(value: Resolution | None) -> Resolution | None:
    return None if is_absent(value) else cast(Resolution, as_choice("resolution", value, get_args(Resolution)))


def _to_format(value: OutputFormat | None) -> OutputFormat | None:
    return None if is_absent(value) else cast(OutputFormat, as_choice("output_format", value, get_args(OutputFormat)))


def _to_task_type(value: TaskType | None) -> TaskType | None:
    return None if is_absent(value) else cast(TaskType, as_choice("task_type", value, get_args(TaskType)))


def _to_model(value: str | None) -> str | None:
    return None if is_absent(value) else as_text("model", value)


def _to_url(url: str | None) -> str | None:
    return None if is_absent(url) else as_plain_str(url)


def _check_images(_: Any, __: "Attribute[tuple[Reference, ...]]", images: tuple[Reference, ...]) -> None:
    for index, image in enumerate(images):
        if not isinstance(image, LocalImage) and digest_of(image) is None:
            if str(image).strip().isdigit():
                raise InvalidRequest(
                    f"images[{index}] must be the URL of a reference image, not {str(image)[:20]!r}: the number of"
                    " images is num_images"
                )
            check_url(f"images[{index}]", image)


def _check_url(_: Any, attribute: "Attribute[str | None]", url: object) -> None:
    if url is not None:
        check_url(attribute.name, url)


def _to_images(images: "Sequence[ImageInput] | None") -> "tuple[Reference, ...]":
    if is_absent(images):
        return ()
    # A string is a sequence of characters: without this check each character would be refused as a URL.
    if isinstance(images, str):
        raise one_text_error(images)
    if not isinstance(images, (list, tuple)):
        raise InvalidRequest(f"images must be a list of URLs, paths, bytes or results, not {type(images).__name__}")
    found: list[Any] = []
    for image in images:
        of_result = image.images if isinstance(image, GenerationResult) else (image,)
        found += [to_reference(one.url if isinstance(one, GeneratedImage) else one) for one in of_result]
    return tuple(found)


@frozen(weakref_slot=False)
class ImageRequest:
    """One purchase of one or more images.

    Fields left out are not sent, so the gateway's defaults apply; None, empty text, NaN and pandas.NA count as left
    out. Each gateway refuses fields that it does not take, by name, before anything is sent. Raises `InvalidRequest`
    (status None) for values that no gateway takes.
    """

    prompt: str = field(converter=_to_prompt, validator=_check_prompt)  # text that is not empty
    images: tuple[Reference, ...] = field(default=(), kw_only=True, converter=_to_images, validator=_check_images)
    """Reference images, for edits and compositions; at most 4 on defapi.

    URLs, `Path`s, bytes, data URIs, results and their images, and objects in stores: `s3://bucket/cat.png`, or an
    obstore store with a path. A file or object is read when its job is registered; from then on the job's request has
    the digest of its content, `sha256:<hex>`, in its place.
    """
    num_images: int = field(default=1, kw_only=True, converter=_to_count)  # 1 to 6
    aspect_ratio: str | None = field(default=None, kw_only=True, converter=_to_ratio)
    """Such as "16:9". Only its form is checked, since the references list no values."""
    resolution: Resolution | None = field(default=None, kw_only=True, converter=_to_resolution)  # 1K, 2K or 4K
    output_format: OutputFormat | None = field(default=None, kw_only=True, converter=_to_format)  # "jpeg", "jpg", "png"
    model: str | None = field(default=None, kw_only=True, converter=_to_model)
    """None means the model of the gateway's settings."""
    task_type: TaskType | None = field(default=None, kw_only=True, converter=_to_task_type)
    """None means image-to-image if there are `images`, otherwise text-to-image. Not every model upscales."""
    callback_url: str | None = field(default=None, kw_only=True, converter=_to_url, validator=_check_url)  # only defapi
    extra: ExtraFields = field(default=NO_EXTRA, kw_only=True, converter=to_extra)
    """JSON values that go into the create as they are, such as `{"seed": 7}`: for what the gateway takes beside these
    fields. They are part of the request's identity."""

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON types."""
        images = [str(image) for image in self.images]
        return {**asdict(evolve(self, images=())), "images": images, "extra": dict(self.extra)}


def to_json_types(value: Any) -> Any:
    """Return a value as JSON types: credits as numbers, times in ISO form, what JSON does not have as text."""
    match value:
        case None | bool() | str() | int():
            return value
        case float():
            return value if math.isfinite(value) else str(value)
        case Decimal():
            return json_number(value)
        case datetime():
            return value.isoformat()
        case Mapping():
            return {str(name): to_json_types(inner) for name, inner in value.items()}
        case list() | tuple():
            return [to_json_types(inner) for inner in value]
        case _:
            return str(value)


def json_number(value: Decimal) -> int | float:
    """Return an amount as the number that JSON has for it."""
    return int(value) if value == value.to_integral_value() else float(value)


REQUEST_FIELDS = tuple(fields_dict(ImageRequest))
ROW_FIELDS = ("key", "metadata")
"""What a mapping may have beside the fields of its request."""


@frozen(kw_only=True)
class GeneratedImage:
    """One generated image: an http(s) URL, or a `data:` URI on gateways that send images inline."""

    url: str = field(repr=lambda url: repr(shorten(url)))  # a link, which expires, or a `data:` URI
    index: int = 0  # which image of the job, from 0
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

    key: str  # the job's key
    task_id: str  # the gateway's name for the job
    images: tuple[GeneratedImage, ...]  # at least one
    missing: Mapping[int, str] = field(factory=dict, hash=False)
    """The images that were bought and not delivered: index and reason. The others keep their `index`."""
    model: str | None = None  # the model, by the gateway's word
    credits: Decimal | None = None  # after refunds; None if the gateway did not state it
    created_at: datetime | None = None  # by the gateway's clock
    completed_at: datetime | None = None  # by the gateway's clock
    raw: Mapping[str, Any] = field(factory=dict, repr=False, eq=False)  # the last answer, without inline images
    request: ImageRequest | None = field(default=None, repr=False, eq=False)
    """The request; None for a task that was attached by its id alone."""

    @property
    def url(self) -> str:
        """The first image's URL."""
        return self.images[0].url

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON types, without `raw`: credits as numbers, times in ISO form."""
        facts = asdict(self, filter=lambda attribute, _: attribute.name not in ("raw", "request", "images"))
        facts = {name: to_json_types(value) for name, value in facts.items()}
        facts["images"] = [{"index": image.index, "url": image.url} for image in self.images]
        facts["request"] = None if self.request is None else self.request.to_dict()
        return facts

    # Only HTML: every notebook shows it, it can hold several images, and IPython adds the repr as plain text.
    def _repr_html_(self) -> str:
        prompt = None if self.request is None else self.request.prompt
        return card(prompt, result_facts(self), image_gallery(image.url for image in self.images))


ImageInput = str | bytes | os.PathLike[str] | LocalImage | tuple[Any, str] | GeneratedImage | GenerationResult
"""What `images` takes; an `ImageRequest` turns it into references."""


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
        *request.extra.items(),
    ]


def to_request(request: object, given: Mapping[str, Any]) -> ImageRequest:
    """Return the request for a prompt with fields, of a mapping, or the request itself.

    Raises `ConfigurationError` for a mixture.
    """
    if isinstance(request, str):
        return ImageRequest(request, **given)
    mapping = to_mapping(request)
    if mapping is None and not isinstance(request, ImageRequest):
        many = ": generate_many takes a list of them" if isinstance(request, (list, tuple)) else ""
        kind = type(request).__name__
        raise ConfigurationError(f"a request is a prompt, a mapping or an ImageRequest, not {kind}{many}")
    if given:
        where = "ImageRequest" if mapping is None else "mapping"
        raise ConfigurationError(f"{', '.join(given)}: put it into the {where}, or pass the prompt as text")
    return request_from_mapping(mapping) if mapping is not None else cast(ImageRequest, request)


def request_from_mapping(mapping: Mapping[Any, Any]) -> ImageRequest:
    """Return the request of a mapping; raise `InvalidRequest` if it has unknown fields or no prompt."""
    known = (*REQUEST_FIELDS, *ROW_FIELDS)
    if unknown := [name for name in mapping if name not in known]:
        raise InvalidRequest(unknown_fields(unknown, known))
    if "prompt" not in mapping:
        raise InvalidRequest("a row needs a prompt")
    return ImageRequest(**{name: value for name, value in mapping.items() if name in REQUEST_FIELDS})


def same_request(one: ImageRequest, other: ImageRequest) -> bool:
    """Return whether two requests ask for the same images; `callback_url` and signatures in URLs do not count."""
    return one is other or without_transient_parts(one) == without_transient_parts(other)


def without_transient_parts(request: ImageRequest) -> ImageRequest:
    """Return the request with what identifies it: without `callback_url`, and without the signatures in URLs."""
    return evolve(request, callback_url=None, images=tuple(map(image_identity, request.images)))


def with_model(request: ImageRequest, model: str) -> ImageRequest:
    """Return the request with this model, a checked one of a gateway's settings, if it names none."""
    return _with_unchecked(request, "model", model) if request.model is None else request


def with_images(request: ImageRequest, images: Sequence[str]) -> ImageRequest:
    """Return the request with its reference images as they are sent, data URIs too, unread and unchecked."""
    return _with_unchecked(request, "images", tuple(images))


def _with_unchecked(request: ImageRequest, name: str, value: object) -> ImageRequest:
    changed = copy(request)  # `evolve` would convert and check all fields again
    object.__setattr__(changed, name, value)
    return changed


def difference(one: ImageRequest, other: ImageRequest) -> str:
    """Return the fields in which two requests differ. Of the model, which may be a default, also return the values."""
    names = [field.name for field in fields(ImageRequest) if field.name != "callback_url"]
    one, other = without_transient_parts(one), without_transient_parts(other)
    differing = [name for name in names if getattr(one, name) != getattr(other, name)]
    model = f"model is {one.model}, not {other.model}"
    return ", ".join(model if name == "model" else f"{name} differs" for name in differing)
