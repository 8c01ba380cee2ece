"""Which reference images a model may name."""

import os
from pathlib import Path
from typing import Literal

import pytest

from nanobanana_async import ConfigurationError, InvalidRequest
from nanobanana_async.mcp_server.references import to_allowed_folders, to_reference


@pytest.fixture
def allowed(tmp_path: Path) -> Path:
    folder = tmp_path / "allowed"
    (folder / "deep").mkdir(parents=True)
    for name in ("cat.png", "deep/dog.png"):
        (folder / name).write_bytes(name.encode())
    neighbour = tmp_path / "allowed-not"
    neighbour.mkdir()
    (neighbour / "secret.png").write_bytes(b"secret")
    return folder


def test_file_inside_and_https_link_are_allowed(allowed: Path) -> None:
    folders = to_allowed_folders([allowed])
    (allowed / "inner.png").symlink_to(allowed / "deep" / "dog.png")
    assert to_reference(str(allowed / "cat.png"), folders) == b"cat.png"
    assert to_reference(str(allowed / "deep" / ".." / "cat.png"), folders) == b"cat.png"
    assert to_reference(str(allowed / "inner.png"), folders) == b"deep/dog.png"
    assert to_reference("https://example.com/cat.png", folders) == "https://example.com/cat.png"


def test_allowed_folder_may_be_named_by_a_link(allowed: Path, tmp_path: Path) -> None:
    (tmp_path / "alias").symlink_to(allowed)
    folders = to_allowed_folders([tmp_path / "alias"])
    assert to_reference(str(tmp_path / "alias" / "cat.png"), folders) == b"cat.png"
    assert to_reference(str(allowed / "cat.png"), folders) == b"cat.png"


@pytest.mark.parametrize("name", ["../allowed-not/secret.png", "../allowed-not/none.png", "..", "../../../etc/passwd"])
def test_path_outside_is_refused_whether_it_exists_or_not(allowed: Path, name: str) -> None:
    with pytest.raises(InvalidRequest, match="outside of the 1 allowed folder"):
        to_reference(f"{allowed}/{name}", to_allowed_folders([allowed]))


def test_link_out_of_an_allowed_folder_is_refused(allowed: Path) -> None:
    (allowed / "file.png").symlink_to(allowed.parent / "allowed-not" / "secret.png")
    (allowed / "folder").symlink_to(allowed.parent / "allowed-not")
    for name in ("file.png", "folder/secret.png"):
        with pytest.raises(InvalidRequest, match="outside of"):
            to_reference(str(allowed / name), to_allowed_folders([allowed]))


@pytest.mark.parametrize("what", ["file", "folder"])
def test_link_put_there_after_the_check_is_refused(
    allowed: Path, monkeypatch: pytest.MonkeyPatch, what: Literal["file", "folder"]
) -> None:
    secret = allowed.parent / "allowed-not"
    (secret / "dog.png").write_bytes(b"secret")
    really_open = os.open

    def open_late(path: Path, flags: int) -> int:
        if what == "file":
            path.unlink()
            path.symlink_to(secret / "dog.png")
        else:
            path.parent.rename(allowed / "moved")
            path.parent.symlink_to(secret)
        return really_open(path, flags)

    monkeypatch.setattr(os, "open", open_late)
    with pytest.raises(InvalidRequest, match=r"outside of|can't be read"):
        to_reference(str(allowed / "deep" / "dog.png"), to_allowed_folders([allowed]))


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ("{}/none.png", "there is no such file"),
        ("{}/deep", "there is no such file"),
        ("{}/loop", "can't be read|there is no such file"),
        ("{}/\0", "can't be read"),
        ("cat.png", "absolute paths"),
        ("http://example.com/cat.png", "https links"),
        ("s3://bucket/cat.png", "https links"),
        ("file:///etc/passwd", "https links"),
        ("data:image/png;base64,AAAA", "https links"),
        ("", "absolute paths"),
    ],
)
def test_what_is_no_image_file_is_refused(allowed: Path, given: str, why: str) -> None:
    (allowed / "loop").symlink_to(allowed / "loop")
    with pytest.raises(InvalidRequest, match=why):
        to_reference(given.format(allowed), to_allowed_folders([allowed]))


def test_missing_allowed_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"--allow-folder .*none: there is no such folder"):
        to_allowed_folders([tmp_path / "none"])
