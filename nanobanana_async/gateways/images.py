"""Parse the images of a finished task, with a reason for each image that is not usable."""

from collections.abc import Sequence
from urllib.parse import urlsplit

from attrs import frozen

from nanobanana_async.gateways.data_uris import normal_data_uri
from nanobanana_async.gateways.large_answers import LARGE, restore_inline_image
from nanobanana_async.jobs import MissingImageReasons

_MOST = 100
"""The number of images that are parsed. A job has six at most."""
_LONGEST_URL = 16_384


@frozen
class DeliveredImages:
    """The images of a finished task in order, and the places in that order without one, each with the reason."""

    images: tuple[str, ...] = ()
    missing: MissingImageReasons = ()


def parse_images(values: Sequence[object], body: bytes) -> DeliveredImages:
    """Return the values that are images, and the reason for each that is not."""
    images: list[str] = []
    missing: list[tuple[int, str]] = []
    for index, value in enumerate(values[:_MOST]):
        try:
            url = parse_image_url(
                restore_inline_image(value, body) if isinstance(value, str) and len(body) > LARGE else value
            )
            if url is None:
                missing.append((index, "the gateway gave no link"))
            else:
                images.append(url)
        except ValueError as error:
            missing.append((index, str(error)))
    if len(values) > _MOST:
        missing.append((_MOST, f"the gateway lists {len(values)} images, of which only {_MOST} are read"))
    return DeliveredImages(tuple(images), tuple(missing))


def parse_first_image(values: Sequence[object], body: bytes) -> DeliveredImages:
    """Return the first value that is an image. If there is none, return the reason for each value that is not empty."""
    reasons: list[str] = []
    for value in values:
        if value is not None and value != "":
            found = parse_images([value], body)
            if found.images:
                return found
            reasons += [why for _, why in found.missing]
    return DeliveredImages(missing=tuple(enumerate(reasons)))


def parse_image_url(value: object) -> str | None:
    """Return an http(s) URL or a base64 data URI; None for an empty value. Raise ValueError for anything else."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    if not isinstance(value, str):
        raise ValueError(f"an image is a URL or a data URI, not {type(value).__name__}")
    if value[:5].lower() == "data:":
        return normal_data_uri(value)
    url = value.strip()
    if len(url) > _LONGEST_URL:
        raise ValueError(f"an image's URL is longer than {_LONGEST_URL} characters")
    url = url.replace(" ", "%20")
    try:
        parts = urlsplit(url) if url.isprintable() else None
        fits = parts is not None and parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # an invalid IPv6 literal or port
        fits = False
    if not fits:
        raise ValueError("an image is neither an http(s) URL nor a data URI")
    return url
