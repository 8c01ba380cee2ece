"""Reference images in object stores: known by their content, read before anything is bought, and as rarely as files."""

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("obstore", reason="obstore is not installed: pip install 'nanobanana-async[store]'")

import obstore
from obstore.store import LocalStore, MemoryStore, S3Store

from nanobanana_async import ApiMall, ConfigurationError, DefApi, ImageRequest, InvalidRequest, NanoBananaError
from nanobanana_async.images import local, store_images
from nanobanana_async.images.local import digest_local_images
from nanobanana_async.images.target import as_target, store_of
from nanobanana_async.references import LocalImage, StoreObject, stored_form, text_to_reference
from tests.store.server import ACCESS_KEY, SECRET_KEY, variables
from tests.support.images import ENDINGS, FORMATS, make_image
from tests.support.references import sha256, written

CAT, DOG = make_image(seed=1), make_image(seed=2)
GATEWAY = ApiMall(api_key="key")


class CountingStore(MemoryStore):
    """A store in memory that counts what it is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    def get(self, path: str, *, options: Any = None) -> Any:
        self.asked.append("head" if options["head"] else "get")
        return super().get(path, options=options)


@pytest.fixture(autouse=True)
def _nothing_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_images, "_contents", store_images._Contents())


def images_of(*images: Any, gateway: Any = GATEWAY) -> tuple[str, ...]:
    """Return the images of a request as it is registered."""
    request, _ = digest_local_images(ImageRequest("a fox", images=list(images)), gateway)
    return tuple(map(str, request.images))


def refusal(image: Any, gateway: Any = GATEWAY) -> str:
    with pytest.raises(NanoBananaError) as caught:
        images_of(image, gateway=gateway)
    assert (caught.value.__cause__, ACCESS_KEY in str(caught.value)) == (None, False)
    assert isinstance(caught.value, (InvalidRequest, ConfigurationError))
    return caught.value.message


def memory(name: str, content: bytes) -> str:
    """Put an object into the store that `memory://shelf` names, and return its URL."""
    store = store_of(StoreObject("memory://shelf", name))._store
    obstore.put(store, name, content)  # type: ignore[arg-type]
    return f"memory://shelf/{name}"


def test_same_content_has_one_identity_wherever_it_lies(tmp_path: Path) -> None:
    store, folder = MemoryStore(), LocalStore(tmp_path)
    obstore.put(store, "a/cat.png", CAT)
    file = written(tmp_path / "mein cat.png", CAT)
    link = text_to_reference(file.as_uri(), Path())
    assert link == LocalImage(file)
    places = (CAT, file, link, memory("cat.png", CAT), (store, "a/cat.png"), (folder, "mein cat.png"))
    assert images_of(*places) == (stored_form(sha256(CAT)),) * len(places)


@pytest.mark.parametrize("kind", FORMATS)
def test_object_of_each_format_is_an_image(kind: str) -> None:
    content = make_image(kind)
    assert images_of(memory(f"fox{ENDINGS[kind]}", content)) == (stored_form(sha256(content)),)


@pytest.mark.parametrize("name", ["cat.png", "a/b/Gewächshaus 1.png", "100%.png", "日本.png", "a+b&c.png"])
def test_object_of_any_name_is_found(name: str) -> None:
    image = ImageRequest("a fox", images=[memory(name, CAT)]).images[0]
    assert isinstance(image, LocalImage)
    assert (str(image), image.name) == (f"memory://shelf/{name}", name.rpartition("/")[2])
    assert images_of(image) == (stored_form(sha256(CAT)),)


def test_object_is_read_once_and_again_only_after_a_change() -> None:
    store = CountingStore()
    store.put("cat.png", CAT)
    for _ in range(1000):
        images_of((store, "cat.png"))
    assert (store.asked.count("head"), store.asked.count("get")) == (1000, 1)
    store.put("cat.png", DOG)
    assert images_of((store, "cat.png")) == (stored_form(sha256(DOG)),)
    assert store.asked.count("get") == 2


def test_content_that_was_read_lately_is_read_from_memory() -> None:
    store = CountingStore()
    store.put("cat.png", CAT)
    (image,) = ImageRequest("a fox", images=[(store, "cat.png")]).images
    assert isinstance(image, LocalImage)
    images_of(image)
    assert [local.unchanged_content(image, sha256(CAT)) for _ in range(3)] == [CAT] * 3
    assert store.asked == ["head", "get"]
    store.put("cat.png", DOG)
    with pytest.raises(InvalidRequest, match=r"memory:///cat\.png|was changed after the job was made"):
        local.unchanged_content(image, "0" * 64)


def test_memory_keeps_the_last_contents_and_no_large_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_images, "MAX_KEPT_BYTES", 10)
    monkeypatch.setattr(store_images, "MAX_KEPT_BYTES_EACH", 6)
    contents = store_images._Contents()
    for content in (b"12345", b"67890", b"1234567"):
        contents.add(content.decode(), content)
    assert contents.find("12345") == b"12345"
    contents.add("abc", b"abc")
    assert [contents.find(name) for name in ("12345", "67890", "1234567", "abc")] == [b"12345", None, None, b"abc"]


def test_too_large_object_is_refused_before_it_is_read() -> None:
    store = CountingStore()
    store.put("cat.png", CAT)
    small = DefApi(api_key="key", max_inline_bytes=100)
    assert "more than the limit of 100 bytes" in refusal((store, "cat.png"), small)
    assert store.asked == ["head"]


@pytest.mark.parametrize(
    ("image", "why"),
    [
        ("memory://shelf/missing.png", "reference image memory://shelf/missing.png does not exist"),
        ("memory://shelf/folder", "reference image memory://shelf/folder is a folder: name the image in it"),
        ("memory://shelf/folder/", "is a folder: name the image in it"),
        ("memory://shelf", "is a folder: name the image in it"),
        ("memory://shelf/folder/text.png", "is no image of a known format (PNG,"),
        ("memory://shelf/folder/empty.png", "reference image memory://shelf/folder/empty.png is empty"),
        ("s3:///cat.png", "names no bucket: s3://bucket/path"),
        ("s3://bucket/a//cat.png", "must not be empty"),
        ("s3://bucket/../cat.png", "must not be empty, . or .."),
        ("s3://bucket/a\ncat.png", "every character must be printable"),
        (f"s3://bucket/{'x' * 1025}", "longer than 1024 bytes"),
        (f"s3://{ACCESS_KEY}:{SECRET_KEY}@bucket/cat.png", "and nothing more: credentials come from the environment"),
        (f"az://container/cat.png?sig={SECRET_KEY}", "and nothing more: credentials come from the environment"),
        (f"s3a://{ACCESS_KEY}:{SECRET_KEY}@bucket/cat.png", "not a URL that begins with s3a://"),
        ("az://container/cat.png", "can't be opened: set the account and credentials"),
        ("file:///srv/cat.png", "which only the command takes: for a file pass its Path"),
        (MemoryStore(), "pass the store and a path: (MemoryStore, 'cat.png')"),
        ((MemoryStore(), 5), "pass the store and a path"),
        ((MemoryStore(), "a/"), "'a/' in MemoryStore is a folder"),
    ],
)
def test_bad_object_is_refused_and_shows_no_secret(image: Any, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME", raising=False)
    memory("folder/text.png", b"no image")
    memory("folder/empty.png", b"")
    said = refusal(image)
    assert why in said
    assert SECRET_KEY not in said


def test_person_names_an_object_as_in_the_library() -> None:
    assert text_to_reference("S3://bucket/a b.png", Path("x")) == LocalImage(StoreObject("s3://bucket", "a b.png"))
    assert text_to_reference("r2://bucket/cat.png", Path("x")) == "r2://bucket/cat.png"  # refused by the request
    with pytest.raises(InvalidRequest, match="is a folder"):
        text_to_reference("gs://bucket/images/", Path("x"))


def test_object_of_another_endpoint_is_another_object(monkeypatch: pytest.MonkeyPatch) -> None:
    stores = []
    for url in ("http://127.0.0.1:9", "http://127.0.0.1:10"):
        for name, value in variables(url).items():
            monkeypatch.setenv(name, value)
        stores.append(store_of(StoreObject("s3://bucket", "cat.png")))
    assert stores[0] != stores[1]


def test_no_repr_or_dict_shows_the_store_and_its_credentials() -> None:
    store = S3Store("bucket", access_key_id=ACCESS_KEY, secret_access_key=SECRET_KEY, region="x")
    request = ImageRequest("a fox", images=[(store, "a/cat.png")])
    shown = f"{request!r} {request.to_dict()} {request.images[0]!r}"
    assert "a/cat.png in S3Store" in shown
    assert (ACCESS_KEY in shown, SECRET_KEY in shown) == (False, False)


def test_target_and_image_in_one_bucket_share_a_store() -> None:
    target = as_target("save_to", "memory://shelf/x")
    assert store_of(StoreObject("memory://shelf", "cat.png"))._store is target._store  # type: ignore[union-attr]


def test_callers_that_name_one_object_together_read_it_once() -> None:
    store = CountingStore()
    store.put("cat.png", CAT)
    with ThreadPoolExecutor(8) as threads:
        found = set(threads.map(lambda _: images_of((store, "cat.png")), range(100)))
    assert found == {(stored_form(sha256(CAT)),)}
    assert store.asked.count("get") == 1


def test_object_that_changes_while_it_is_read_is_refused() -> None:
    store = CountingStore()
    store.put("cat.png", CAT)
    named = StoreObject("MemoryStore", "cat.png", store)
    version = store_images.version_of(named)
    store.put("cat.png", DOG)
    with pytest.raises(InvalidRequest, match=r"changes while it is read: request it again once it is written"):
        store_images.facts_of_object(named, version)
    store.delete("cat.png")
    with pytest.raises(InvalidRequest, match=r"cat\.png does not exist"):
        store_images.facts_of_object(named, version)


def test_without_the_extra_the_error_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [name for name in sys.modules if name.partition(".")[0] == "obstore"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "obstore", None)
    said = refusal("s3://bucket/cat.png")
    assert said.startswith(
        "reference image s3://bucket/cat.png is in an object store, which needs the extra `store`: pip"
    )
