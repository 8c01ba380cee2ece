"""Raw HTTP answers of a hostile or broken gateway, each a way to cost the client time or memory."""

import base64
import functools
import gzip
import json
import random
import sys
import zlib
from collections.abc import Callable
from importlib import import_module
from typing import Any

from attrs import frozen

MIB = 1024 * 1024
BULK = 60 * MIB


@frozen(kw_only=True)
class Case:
    """One answer, and the request for it: a "query", a "create", the download of an "image", or a "callback"."""

    ask: str = "query"
    gateway: str = "apimall"
    answer: Callable[[], bytes]
    legitimate: bool = False
    """The answer is valid: it must be read, and may use as much memory as it needs."""
    link: str = ""
    """The URL of an image, if it is not on this server."""


def http(body: bytes, *headers: str, status: str = "200 OK") -> bytes:
    lines = [f"HTTP/1.1 {status}", *headers, f"Content-Length: {len(body)}", "", ""]
    return "\r\n".join(lines).encode() + body


def _said(**facts: Any) -> bytes:
    return json.dumps({"success": True, "data": {"task_id": "t1", "status": "completed", **facts}}).encode()


def _refusal(message: str) -> bytes:
    return http(json.dumps({"success": False, "error": {"message": message}}).encode())


def _filled(piece: bytes, size: int, head: bytes = b'{"success":true,"data":[', tail: bytes = b"0]}") -> bytes:
    return http(head + piece * (size // len(piece)) + tail)


def _url(**facts: Any) -> Callable[[], bytes]:
    return lambda: http(_said(primary_url="https://cdn.example/1.png", **facts))


def _raw(text: str) -> Callable[[], bytes]:
    return lambda: http(_said(primary_url="https://cdn.example/1.png", credits_used="@").replace(b'"@"', text.encode()))


@functools.cache
def _noise_image() -> bytes:
    """Return an image of noise that is 60 MiB long in base64."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")

    width, height = 4000, 3900
    noise = random.Random(1).randbytes(3 * width)
    rows = zlib.compress(b"".join(b"\0" + noise[row:] + noise[:row] for row in range(height)), 0)
    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x08\x02\x00\x00\x00"
    data = b"".join(chunk(b"IDAT", rows[start : start + MIB]) for start in range(0, len(rows), MIB))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + data + chunk(b"IEND", b"")


def _inline() -> str:
    return "data:image/png;base64," + base64.b64encode(_noise_image()).decode()


def _defapi(result: Any, *, slashes: bool = False) -> bytes:
    body = json.dumps({"code": 0, "data": {"task_id": "t1", "status": "success", "result": result}})
    return http((body.replace("/", "\\/") if slashes else body).encode())


def _tiny_chunks() -> bytes:
    return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * (MIB // 8) + b"0\r\n\r\n"


def _packed(content: bytes) -> bytes:
    return http(gzip.compress(content), "Content-Encoding: gzip")


def _bomb(coding: str, content: bytes) -> bytes:
    """Return an answer in a coding that was not asked for; aiohttp decodes br and zstd where their packages are."""
    match coding:
        case "br":
            packed = import_module("brotli").compress(content, quality=5)
        case "zstd":
            packed = import_module("compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd").compress(
                content
            )
        case _:
            packed = zlib.compress(content)
    return http(packed, f"Content-Encoding: {coding}")


CASES: dict[str, Case] = {
    "insufficient_ x 8000": Case(answer=lambda: _refusal("insufficient_" * 8000)),
    "insufficient_ x 80000, to a create": Case(ask="create", answer=lambda: _refusal("insufficient_" * 80_000)),
    "a! x 500000, to a create": Case(ask="create", answer=lambda: _refusal("a!" * 500_000)),
    "60 MiB of [],": Case(answer=lambda: _filled(b"[],", BULK)),
    "60 MiB of {}, to defapi": Case(gateway="defapi", answer=lambda: _filled(b"{},", BULK)),
    "1 MiB of [], to a create": Case(ask="create", answer=lambda: _filled(b"[],", MIB - 100)),
    "60 KiB of [],": Case(answer=lambda: _filled(b"[],", 60 * 1024)),
    "900 KiB of numbers": Case(answer=lambda: _filled(b"1.5,", 900 * 1024)),
    "900 KiB of one key": Case(answer=lambda: _filled(b'"a":1,', 900 * 1024, b"{", b'"b":1}')),
    "60 MiB of [": Case(answer=lambda: http(b"[" * BULK)),
    '60 MiB of {"a":': Case(answer=lambda: http(b'{"a":' * (BULK // 5))),
    "900 KiB of depth 30000": Case(answer=lambda: http(b'{"aaaaaaaaaaaaaaaaaaaaaaaa":' * 30_000)),
    "60 MiB in one sentence": Case(answer=lambda: _refusal("x" * BULK)),
    "60 MiB in an image that never ends": Case(answer=lambda: http(b'{"data":"data:image/png;base64,' + b"A" * BULK)),
    "60 MiB behind an image": Case(
        answer=lambda: _filled(b"x", BULK, b'{"a":"data:image/png;base64,AAAA","b":"', b'"}')
    ),
    "60 MiB of marks": Case(answer=lambda: _filled(b'";base64,",', BULK)),
    "an image of 60 MiB where a word belongs": Case(answer=lambda: _refusal("data:image/png;base64," + "A" * BULK)),
    "60 MiB of bytes that are no text": Case(answer=lambda: http(b'{"data":"' + b"\xff" * BULK + b'"}')),
    "900 KiB of emoji": Case(answer=lambda: _refusal("\N{GRINNING FACE}" * 75_000)),
    "JSON in a string, in escapes": Case(
        gateway="defapi",
        answer=lambda: http(
            b'{"code":0,"data":{"task_id":"t1","status":"success","result":"\\u005b'
            + b"\\u005b\\u005d\\u002c" * 50_000
            + b'1\\u005d"}}'
        ),
    ),
    "credits 1E-999999999999999999": Case(answer=_url(credits_used="1E-999999999999999999")),
    "credits 0E-999999999999999999": Case(answer=_url(credits_used="0E-999999999999999999")),
    "credits 1E+14 in a bare number": Case(answer=_raw("1E+14")),
    "credits 1E-999999999 in a bare number": Case(answer=_raw("1E-999999999")),
    "credits of a million digits": Case(answer=_raw("9" * 1_000_000)),
    "credits of a million decimals": Case(answer=_raw("0." + "9" * 1_000_000)),
    "a time of 900 KiB": Case(answer=_url(created_at="2026-01-01T00:00:00" + "0" * 900_000)),
    "a status of 900 KiB": Case(answer=lambda: http(_said(status="\N{LATIN SMALL LETTER DOTLESS I}" * 150_000))),
    "a task id of 900 KiB": Case(answer=lambda: http(_said(status="processing", task_id="t" * 900_000))),
    "40000 images": Case(answer=lambda: http(_said(output={"resultUrls": ["https://cdn.example/1"] * 40_000}))),
    "an image's URL of 900 KiB": Case(answer=lambda: http(_said(primary_url="https://cdn.example/" + "a" * 900_000))),
    "a raw answer of 900 KiB": Case(answer=_url(**{f"f{number}": "x" * 900 for number in range(1000)})),
    "a packed bomb of [],": Case(answer=lambda: _packed(b"[]," * (BULK // 3))),
    "a packed bomb of zeros, to a create": Case(ask="create", answer=lambda: _packed(bytes(BULK))),
    "a deflate bomb of [],": Case(answer=lambda: _bomb("deflate", b"[]," * (BULK // 3))),
    "a brotli bomb of [],": Case(answer=lambda: _bomb("br", b"[]," * (BULK // 3))),
    "a zstd bomb of [],": Case(answer=lambda: _bomb("zstd", b"[]," * (BULK // 3))),
    "a brotli bomb of zeros, to a create": Case(ask="create", answer=lambda: _bomb("br", bytes(BULK))),
    "a zstd bomb of zeros, to a create": Case(ask="create", answer=lambda: _bomb("zstd", bytes(BULK))),
    "an image that is a gzip bomb": Case(ask="image", answer=lambda: _packed(bytes(BULK))),
    "an image that is a deflate bomb": Case(ask="image", answer=lambda: _bomb("deflate", bytes(BULK))),
    "an image that is a brotli bomb": Case(ask="image", answer=lambda: _bomb("br", bytes(BULK))),
    "an image that is a zstd bomb": Case(ask="image", answer=lambda: _bomb("zstd", bytes(BULK))),
    "an image of 100 times its stated length": Case(
        ask="image", answer=lambda: b"HTTP/1.1 200 OK\r\nContent-Length: 600000\r\n\r\n" + bytes(BULK)
    ),
    "chunks of one byte": Case(answer=_tiny_chunks),
    "a hundred thousand headers": Case(answer=lambda: http(b"{}", *(f"X-{n}: {n}" for n in range(100_000)))),
    "a header of 60 MiB": Case(answer=lambda: http(b"{}", "X-A: " + "a" * BULK)),
    "continue x 60000": Case(answer=lambda: b"HTTP/1.1 100 Continue\r\n\r\n" * 60_000 + http(b"{}")),
    "Retry-After 10**400": Case(answer=lambda: http(b"{}", "Retry-After: 1" + "0" * 400, status="503 No")),
    "Retry-After of 8000 digits": Case(answer=lambda: http(b"{}", "Retry-After: " + "9" * 8000, status="429 No")),
    "Retry-After in a date beyond all": Case(
        answer=lambda: http(b"{}", "Retry-After: Mon, 99 Dec 99999999999999 99:99:99 GMT", status="503 No")
    ),
    "an absurd Location": Case(answer=lambda: http(b"", "Location: https://xn--zz--/", status="302 Found")),
    "60 MiB of HTML with a 429": Case(answer=lambda: http(b"<p>a:b</p>" * (BULK // 10), status="429 No")),
    "a callback of 60 KiB of [],": Case(
        ask="callback", gateway="defapi", answer=lambda: b'{"data":[' + b"[]," * 20_000 + b"0]}"
    ),
    "an image at xn--zz--": Case(ask="image", link="https://xn--zz--/1.png", answer=lambda: b""),
    "an image at xn--a in a redirect": Case(
        ask="image", answer=lambda: http(b"", "Location: http://xn--a/1.png", status="302 Found")
    ),
    "an image in a redirect to a..b": Case(
        ask="image", answer=lambda: http(b"", "Location: http://a..b/1.png", status="302 Found")
    ),
    "an image in a redirect to port 99999": Case(
        ask="image", answer=lambda: http(b"", "Location: http://a.example:99999/", status="302 Found")
    ),
    "an image in a redirect to a zone": Case(
        ask="image", answer=lambda: http(b"", "Location: http://[fe80::1%25lo]/", status="302 Found")
    ),
    "an image in half a character": Case(ask="image", link="data:image/png;base64,AAAA\ud800", answer=lambda: b""),
    "an image that is a label too long": Case(ask="image", link=f"https://{'a' * 70}.example/1", answer=lambda: b""),
    "60 MiB inline": Case(gateway="defapi", legitimate=True, answer=lambda: _defapi([{"image": _inline()}])),
    "60 MiB inline, with escaped slashes": Case(
        gateway="defapi", legitimate=True, answer=lambda: _defapi([{"image": _inline()}], slashes=True)
    ),
    "60 MiB inline, as JSON in a string": Case(
        gateway="defapi", legitimate=True, answer=lambda: _defapi(json.dumps([{"image": _inline()}]))
    ),
}
