"""Choose the stem that all images of one job share, as in `a-fox-1.png` and `a-fox-2.png`."""

import os
import re
from collections.abc import Collection, Sequence
from itertools import count
from pathlib import Path

from nanobanana_async.images.formats import FORMATS
from nanobanana_async.images.manifest import NAME, Manifest
from nanobanana_async.images.names import safe_name
from nanobanana_async.images.saved import PurchasedImage, listed_name


def find_stem(folder: Path, images: Sequence[PurchasedImage]) -> str | None:
    """Return the stem under which an image of the job was saved before; None if none was."""
    for image in images:
        name = listed_name(folder, image)
        if name is not None and (found := re.fullmatch(rf"(.+)-{image.index + 1}\.[^.]+", name)):
            return found[1]
    return None


def free_stem(folder: Path, name: str, images: Sequence[PurchasedImage], reserved: Collection[str]) -> str:
    """Return the first stem of which no image of another job has a name: the name itself, or the name with a number."""
    stems = (name if number == 1 else f"{name}-{number}" for number in count(1))
    free = (stem for stem in stems if stem.lower() not in reserved)
    if not os.path.lexists(folder / NAME):
        return next(stem for stem in free if not any(os.path.lexists(folder / file) for file in _files(stem, images)))
    with Manifest(folder) as manifest:
        for stem in free:
            files = _files(stem, images)
            if not any(os.path.lexists(folder / file) or manifest.listed(file) for file in files):
                return stem
    raise AssertionError("there are endless stems")


def _files(stem: str, images: Sequence[PurchasedImage]) -> list[str]:
    names = [safe_name(f"{stem}-{image.index + 1}") for image in images]
    return [f"{name}{each.extension}" for name in names for each in FORMATS]
