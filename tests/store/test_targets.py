"""What may be passed as a target, and what is refused before anything is bought."""

import builtins
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("obstore", reason="obstore is not installed: pip install 'nanobanana-async[store]'")

from obstore.store import AzureStore, GCSStore, HTTPStore, LocalStore, MemoryStore, S3Store, from_url

from nanobanana_async import ConfigurationError
from nanobanana_async.emulator import Emulator, Fixed
from nanobanana_async.images.object_store import ObjectUrl, StoreUrl
from nanobanana_async.images.target import as_target
from nanobanana_async.testing import FakeTransport
from tests.store.server import ACCESS_KEY, SECRET_KEY, variables
from tests.support.fakes import FakeGateway, apimall, virtually
from tests.support.loopback import quick


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in variables("http://127.0.0.1:9").items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "studio")


def s3_store(**more: Any) -> S3Store:
    return S3Store("bucket", access_key_id=ACCESS_KEY, secret_access_key=SECRET_KEY, region="us-east-1", **more)


def of(value: object) -> StoreUrl:
    target = as_target("save_to", value)
    assert isinstance(target, StoreUrl)
    return target


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("s3://bucket", "s3://bucket/fox.png"),
        ("s3://bucket/spring/images/", "s3://bucket/spring/images/fox.png"),
        ("S3://bucket/spring", "s3://bucket/spring/fox.png"),
        ("gs://bucket/Frühling 1", "gs://bucket/Frühling 1/fox.png"),
        ("az://container/x", "az://container/x/fox.png"),
        ("memory://", "memory:///fox.png"),
        ("memory://shelf/x", "memory://shelf/x/fox.png"),
    ],
)
def test_url_names_a_prefix_of_a_store(url: str, shown: str) -> None:
    target = of(url)
    assert target.url_of("fox.png") == shown
    assert target.name_of(shown) == "fox.png"
    assert target.name_of("s3://other/fox.png") is None
    assert of(url) == target  # one store, which keeps its connections


def test_objects_of_obstore_name_their_place(tmp_path: Path) -> None:
    assert of(s3_store()).url == "s3://bucket"
    assert of(s3_store(prefix="a/b")).url == "s3://bucket/a/b"
    assert of((s3_store(prefix="a"), "b/")).url == "s3://bucket/a/b"
    assert of((from_url("s3://bucket/a"), "b")).url == "s3://bucket/a/b"
    assert of(GCSStore("bucket", prefix="x")).url == "gs://bucket/x"
    assert of((AzureStore("container", account_name="studio"), "x")).url == "az://container/x"
    assert of((LocalStore(tmp_path), "x y")).url == f"{tmp_path.as_uri()}/x y"
    assert of((MemoryStore(), "x")).url == "memory:///x"
    target = of(MemoryStore())
    assert as_target("save_to", target) is target


def test_new_credentials_in_the_environment_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    before = of("s3://bucket/x")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "another")
    assert of("s3://bucket/x") != before


def test_file_url_is_a_folder(tmp_path: Path) -> None:
    assert as_target("save_to", (tmp_path / "a b").as_uri()) == tmp_path / "a b"


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("https://bucket.s3.amazonaws.com/x", "or the URL of an object store (s3://, gs://, az://), not a URL"),
        ("r2://bucket/x", "not a URL that begins with r2://"),
        ("file://images", "has its whole path, as in file:///srv/images"),
        ("FILE://localhost/images", "has its whole path, as in file:///srv/images"),
        ("s3://", "names no bucket"),
        ("gs:///x", "names no bucket"),
        ("s3://bucket/a//b", "its parts must not be empty"),
        ("s3://bucket/../x", "its parts must not be empty"),
        ("s3://bucket/a\nb", "every character must be printable"),
        (f"s3://bucket/{'x' * 601}", "longer than 600 bytes"),
        (f"s3://{ACCESS_KEY}:{SECRET_KEY}@bucket/x", "nothing more: credentials come from the environment"),
        (f"az://container/x?sig={SECRET_KEY}", "nothing more: credentials come from the environment"),
        ((MemoryStore(), 5), "the prefix in a store must be text"),
        ((MemoryStore(), "../x"), "its parts must not be empty"),
        (("s3://bucket", "x"), "must be a folder, the URL of an object store, or an S3Store"),
        (HTTPStore.from_url("https://example.com"), "not an object of type HTTPStore"),
        (S3Store, "must be the path of a folder"),
        (Path("s3://bucket/x"), "on this machine, not the URL"),
        (5, "must be the path of a folder"),
    ],
)
@virtually
async def test_wrong_target_is_refused_before_anything_is_bought(value: Any, why: str) -> None:
    gateway = FakeGateway()
    async with apimall(FakeTransport(gateway.answer)) as session:
        with pytest.raises(ConfigurationError) as caught:
            session.generate_many(["a fox"], save_to=value)
        assert gateway.sold == 0
        assert why in str(caught.value)
        assert ACCESS_KEY not in str(caught.value)
        assert SECRET_KEY not in str(caught.value)
        result = await session.generate("a fox")
        with pytest.raises(ConfigurationError, match=r"^target"):
            await session.save(result, value)


def test_store_that_can_not_be_opened_says_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME")
    with pytest.raises(ConfigurationError, match=r"az://container can't be opened: .*AZURE_STORAGE_ACCOUNT_NAME"):
        of("az://container/x")


@pytest.mark.parametrize("value", ["", "maybe"])
def test_setting_that_can_not_be_read_is_named_without_its_value(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ALLOW_HTTP", value)
    with pytest.raises(ConfigurationError) as caught:
        of("s3://bucket/x")
    assert str(caught.value).endswith("the store s3://bucket can't be opened: correct or unset AWS_ALLOW_HTTP")


@virtually
async def test_without_the_extra_the_error_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    real_import = builtins.__import__

    def without_obstore(name: str, *rest: Any, **more: Any) -> Any:
        if name.partition(".")[0] == "obstore":
            raise ImportError(name)
        return real_import(name, *rest, **more)

    gateway = FakeGateway()
    async with apimall(FakeTransport(gateway.answer)) as session:
        for module in [name for name in sys.modules if name.partition(".")[0] == "obstore"]:
            monkeypatch.delitem(sys.modules, module)
        monkeypatch.setattr(builtins, "__import__", without_obstore)
        with pytest.raises(ConfigurationError, match=r"pip install 'nanobanana-async\[store\]'"):
            session.generate_many(["a fox"], save_to="s3://bucket/x")
        assert gateway.sold == 0


def test_url_of_an_object_is_text_and_can_be_pickled() -> None:
    url = pickle.loads(pickle.dumps(ObjectUrl("s3://bucket/fox.png", "ab", 5)))
    assert (url, url.sha256, url.size) == ("s3://bucket/fox.png", "ab", 5)


def test_target_shows_no_credentials() -> None:
    target = of((s3_store(), "x"))
    assert (repr(target), str(target)) == ("StoreUrl(url='s3://bucket/x')", "s3://bucket/x")


FORKING = """
import asyncio, os, sys
from nanobanana_async.images.target import as_target

target = as_target("save_to", "memory://x")
asyncio.run(target.put("a", b"1", "text/plain"))
if child := os.fork():
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
try:
    asyncio.run(target.put("b", b"1", "text/plain"))
except Exception as error:
    print(error, flush=True)
    os._exit(0)
os._exit(1)
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_forked_child_gets_an_error_instead_of_waiting_for_ever() -> None:
    done = subprocess.run([sys.executable, "-c", FORKING], capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stderr) == (0, "")
    assert "this process was forked from one that had used an object store" in done.stdout


async def test_sessions_save_to_a_store_in_memory_and_find_it_again() -> None:
    async with Emulator(duration=Fixed(0.01), image_scale=0.05) as emulator, quick(emulator) as session:
        result = await session.generate("a fox", num_images=2, idempotency_key="order:17")
        saved = await session.save(result, "memory://shelf/spring", sidecar=True)
        assert saved == ["memory://shelf/spring/order_17-1.png", "memory://shelf/spring/order_17-2.png"]
        assert await session.save(result, "memory://shelf/spring", name="other") == saved
        store = MemoryStore()
        outcomes = [
            outcome async for outcome in session.generate_many(["a fox", "an owl"], save_to=(store, "x"), ordered=True)
        ]
    assert [outcome.saved for outcome in outcomes] == [
        ("memory:///x/0001-a-fox.png",),
        ("memory:///x/0002-an-owl.png",),
    ]
    assert outcomes[0].to_dict()["saved"] == ["memory:///x/0001-a-fox.png"]
    assert "saved as memory:///x/0001-a-fox.png" in outcomes[0]._repr_html_()
