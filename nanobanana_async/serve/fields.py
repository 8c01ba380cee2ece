"""Turn the fields of OpenAI's images API into an `ImageRequest`. A field that can't be mapped is refused by name."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

from attrs import frozen

from nanobanana_async.models import ImageRequest, Resolution
from nanobanana_async.serve.answers import ApiError

SIZES: Mapping[str, tuple[str, Resolution]] = {
    "1024x1024": ("1:1", "1K"),
    "1536x1024": ("3:2", "1K"),
    "1024x1536": ("2:3", "1K"),
    "1792x1024": ("16:9", "1K"),
    "1024x1792": ("9:16", "1K"),
    "2048x2048": ("1:1", "2K"),
    "2048x1152": ("16:9", "2K"),
    "1152x2048": ("9:16", "2K"),
    "4096x4096": ("1:1", "4K"),
    "3840x2160": ("16:9", "4K"),
    "2160x3840": ("9:16", "4K"),
}
"""The aspect ratio and the resolution of a size in pixels. The gateway chooses the pixels."""
QUALITIES: Mapping[str, Resolution | None] = {
    "auto": None,
    "low": "1K",
    "medium": "1K",
    "standard": "1K",
    "high": "2K",
    "hd": "2K",
    "1k": "1K",
    "2k": "2K",
    "4k": "4K",
}
"""The resolution of a quality, where the size states none."""
WITHOUT_EFFECT: Mapping[str, tuple[str, ...]] = {
    "background": ("auto", "opaque"),
    "moderation": ("auto",),
    "output_compression": ("100",),
    "partial_images": ("0",),
    "stream": ("False", "false"),
}
"""Values of other fields that change nothing; any other value is refused."""
IGNORED = ("user", "safety_identifier")
MAPPED = ("prompt", "model", "n", "size", "quality", "output_format", "response_format", "extra")

ResponseFormat = Literal["b64_json", "url"]


@frozen
class Wanted:
    """What a request asks for."""

    request: ImageRequest
    response_format: ResponseFormat


def wanted_of(fields: Mapping[str, Any], images: Sequence[bytes], models: Mapping[str, str]) -> Wanted:
    """Return what the fields of a request ask for; null counts as left out.

    Raises `ApiError` with the name of a field that has no meaning here, and `InvalidRequest` for a wrong value.
    """
    given = {name: value for name, value in fields.items() if value is not None and name not in IGNORED}
    for name in [name for name in given if name not in MAPPED]:
        allowed = WITHOUT_EFFECT.get(name)
        if allowed is None or str(given[name]) not in allowed:
            only = f"only {' or '.join(allowed)} is possible" if allowed else "leave it out"
            raise field_error(name, f"{name[:40]} is not supported: {only}")
    if "prompt" not in given:
        raise field_error("prompt", "prompt is missing", code="missing_required_parameter")
    ratio, resolution = _size(given.get("size"), given.get("quality"))
    response_format = given.get("response_format", "b64_json")
    if response_format not in ("b64_json", "url"):
        raise field_error("response_format", "response_format must be b64_json or url")
    request = ImageRequest(
        given["prompt"],
        images=images,
        num_images=given.get("n", 1),
        aspect_ratio=ratio,
        resolution=resolution,
        output_format=given.get("output_format"),
        model=_model(given.get("model"), models),
        extra=given.get("extra", {}),
    )
    return Wanted(request, cast(ResponseFormat, response_format))


def field_error(param: str, message: str, code: str = "unsupported_value") -> ApiError:
    """Return the error for a field."""
    return ApiError(400, message, code=code, param=param)


def _size(size: object, quality: object) -> tuple[str | None, Resolution | None]:
    """Return aspect ratio and resolution: a size in pixels states both."""
    if (chosen := "auto" if quality is None else str(quality).lower()) not in QUALITIES:
        raise field_error("quality", f"quality must be one of {', '.join(QUALITIES)}, not {str(quality)[:40]!r}")
    resolution = QUALITIES[chosen]
    match size:
        case None | "auto":
            return None, resolution
        case str() if size in SIZES:
            ratio, stated = SIZES[size]
            if chosen.endswith("k") and resolution != stated:
                raise field_error(
                    "quality", f"size {size} has resolution {stated}: leave quality out, or choose {stated}"
                )
            return ratio, stated
        case str() if ":" in size:
            return size, resolution
        case _:
            known = ", ".join(SIZES)
            raise field_error("size", f"size must be auto, an aspect ratio such as 16:9, or one of {known}")


def _model(name: object, models: Mapping[str, str]) -> str | None:
    if name is None:
        return None
    if not isinstance(name, str) or name not in models:
        known = ", ".join(models)
        message = f"there is no model {str(name)[:60]!r} here: choose one of {known}"
        raise ApiError(404, message, code="model_not_found", param="model")
    return models[name]
