"""Keys, API keys, headers and task ids of any characters: `python -m tests.faults headers`.

Each is an error before anything is sent, or goes out exactly as it was given, and changes nothing else in the request.
"""

import logging
import random
import re
from collections import Counter
from typing import Any

from yarl import URL

from nanobanana_async import ApiMall, DefApi, NanoBananaError, Session
from nanobanana_async.errors import ConfigurationError, InvalidRequest
from nanobanana_async.images.headers import download_headers
from nanobanana_async.testing import FakeTransport, run_virtual
from tests.support.fakes import FakeGateway, apimall, wire_key

_VISIBLE = re.compile(r"[\x21-\x7e]{1,255}")
_PIECES = (
    *(
        "\r\n",
        "\n",
        "\r",
        "\0",
        "\t",
        " ",
        "\x7f",
        "\x1f",
        "\x85",
        "\u2028",
        "\ufeff",
        "\u00e9",
        "\u2460",
        "\ud800",
        "\U0001f98a",
    ),
    *(
        "X-Evil: 1",
        "\r\nHost: evil",
        "Bearer ",
        ": ",
        ";",
        ",",
        '"',
        "'",
        "\\",
        "%0d%0a",
        "%00",
        "../",
        "/",
        "//",
        "?",
        "#",
        "&",
        "=",
        "@",
    ),
    *("order", "-", "17", "a", "Z", "~", "!", "{}", "<", ">"),
)


def any_text(rng: random.Random) -> str:
    """Return a text that is often almost valid."""
    match rng.randrange(6):
        case 0:
            return "".join(rng.choice(_PIECES) for _ in range(rng.randrange(6)))
        case 1:
            return "".join(chr(rng.randrange(0x21, 0x7F)) for _ in range(rng.choice((1, 20, 254, 255, 256, 600))))
        case 2:
            text = "".join(chr(rng.randrange(0x21, 0x7F)) for _ in range(rng.randrange(1, 60)))
            at = rng.randrange(len(text) + 1)
            return text[:at] + rng.choice(_PIECES) + text[at:]
        case 3:
            return "".join(chr(rng.randrange(0x110000)) for _ in range(rng.randrange(1, 8)))
        case 4:
            return "".join(chr(rng.randrange(0x100)) for _ in range(rng.randrange(1, 30)))
        case _:
            return f"order-{rng.randrange(1000)}{rng.choice(_PIECES)}"


class Headers:
    """Tries texts in each place, and counts how they ended."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)
        self.ends: Counter[str] = Counter()
        self.breaches: list[str] = []

    def _check(self, holds: bool, what: str, text: str) -> None:
        if not holds:
            self.breaches.append(f"{what}: {text!r}")

    async def try_key(self, session: Session, transport: FakeTransport) -> None:
        """An idempotency key: 1 to 255 visible ASCII characters, or an error without a request."""
        text, before = any_text(self._rng), len(transport.creates)
        valid = _VISIBLE.fullmatch(text) is not None
        try:
            await session.generate("a fox", idempotency_key=text)
        except InvalidRequest:
            self._check(not valid, "a valid key was refused", text)
            self._check(len(transport.requests) == before, "a refused key was sent", text)
            self.ends["key: refused"] += 1
            return
        except NanoBananaError as error:
            self._check(False, f"{type(error).__name__}: {error}", text)
            return
        finally:
            sent = transport.creates[before:]
            transport.requests.clear()
        self._check(valid, "an invalid key was accepted", text)
        # A text that came before is the same job, and is not bought again.
        self._check(all(wire_key(request) == text for request in sent), "the key was changed", text)
        self.ends["key: sent"] += 1

    def try_api_key(self) -> None:
        """An API key: what is accepted can stand in a header; what is refused is not shown."""
        text = any_text(self._rng)
        try:
            gateway = self._rng.choice((ApiMall, DefApi))(api_key=text)
        except ConfigurationError as error:
            shown = len(text.strip()) >= 8 and text.strip() in str(error)
            self._check(not shown, "a refused API key is shown", text)
            self.ends["API key: refused"] += 1
            return
        self._check(re.fullmatch(r"[\x21-\x7e]+", gateway.api_key.reveal()) is not None, "an API key", text)
        self.ends["API key: accepted"] += 1

    def try_header(self) -> None:
        """A header of downloads: its name is a token, and its value has no control characters."""
        name, value = any_text(self._rng), any_text(self._rng)
        try:
            headers = download_headers({name: value})
        except ConfigurationError:
            self.ends["header: refused"] += 1
            return
        fine = re.fullmatch(r"[A-Za-z0-9-]+", name) and re.fullmatch(r"[\x20-\x7e]*", value)
        self._check(bool(fine) and headers[name] == value, "a header", f"{name}: {value}")
        self.ends["header: accepted"] += 1

    def try_task_id(self) -> None:
        """A task id in the URL of a poll: it is one segment of the path, or one parameter."""
        text, api_key = any_text(self._rng), "k" * 20
        for gateway in (ApiMall(api_key=api_key), DefApi(api_key=api_key)):
            plain = URL(gateway.build_query("t1").url)
            try:
                request = gateway.build_query(text)
            except NanoBananaError:
                self.ends["task id: refused"] += 1
                continue
            url = URL(request.url, encoded=True)
            same = (url.origin(), len(url.raw_parts), len(url.query), url.fragment) == (
                plain.origin(),
                len(plain.raw_parts),
                len(plain.query),
                "",
            )
            self._check(same and re.fullmatch(r"[\x21-\x7e]+", request.url) is not None, "a task id", text)
            self._check(text in (url.name, *url.query.values()), "a task id was changed", text)
            self._check(text not in (".", ".."), "a task id", text)
            self.ends["task id: sent"] += 1


async def _play(seed: int, count: int) -> Headers:
    headers = Headers(seed)
    transport = FakeTransport(FakeGateway(job_s=0.0).answer, latency_s=0.0)
    async with apimall(transport) as session:
        for _ in range(count // 4):
            await headers.try_key(session, transport)
            headers.try_api_key()
            headers.try_header()
            headers.try_task_id()
    return headers


def play(seed: int, count: int) -> Headers:
    """Try so many texts, a quarter of them in each place."""
    return run_virtual(_play(seed, count))


def main(count: int | None) -> dict[str, Any]:
    """Try many texts."""
    logging.getLogger("nanobanana_async").setLevel(logging.CRITICAL)
    headers = play(0, count or 100_000)
    return {"texts": count or 100_000, **dict(sorted(headers.ends.items())), "breaches": headers.breaches}
