"""What a request may name as reference images, and by what each is recognised."""

from pathlib import Path

import pytest

from nanobanana_async.batch.rows import canonical_request
from nanobanana_async.models import (
    GeneratedImage,
    GenerationResult,
    ImageRequest,
    difference,
    same_request,
    with_images,
)
from nanobanana_async.references import (
    LocalImage,
    describe_reference,
    digest_of,
    image_identity,
    local_digests,
    stored_form,
    text_to_reference,
)
from tests.support.rows import each_row

DIGEST = "0123456789abcdef" * 4
URI = "data:image/png;base64,AAAA"


@each_row(
    ("given", "kept"),
    [
        (Path("cat.png"), LocalImage(Path("cat.png"))),
        (b"\x89PNG", LocalImage(b"\x89PNG")),
        (bytearray(b"\x89PNG"), LocalImage(b"\x89PNG")),
        (memoryview(b"\x89PNG"), LocalImage(b"\x89PNG")),
        (URI, LocalImage(URI)),
        (URI.upper(), LocalImage(URI.upper())),
        (LocalImage(URI), LocalImage(URI)),
        ("https://a.example/1.png", "https://a.example/1.png"),
        (stored_form(DIGEST), f"sha256:{DIGEST}"),
        (GeneratedImage(url="https://a.example/1.png"), "https://a.example/1.png"),
        (GeneratedImage(url=URI), LocalImage(URI)),
    ],
)
def test_image_of_each_kind_becomes_a_reference(given: object, kept: object) -> None:
    assert ImageRequest("x", images=[given]).images == (kept,)  # type: ignore[list-item]


def test_result_stands_for_all_its_images() -> None:
    images = (GeneratedImage(url="https://a.example/1.png"), GeneratedImage(url=URI, index=1))
    result = GenerationResult(key="k", task_id="t", images=images)
    request = ImageRequest("x", images=[result, "https://a.example/2.png"])
    assert request.images == ("https://a.example/1.png", LocalImage(URI), "https://a.example/2.png")


def test_constructor_reads_no_file(tmp_path: Path) -> None:
    assert ImageRequest("x", images=[tmp_path / "missing.png"]).images[0] == LocalImage(tmp_path / "missing.png")


def test_no_repr_or_dict_shows_the_content() -> None:
    request = ImageRequest("x", images=[b"secret content", "data:image/png;base64,c2VjcmV0", Path("cat.png")])
    shown = f"{request!r} {request.to_dict()}"
    assert "secret" not in shown
    assert "c2Vj" not in shown
    assert "an image of 14 bytes" in shown
    assert "a data URI of 30 characters" in shown
    assert "cat.png" in shown
    assert LocalImage(Path("a/cat.png")).name == "cat.png"
    assert LocalImage(b"").name == ""


HEX = ("0f" * 32, "a1" * 32)
BASE64 = ("a%2F" + "b" * 25 + "%3D", "c%2B" + "D" * 25 + "%3D")
SECONDS = ("1790000000", "1790000999")
SIGNED = [
    "X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=K%2F{second}&X-Amz-Date={second}&X-Amz-Expires=9"
    "&X-Amz-SignedHeaders=host&X-Amz-Signature={hex}&X-Amz-Security-Token={base64}",
    "AWSAccessKeyId=key&Expires={second}&Signature={base64}",
    "X-Goog-Algorithm=GOOG4-RSA-SHA256&X-Goog-Credential=me%40x&X-Goog-Date={second}&X-Goog-Expires=9"
    "&X-Goog-SignedHeaders=host&X-Goog-Signature={hex}",
    "GoogleAccessId=me%40project.example&Expires={second}&Signature={base64}",
    "sv=2024-08-04&st=2026-01-01&se=2026-01-02T{second}&sr=b&sp=r&skoid={hex}&sig={base64}",
    "sv=2024-08-04&si=readers&sr=b&sig={base64}",
    "Expires={second}&Signature={base64}&Key-Pair-Id=K2JCJMDEHXQW5F",
    "Policy={base64}&Signature={base64}&Key-Pair-Id=K2JCJMDEHXQW5F",
    "OSSAccessKeyId=LTAI5t&Expires={second}&Signature={base64}&security-token={hex}",
    "x-oss-signature-version=OSS4-HMAC-SHA256&x-oss-credential=LT%2F{second}&x-oss-date={second}&x-oss-expires=9"
    "&x-oss-signature={hex}",
    "q-sign-algorithm=sha1&q-ak=AKID&q-sign-time=1;{second}&q-key-time=1;{second}&q-header-list=&q-url-param-list="
    "&q-signature={hex}&x-cos-security-token={base64}",
]


def signed(query: str, which: int) -> str:
    return query.format(hex=HEX[which], base64=BASE64[which], second=SECONDS[which])


@each_row("query", SIGNED)
@each_row("pattern", ["{}", "version=2&{}", "{}&version=2", "{}#top"])
def test_url_that_is_signed_again_is_the_same_image(query: str, pattern: str) -> None:
    one, other = (f"https://b.example/cat.png?{pattern.format(signed(query, which))}" for which in (0, 1))
    requests = [ImageRequest("x", images=[url]) for url in (one, other)]
    assert one != other
    assert same_request(*requests)
    assert canonical_request(requests[0]) == canonical_request(requests[1])
    assert difference(*requests) == ""
    assert "version=2" not in pattern or "version=2" in str(image_identity(one))


@each_row(
    "query",
    [
        "expires=1",
        "Signature=1&Expires=2",
        "sig=1",
        "sv=1&se=2",
        "X-Amz-Date=1&X-Amz-Expires=2",
        "Key-Pair-Id=1",
        "policy=1",
        "v=1",
        "",
        "X-Amz-Signature=1",
        "sv=2&sig=aa&si=17",
        "sv=2024-08-04&sig=" + BASE64[0],
        f"Key-Pair-Id=K2JCJMDEHXQW5F&Signature={BASE64[0]}&policy=a",
        f"signature={BASE64[0]}&GoogleAccessId=a%40b&expires=cat",
        f"AWSAccessKeyId=key&Expires=soon&Signature={BASE64[0]}",
        f"q-signature={HEX[0]}",
    ],
)
def test_parameters_without_their_scheme_are_part_of_the_image(query: str) -> None:
    url = f"https://b.example/cat.png?{query}"
    assert image_identity(url) == url


def test_other_path_or_parameter_is_another_image() -> None:
    query = signed(SIGNED[0], 0)
    urls = [f"https://b.example/{rest}" for rest in (f"a.png?{query}", f"b.png?{query}", f"a.png?{query}&v=2")]
    assert len({image_identity(url) for url in urls}) == 3
    assert difference(*(ImageRequest("x", images=[url]) for url in urls[:2])) == "images differs"


def test_images_as_they_are_sent_are_not_read_again() -> None:
    request = ImageRequest("x", images=[stored_form(DIGEST)], num_images=2)
    sent = with_images(request, [URI])
    assert (sent.images, sent.num_images) == ((URI,), 2)
    assert request.images == (stored_form(DIGEST),)


@pytest.mark.parametrize("image", ["sha256:abc", f"sha256:{DIGEST.upper()}", f"sha256:{DIGEST}0", 5, LocalImage(b"")])
def test_other_values_have_no_digest(image: object) -> None:
    assert digest_of(image) is None


def test_each_digest_is_listed_once() -> None:
    images = [stored_form(DIGEST), "https://a.example/1.png", stored_form("f" * 64), stored_form(DIGEST)]
    assert local_digests(images) == [DIGEST, "f" * 64]


def test_people_see_the_start_of_a_digest() -> None:
    assert describe_reference(stored_form(DIGEST)) == "sha256:0123456789ab..."
    assert describe_reference(LocalImage(Path("cat.png"))) == "cat.png"


@each_row(
    ("text", "meant"),
    [
        ("https://a.example/1.png", "https://a.example/1.png"),
        ("HTTP://a.example/1.png", "HTTP://a.example/1.png"),
        (f"sha256:{DIGEST}", f"sha256:{DIGEST}"),
        (URI, LocalImage(URI)),
        ("my cat.png", LocalImage(Path("/base/my cat.png"))),
        ("/other/cat.png", LocalImage(Path("/other/cat.png"))),
        ("sha256", LocalImage(Path("/base/sha256"))),
    ],
)
def test_text_of_a_file_or_command_names_a_url_or_a_path(text: str, meant: object) -> None:
    assert text_to_reference(text, Path("/base")) == meant


@pytest.mark.parametrize("text", ["~nosuchuser/x.png", "~nosuchuser"])
def test_home_of_an_unknown_user_is_a_missing_file(text: str, tmp_path: Path) -> None:
    assert text_to_reference(text, tmp_path) == LocalImage(tmp_path / text)
