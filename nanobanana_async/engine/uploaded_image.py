"""Where a local reference image is found that was uploaded or published."""

from collections.abc import Mapping

from attrs import frozen


@frozen
class UploadedImage:
    """The URL of a local image that was uploaded or published."""

    url: str
    usable_until: float
    """When it may no longer be sent, in the event loop's time."""
    is_reused: bool = True
    """It was not made for the job that uses it, but for another or in an earlier session."""


NO_UPLOADS: Mapping[str, UploadedImage] = {}
