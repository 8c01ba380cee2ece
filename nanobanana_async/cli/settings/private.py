"""Files that other users of the machine must not write or read: the settings file, and the file of an API key."""

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

from nanobanana_async.errors import ConfigurationError

_MAX_BYTES = 10_000
_NO_WAIT = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)


def open_regular(path: Path) -> BinaryIO:
    """Open a file to read it; raise OSError if it is none that ends by itself, such as a pipe that nothing writes."""
    descriptor = os.open(path, os.O_RDONLY | _NO_WAIT)
    kind = os.fstat(descriptor)
    if not stat.S_ISREG(kind.st_mode) and not os.path.samestat(kind, os.stat(os.devnull)):
        os.close(descriptor)
        number = errno.EISDIR if stat.S_ISDIR(kind.st_mode) else errno.EINVAL
        raise OSError(number, "it is no regular file", str(path))
    return open(descriptor, "rb")


def check_not_writable(path: Path) -> None:
    """Raise `ConfigurationError` if every user may write the file: one of them could send the API key elsewhere."""
    if os.name == "posix" and stat.S_ISREG(mode := path.stat().st_mode) and mode & stat.S_IWOTH:
        raise ConfigurationError(f"every user of this machine can write {path}: run `chmod o-w` on it")


def read_key_file(source: str, name: str) -> str:
    """Return the API key in a file; raise `ConfigurationError` if others can read it. No message shows its contents."""
    path = Path(name).expanduser()
    if not path.is_absolute():
        raise ConfigurationError(f"{source}: api_key_file must be the whole path of a file, or begin with ~")
    try:
        with open_regular(path) as file:
            # Checked first: no frame of this error holds the key.
            if os.name == "posix" and os.fstat(file.fileno()).st_mode & (stat.S_IRWXG | stat.S_IRWXO):
                raise ConfigurationError(
                    f"{source}: other users can read the API key in {path}: run `chmod 600` on it, and replace the key"
                    " if others use this machine"
                )
            content = file.read(_MAX_BYTES + 1)
    except OSError as error:
        why = "it is a folder" if path.is_dir() else (error.strerror or type(error).__name__)
        raise ConfigurationError(f"{source}: the API key in {path} can't be read: {why}") from None
    if len(content) > _MAX_BYTES:
        raise ConfigurationError(f"{source}: {path} is too large for an API key")
    key = content.decode("utf-8-sig", errors="replace").strip()
    if not key:
        raise ConfigurationError(f"{source}: {path} is empty: write the API key into it")
    return key
