"""What the commands that listen on a port have in common."""

import errno
import os
import socket

from nanobanana_async.errors import ConfigurationError

# What binding raises, beside an unknown host.
_CANNOT_BIND_ERRNOS = (errno.EADDRINUSE, errno.EADDRNOTAVAIL, errno.EACCES, errno.EAFNOSUPPORT)


def check_port(port: int) -> None:
    """Raise `ConfigurationError` unless the port is a number of one, or 0 for a free one."""
    if not 0 <= port <= 65535:
        raise ConfigurationError(f"--port must be a number from 0 to 65535, not {port}")


def is_listen_error(error: OSError) -> bool:
    """Return whether an error says that a host and port can't be listened on."""
    return isinstance(error, socket.gaierror) or error.errno in _CANNOT_BIND_ERRNOS


def listen_error(host: str, port: int, error: Exception) -> ConfigurationError:
    """Return why a program can't listen there, and what to choose."""
    number = getattr(error, "errno", None) or 0
    if number == errno.EADDRINUSE:
        why = "another program listens there: end it, or choose another --port (0 selects a free one)"
    else:
        cause = os.strerror(number) if number in _CANNOT_BIND_ERRNOS else "it is no address of this machine"
        why = f"{cause}: choose with --host and --port"
    return ConfigurationError(f"can't listen on {host} port {port}: {why}")
