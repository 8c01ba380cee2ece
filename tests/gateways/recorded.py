"""Recorded bodies of both gateways, and answers made of them."""

from pathlib import Path

from nanobanana_async.gateways import HttpResponse

BODIES = Path(__file__).parent / "bodies"


def body(name: str) -> bytes:
    """Return a recorded body."""
    return (BODIES / name).read_bytes()


def answer(name: str, status: int = 200, **headers: str) -> HttpResponse:
    """Return an answer with a recorded body; `_` in a header's name stands for `-`."""
    named = {header.replace("_", "-"): value for header, value in headers.items()}
    return HttpResponse(status=status, headers=named, body=body(name))
