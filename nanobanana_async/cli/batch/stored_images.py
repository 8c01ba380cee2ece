"""Read the reference images of a batch that lie in object stores: each once, before anything is bought."""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from nanobanana_async.errors import ConfigurationError, DownloadError, InvalidRequest, NanoBananaError
from nanobanana_async.gateways.contract import Gateway
from nanobanana_async.images.local import local_image_facts, size_limit
from nanobanana_async.images.local_facts import LocalFacts
from nanobanana_async.references import LocalImage

AT_ONCE = 16


def read_stored_images(
    images: Iterable[tuple[int, LocalImage]], gateway: Gateway, unit: str
) -> dict[LocalImage, LocalFacts | NanoBananaError]:
    """Return the facts of images, which come with the numbers of their rows, or why they can't be used.

    Raises the `DownloadError` of a store that fails, with the number of the row: it would fail for the others, too.
    """
    first: dict[LocalImage, int] = {}
    for number, image in images:
        first.setdefault(image, number)
    if not first:
        return {}
    try:
        limit = size_limit(gateway, published=False)
    except ConfigurationError as error:
        return dict.fromkeys(first, error)

    def read(image: LocalImage) -> LocalFacts | NanoBananaError:
        try:
            return local_image_facts(image, limit)
        except (InvalidRequest, ConfigurationError) as error:
            return error

    with ThreadPoolExecutor(AT_ONCE) as threads:
        reading = {image: threads.submit(read, image) for image in first}
        found: dict[LocalImage, LocalFacts | NanoBananaError] = {}
        for image, facts in reading.items():
            try:
                found[image] = facts.result()
            except DownloadError as error:
                threads.shutdown(cancel_futures=True)
                raise DownloadError(f"{unit} {first[image]}: {error.message}") from None
    return found
