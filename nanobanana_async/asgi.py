"""What the ASGI applications of this library have in common."""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from nanobanana_async.errors import ConfigurationError

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


def path_of(public_url: str) -> str:
    """Validate the public URL and return its path, without a trailing slash."""
    try:
        parts = urlsplit(public_url)
        fits = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        if fits and public_url.isprintable() and not set(public_url) & set(" ?#{}"):
            return parts.path.rstrip("/")
    except ValueError:  # invalid port or IPv6 literal
        pass
    raise ConfigurationError("public_url must be an http or https URL without query, such as https://app.example")


async def lifespan(receive: Receive, send: Send) -> None:
    """Answer the start and the shutdown of the application."""
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
