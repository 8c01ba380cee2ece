"""Which reference images a model may name: files inside allowed folders, and https links, which the gateway fetches."""

from collections.abc import Sequence
from pathlib import Path

from nanobanana_async import ConfigurationError, InvalidRequest
from nanobanana_async.escaping import exact
from nanobanana_async.formatting import plural
from nanobanana_async.models import ImageInput

_SHOWN = 120


def to_allowed_folders(folders: Sequence[Path]) -> list[Path]:
    """Return the folders without links in their paths; raise `ConfigurationError` for one that is not there."""
    resolved: list[Path] = []
    for folder in folders:
        path = folder.resolve()
        if not path.is_dir():
            raise ConfigurationError(f"--allow-folder {folder}: there is no such folder")
        resolved.append(path)
    return resolved


def to_reference(text: str, allowed: Sequence[Path]) -> ImageInput:
    """Return a link as it is, or the path of a file inside the allowed folders, without links in it.

    Raises `InvalidRequest` for anything else. A file outside is refused whether it exists or not.
    """
    if text.lower().startswith("https://"):
        return text
    given = exact(text[:_SHOWN])
    if "://" in text or text.lower().startswith("data:"):
        raise InvalidRequest(f"{given}: images takes paths of files and https links")
    path = Path(text)
    if not path.is_absolute():
        raise InvalidRequest(f"{given}: images takes absolute paths, as list_images shows them, and https links")
    try:
        path = path.resolve()
        if not any(path.is_relative_to(folder) for folder in allowed):
            raise InvalidRequest(
                f"{given} is outside of the {plural(len(allowed), 'allowed folder')}, {', '.join(map(str, allowed))}:"
                " ask the user to copy it there, or to start the server with --allow-folder"
            )
        if not path.is_file():
            raise InvalidRequest(f"{given}: there is no such file")
    except (OSError, ValueError, RuntimeError) as error:  # a loop of links; a null character
        if isinstance(error, InvalidRequest):
            raise
        raise InvalidRequest(f"{given} is no path of a file") from None
    return path
