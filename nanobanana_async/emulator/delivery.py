"""Answers put on a real socket, the spoiled ones too."""

import asyncio
import os
import socket
import struct
from http import HTTPStatus

from aiohttp import web

from nanobanana_async.emulator.values import Answer, Manner

_LINGER_ZERO = struct.pack("hh" if os.name == "nt" else "ii", 1, 0)


def whole(answer: Answer, body: bytes) -> web.Response:
    """Return an answer as aiohttp sends it."""
    return web.Response(status=answer.status, headers=answer.headers, body=body)


def reset(transport: asyncio.Transport) -> None:
    """Reset the connection, so that the caller's kernel sees a reset and not an end."""
    sock = transport.get_extra_info("socket")
    if sock is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_ZERO)
    transport.abort()


def spoil(transport: asyncio.Transport, answer: Answer, body: bytes) -> None:
    """Write an answer whose length and body do not fit together, and close the connection."""
    part = int(len(body) * answer.delivery.sent_share)
    cut = answer.delivery.manner is Manner.CUT
    stated = len(body) if cut else part
    transport.write(_head(answer, stated) + (body[:part] if cut else body))
    transport.close()


def _head(answer: Answer, length: int) -> bytes:
    try:
        reason = HTTPStatus(answer.status).phrase
    except ValueError:
        reason = "Unknown"
    headers = {**answer.headers, "Content-Length": str(length)}
    lines = [f"HTTP/1.1 {answer.status} {reason}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")
