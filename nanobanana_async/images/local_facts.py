"""What is known of the content of a local image."""

from attrs import frozen

from nanobanana_async.errors import InvalidRequest
from nanobanana_async.images.formats import FORMATS, ImageFormat, detect
from nanobanana_async.images.inline import FetchError
from nanobanana_async.references import LocalImage

HEAD = 16
"""How many bytes show the format of an image."""


@frozen
class LocalFacts:
    """What is known of the content of a local image."""

    digest: str
    size: int
    content_type: str
    extension: str


def to_facts(image: LocalImage, head: bytes, digest: str, size: int) -> LocalFacts:
    """Return the facts of a content that begins so; raise `InvalidRequest` if it is no image."""
    image_format = format_of(image, head, size)
    return LocalFacts(digest, size, image_format.content_type, image_format.extension)


def format_of(image: LocalImage, head: bytes, size: int) -> ImageFormat:
    """Return the format of a content that begins so; raise `InvalidRequest` if it is no image."""
    try:
        return detect(head)
    except FetchError:
        kinds = ", ".join(("HEIC" if form.name == "heif" else form.name.upper()) for form in FORMATS)
        why = f"is no image of a known format ({kinds})" if size else "is empty"
        raise InvalidRequest(f"reference image {image} {why}") from None


def changing_image_error(image: LocalImage) -> InvalidRequest:
    """Return the error of an image that is written while it is read."""
    return InvalidRequest(f"reference image {image} changes while it is read: request it again once it is written")
