"""Local reference images: reading, digests and limits."""

import os
from pathlib import Path

import pytest

from nanobanana_async import ApiMall, ConfigurationError, DefApi, InvalidRequest
from nanobanana_async.gateways.contract import Gateway
from nanobanana_async.images import local
from nanobanana_async.images.local import (
    SizeLimit,
    digest_local_images,
    local_image_facts,
    size_limit,
    unchanged_content,
)
from nanobanana_async.models import ImageInput, ImageRequest
from nanobanana_async.references import LocalImage
from tests.support.images import ENDINGS, FORMATS, make_image
from tests.support.references import sha256, written

MALL, DEFAPI = ApiMall(api_key="sk-1"), DefApi(api_key="dk-1")


@pytest.mark.parametrize("kind", FORMATS)
def test_format_is_that_of_the_content(kind: str, tmp_path: Path) -> None:
    content = make_image(kind)
    facts = local_image_facts(LocalImage(written(tmp_path / "a.txt", content)), SizeLimit(1 << 20))
    assert (facts.digest, facts.size) == (sha256(content), len(content))
    assert (facts.content_type, facts.extension) == (f"image/{kind}", ENDINGS[kind])


def test_file_is_read_once_until_it_changes(tmp_path: Path) -> None:
    file = written(tmp_path / "cat.png", make_image())
    local._facts_of_file.cache_clear()
    for _ in range(3):
        digest_local_images(ImageRequest("x", images=[file]), MALL)
    assert local._facts_of_file.cache_info().misses == 1
    file.write_bytes(make_image(seed=2))
    os.utime(file, ns=(1, 1))
    request, sources = digest_local_images(ImageRequest("x", images=[file]), MALL)
    assert local._facts_of_file.cache_info().misses == 2
    digest = sha256(make_image(seed=2))
    assert request.images == (f"sha256:{digest}",)
    assert sources == {digest: LocalImage(file)}


def test_request_without_local_images_is_returned_as_it_is() -> None:
    request = ImageRequest("x", images=["https://a.example/1.png"])
    assert digest_local_images(request, MALL) == (request, {})


def test_equal_content_is_one_source_and_keeps_its_places(tmp_path: Path) -> None:
    content = make_image()
    images: list[ImageInput] = [content, "https://a.example/1.png", written(tmp_path / "a.png", content)]
    request, sources = digest_local_images(ImageRequest("x", images=images), DEFAPI)
    stored = f"sha256:{sha256(content)}"
    assert request.images == (stored, "https://a.example/1.png", stored)
    assert list(sources) == [sha256(content)]


class NoImages:
    """A gateway that takes URLs only."""

    name = "plain"


def test_limit_is_that_of_the_way_to_the_gateway() -> None:
    assert size_limit(MALL, published=False).max_bytes == MALL.max_upload_bytes == 100 << 20
    assert size_limit(DEFAPI, published=False).max_bytes == DEFAPI.max_inline_bytes == 32 << 20
    assert size_limit(DEFAPI, published=True).max_bytes == local.MAX_BYTES
    plain: Gateway = NoImages()  # type: ignore[assignment]
    assert size_limit(plain, published=True).max_bytes == local.MAX_BYTES
    with pytest.raises(ConfigurationError, match=r"plain takes no local images.*references="):
        size_limit(plain, published=False)


def test_image_over_the_limit_is_refused_by_its_size_alone(tmp_path: Path) -> None:
    file = tmp_path / "large.png"
    with file.open("wb") as sparse:
        sparse.truncate(101 << 20)
    with pytest.raises(InvalidRequest, match=r"large.png has 101 MiB, more than the limit of 100 MiB for uploads to"):
        digest_local_images(ImageRequest("x", images=[file]), MALL)
    with pytest.raises(InvalidRequest, match=r"has 101 MiB, more than the limit of 32 MiB .*publish them"):
        digest_local_images(ImageRequest("x", images=[file]), DEFAPI)
    with pytest.raises(InvalidRequest, match="more than the limit of 10 bytes"):
        local_image_facts(LocalImage(make_image()), SizeLimit(10))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes in folders")
def test_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(InvalidRequest, match="is no regular file"):
        digest_local_images(ImageRequest("x", images=[tmp_path / "pipe.png"]), MALL)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes in folders")
def test_pipe_in_place_of_a_checked_file_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checked = local._status(written(tmp_path / "cat.png", make_image()))
    (tmp_path / "cat.png").unlink()
    os.mkfifo(tmp_path / "cat.png")
    monkeypatch.setattr(local, "_status", lambda path: checked)
    with pytest.raises(InvalidRequest, match="is no regular file"):
        local_image_facts(LocalImage(tmp_path / "cat.png"), SizeLimit(1 << 20))
    with pytest.raises(InvalidRequest, match="is no regular file"):
        unchanged_content(LocalImage(tmp_path / "cat.png"), sha256(make_image()))


@pytest.mark.parametrize("difference", [-1, 1])
def test_file_of_another_size_than_it_states_is_refused(tmp_path: Path, difference: int) -> None:
    file = written(tmp_path / "cat.png", make_image())
    with pytest.raises(InvalidRequest, match=r"cat.png changes while it is read"):
        local._facts_of_file(file, (), len(make_image()) + difference)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="there is no /proc")
def test_file_of_the_kernel_is_no_image() -> None:
    with pytest.raises(InvalidRequest, match=r"no image|empty"):
        local_image_facts(LocalImage(Path("/proc/self/status")), SizeLimit(1 << 20))


def test_no_more_than_the_start_of_another_file_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (tmp_path / "video.png").open("wb") as sparse:
        sparse.truncate(50 << 20)
    reads: list[int] = []
    read = os.read

    def counted(descriptor: int, size: int) -> bytes:
        reads.append(size)
        return read(descriptor, size)

    monkeypatch.setattr(os, "read", counted)
    with pytest.raises(InvalidRequest, match=r"is no image of a known format \(PNG, JPEG, WEBP, GIF, AVIF, HEIC\)"):
        local_image_facts(LocalImage(tmp_path / "video.png"), SizeLimit(100 << 20))
    assert len(reads) == 1


def test_path_with_a_nul_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="that is no path"):
        digest_local_images(ImageRequest("x", images=[Path("cat\0.png")]), MALL)


def test_file_that_can_not_be_read_is_refused(tmp_path: Path) -> None:
    (loop := tmp_path / "cat.png").symlink_to(tmp_path / "cat.png")
    with pytest.raises(InvalidRequest, match="can't be read: Too many levels"):
        digest_local_images(ImageRequest("x", images=[loop]), MALL)


def test_content_must_be_that_of_the_digest(tmp_path: Path) -> None:
    file = written(tmp_path / "cat.png", make_image())
    assert unchanged_content(LocalImage(file), sha256(make_image())) == make_image()
    with pytest.raises(InvalidRequest, match="was changed after the job was made"):
        unchanged_content(LocalImage(file), "0" * 64)
    file.unlink()
    with pytest.raises(InvalidRequest, match="does not exist"):
        unchanged_content(LocalImage(file), "0" * 64)


@pytest.mark.parametrize(
    ("name", "shown"),
    [("a\nERROR.png", r"a\nERROR.png"), ("a\x1b[31m.png", r"a\x1b[31m.png"), ("a\udcff.png", r"a\udcff.png")],
)
@pytest.mark.parametrize("content", [None, b"", b"text"])
def test_name_of_a_file_is_escaped_in_errors(tmp_path: Path, name: str, shown: str, content: bytes | None) -> None:
    file = tmp_path / name
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(InvalidRequest) as caught:
        local_image_facts(LocalImage(file), SizeLimit(1 << 20))
    assert shown in str(caught.value)
    assert str(caught.value).isprintable()
