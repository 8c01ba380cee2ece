"""Images, their links and data URIs; and the texts that people write into settings and requests."""

import gzip
import json
import struct
import zlib
from contextlib import suppress

from hypothesis import strategies as st
from yarl import URL

from nanobanana_async import ImageRequest
from nanobanana_async.errors import ConfigurationError, GatewayError, InvalidRequest, NanoBananaError
from nanobanana_async.escaping import escape_exactly, json_line, one_line
from nanobanana_async.gateways.api_keys import fault_of_api_key
from nanobanana_async.gateways.base import validate_base_url
from nanobanana_async.http.tls_and_proxies import Proxies, to_proxy_secret
from nanobanana_async.images.addresses import advice_for, is_allowed_host, networks_of_environment, to_networks
from nanobanana_async.images.downloader import _loggable_url
from nanobanana_async.images.fetch import _Unpacker, parse_link
from nanobanana_async.images.formats import FORMATS, scan_image, verify_image
from nanobanana_async.images.headers import download_headers
from nanobanana_async.images.inline import FetchError, decode_inline
from nanobanana_async.images.local_facts import to_facts
from nanobanana_async.keys import validate_key, validate_task_id
from nanobanana_async.models import request_from_mapping, same_request
from nanobanana_async.otel.attributes import without_none
from nanobanana_async.references import LocalImage, image_identity, text_to_reference, to_reference
from nanobanana_async.values import as_key_text, validate_row_key
from tests.fuzz.gateway_targets import APIMALL, DEFAPI
from tests.fuzz.scratch import scratch
from tests.fuzz.target import LEAVES, VALUES, Target, json_of, json_shapes, objects_with, texts_of
from tests.support.images import chunk, make_image

_IMAGES = tuple(make_image(kind, (4, 3)) for kind in ("png", "jpeg", "webp", "gif", "avif"))
_IMAGES += (make_image("webp", (4, 3), lossless=True), _IMAGES[4].replace(b"ftypavif", b"ftypheic", 1))


def _scan(data: bytes) -> None:
    """The scan, by the signature and by each format as if it were its own."""
    for image_format in FORMATS:
        with suppress(FetchError):
            width, height = image_format.scan(data)
            assert 0 <= width <= 1 << 32
            assert 0 <= height <= 1 << 32
    assert scan_image(data) in FORMATS


def _verify(data: bytes) -> None:
    assert verify_image(data).content_type.startswith("image/")


def _png(data: bytes) -> None:
    """A PNG whose checksums are right, so that what is in its chunks counts."""
    chunks = [(part[:4].ljust(4, b"a"), part[4:]) for part in data.split(b"\n\n")]
    content = b"\x89PNG\r\n\x1a\n" + b"".join(chunk(kind, inner) for kind, inner in chunks)
    with suppress(FetchError):
        scan_image(content)
    verify_image(content)


def _facts(data: bytes) -> None:
    facts = to_facts(LocalImage(data), data[:16], "0" * 64, len(data))
    assert facts.content_type.startswith("image/")


def _inline(data: bytes) -> None:
    size = sum(map(len, decode_inline(texts_of(data), 3000)))
    assert size <= 3000


def _unpacked(data: bytes) -> None:
    """What a host sends, in pieces: no more than ten times as much comes out."""
    unpacker, size = _Unpacker(), 0
    for start in range(0, len(data), 50):
        size += sum(map(len, unpacker.unpack(data[start : start + 50])))
    unpacker.check_complete()
    assert size <= 10 * len(data) + (1 << 20)


def _link(data: bytes) -> None:
    text = texts_of(data)
    assert len(_loggable_url(text)) < 300
    image_identity(text)
    url = parse_link(text)
    for networks in ((), to_networks(["10.0.0.0/8"])):
        for checked in (True, False):
            is_allowed_host(url.raw_host or "", loopback=False, networks=networks, checked=checked)
    advice_for(url.raw_host or "")
    with suppress(ValueError):
        parse_link(str(url.join(URL(text, encoded=True))))


def _addresses(data: bytes) -> None:
    text = texts_of(data)
    is_allowed_host(text, loopback=False)
    advice_for(text)
    with suppress(ConfigurationError):
        networks_of_environment({"NANOBANANA_ALLOW_NETWORKS": text})
    to_networks(json_of(data))


def _connection_settings(data: bytes) -> None:
    text, value = texts_of(data), json_of(data)
    checked = validate_base_url(text)
    assert isinstance(checked, ConfigurationError) or (checked.isascii() and URL(checked).host)
    if text.strip():
        assert isinstance(fault_of_api_key(text.strip()) or "", str)
    proxy = to_proxy_secret(value)
    if proxy is not None and not isinstance(proxy, ConfigurationError):
        Proxies(proxy).proxy_for(URL("https://a.example"))
    download_headers({"x-own": text, text: "x"} if not isinstance(value, dict) else value)


def _request(data: bytes) -> None:
    """A request as a row of a table or of JSON has it: it is the same when it is read again."""
    value = json_of(data)
    request = request_from_mapping(value if isinstance(value, dict) else {"prompt": value})
    again = ImageRequest(**json.loads(json.dumps(request.to_dict())))
    assert same_request(again, request) or any(isinstance(image, LocalImage) for image in request.images)
    for gateway in (APIMALL, DEFAPI):
        with suppress(InvalidRequest):
            if not any(isinstance(image, LocalImage) for image in request.images):
                assert json.loads(gateway.encode(request))
    APIMALL.price_class(request)


def _keys(data: bytes) -> None:
    value = json_of(data)
    as_key_text(value)
    with suppress(InvalidRequest):
        validate_task_id(value)
    with suppress(InvalidRequest):
        assert validate_row_key(value).isprintable()
    key = validate_key(value)
    assert key.isascii()
    assert 0 < len(key) <= 255


def _reference(data: bytes) -> None:
    text = texts_of(data)
    with suppress(InvalidRequest):
        text_to_reference(text, scratch())
    to_reference(text)
    image_identity(text)


def _escaped(data: bytes) -> None:
    text = texts_of(data)
    assert one_line(text).isprintable()
    assert "\n" not in escape_exactly(text)
    assert "\x1b" not in escape_exactly(text)
    line = json_line(json.dumps({"a": text}, ensure_ascii=False))
    assert json.loads(line) == {"a": text}
    assert not set(line) & set("\n\r\x1b\u2028\x85\x7f")


def _error(data: bytes) -> None:
    """Errors with any text can be shown, pickled by value, and made again."""
    text = texts_of(data)
    error = GatewayError(text, status=400, code=text)
    assert str(error)
    assert isinstance(error.for_job("k", safe_to_repeat=True), GatewayError)
    assert without_none({"a": text})


_FIELDS = [
    "prompt",
    "images",
    "num_images",
    "aspect_ratio",
    "resolution",
    "output_format",
    "model",
    "task_type",
    "callback_url",
    "extra",
    "key",
    "metadata",
]
_REQUEST = (
    b'{"prompt": "a fox", "images": ["https://a.example/1.png?X-Amz-Signature=0"], "num_images": "2",'
    b' "aspect_ratio": "16:09:00", "extra": {"seed": 7}}'
)
_HEAD = struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0)
_PNG = b"\n\n".join([b"IHDR" + _HEAD, b"IDAT" + zlib.compress(b"\0abc"), b"IEND"])
_URLS = (
    b"https://a.example:8080/b%20c?d=e#f",
    b"http://[::ffff:10.0.0.1]/",
    b"http://0x7f.1/",
    b"https://u:p@a.example/",
    b"s3://bucket/a.png",
    b"file:///a%00b",
    b"//a",
)
_URL_WORDS = (b"http://", b"https://", b"[", b"]", b"@", b"%", b"%00", b":99999", b"?X-Amz-Signature=", b"..", b"\\")

TARGETS = (
    Target(
        name="image-scan",
        run=_scan,
        errors=(FetchError,),
        seeds=_IMAGES,
        words=(b"IHDR", b"IEND", b"meta", b"iprp", b"ipco", b"ispe", b"mdat", b"VP8X", b"\xff\xda", b"\xff\xd9"),
    ),
    Target(
        name="image-verify",
        run=_verify,
        errors=(FetchError,),
        seeds=_IMAGES,
        words=(b"IHDR", b"IEND", b"ispe"),
        cost=10,
    ),
    Target(
        name="png-chunks",
        run=_png,
        errors=(FetchError,),
        seeds=(_PNG,),
        words=(b"\n\nIHDR", b"\n\nIDAT", b"\n\nzTXt", b"\n\niCCP", b"\n\nacTL", b"\n\nfdAT"),
        cost=5,
    ),
    Target(name="local-image", run=_facts, errors=(InvalidRequest,), seeds=_IMAGES),
    Target(
        name="inline-image",
        run=_inline,
        errors=(FetchError,),
        seeds=(b"data:image/png;base64,AAAA", b"data:,a%20b", b"data:;base64,AA=="),
        words=(b"%", b";base64,", b"=", b"\xed\xa0\x80"),
    ),
    Target(
        name="packed-image",
        run=_unpacked,
        errors=(FetchError,),
        seeds=(gzip.compress(b"a" * 100), gzip.compress(bytes(5000)), b"\x1f\x8b\x08"),
        cost=2,
    ),
    Target(name="link", run=_link, errors=(FetchError,), seeds=_URLS, words=_URL_WORDS),
    Target(
        name="addresses",
        run=_addresses,
        errors=(ConfigurationError,),
        seeds=(b"10.0.0.5/32", b'["10.0.0.5/32", "::1"]', b"127.1", b"64:ff9b::1"),
        shapes=json_shapes(st.lists(LEAVES, max_size=3)),
    ),
    Target(
        name="connection-settings",
        run=_connection_settings,
        errors=(ConfigurationError,),
        seeds=(*_URLS, b'"http://u:p@proxy.example:3128"', b'{"x-own": "a"}'),
        words=_URL_WORDS,
        shapes=json_shapes(VALUES),
    ),
    Target(
        name="request",
        run=_request,
        errors=(InvalidRequest, ConfigurationError),
        seeds=(_REQUEST,),
        words=tuple(f'"{name}"'.encode() for name in _FIELDS),
        shapes=json_shapes(
            objects_with(_FIELDS)
            | st.fixed_dictionaries({"prompt": st.text()}, optional=dict.fromkeys(_FIELDS[1:], VALUES))
        ),
        cost=2,
    ),
    Target(
        name="keys",
        run=_keys,
        errors=(InvalidRequest,),
        seeds=(b'"order-1"', b"12", b"1e3"),
        shapes=json_shapes(VALUES),
    ),
    Target(
        name="reference",
        run=_reference,
        errors=(InvalidRequest,),
        seeds=(*_URLS, b"sha256:" + b"0" * 64, b"~nobody/a.png"),
        words=_URL_WORDS,
    ),
    Target(
        name="escaping", run=_escaped, seeds=(b"a\x1b[2J\xe2\x80\xa8", "\ud800é\u202e".encode("utf-8", "surrogatepass"))
    ),
    Target(name="errors", run=_error, errors=(NanoBananaError,), seeds=(b"a", b"\xff")),
)
