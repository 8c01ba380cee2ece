"""Which reference images a model may name: files inside allowed folders, and https links, which the gateway fetches."""

import os
import stat
from collections.abc import Sequence
from pathlib import Path

from nanobanana_async import ConfigurationError, InvalidRequest
from nanobanana_async.escaping import escape_exactly
from nanobanana_async.formatting import byte_count, plural
from nanobanana_async.images.local import MAX_BYTES

_MOST_PATH_CHARACTERS = 120
_FLAGS = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


def to_allowed_folders(folders: Sequence[Path]) -> list[Path]:
    """Return the folders without links in their paths; raise `ConfigurationError` for one that is not there."""
    resolved: list[Path] = []
    for folder in folders:
        path = folder.resolve()
        if not path.is_dir():
            raise ConfigurationError(f"--allow-folder {folder}: there is no such folder")
        resolved.append(path)
    return resolved


def to_reference(text: str, allowed: Sequence[Path]) -> str | bytes:
    """Return a link as it is, or the content of a file inside the allowed folders. Reads the file here.

    Raises `InvalidRequest` for anything else. A file outside is refused whether it exists or not.
    """
    if text.lower().startswith("https://"):
        return text
    given = escape_exactly(text[:_MOST_PATH_CHARACTERS])
    if "://" in text or text.lower().startswith("data:"):
        raise InvalidRequest(f"{given}: images takes paths of files and https links")
    if not Path(text).is_absolute():
        raise InvalidRequest(f"{given}: images takes absolute paths, as list_images shows them, and https links")
    outside = InvalidRequest(
        f"{given} is outside of the {plural(len(allowed), 'allowed folder')}, {', '.join(map(str, allowed))}: ask the"
        " user to copy it there, or to start the server with --allow-folder"
    )
    try:
        path = Path(text).resolve()
        if not any(path.is_relative_to(folder) for folder in allowed):
            raise outside
        if not path.is_file():
            raise InvalidRequest(f"{given}: there is no such file")
        with os.fdopen(os.open(path, _FLAGS), "rb") as file:
            opened = os.fstat(file.fileno())
            # A link may have been put there after the check: what was opened must be what lies inside.
            if path.resolve() != path or not os.path.samestat(opened, path.lstat()):
                raise outside
            if not stat.S_ISREG(opened.st_mode) or opened.st_size > MAX_BYTES:
                raise InvalidRequest(f"{given} is no file of at most {byte_count(MAX_BYTES)}")
            return file.read(MAX_BYTES)
    except InvalidRequest:
        raise
    except (OSError, ValueError, RuntimeError):  # not readable; a null character; a loop of links
        raise InvalidRequest(f"{given} can't be read as a file") from None
