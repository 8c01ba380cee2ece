"""An owner's lock: created locked, ended with its process, and never mistaken for a dead owner's."""

import errno
from pathlib import Path

import pytest

from nanobanana_async import file_locks
from nanobanana_async.ledger import owners as owners_module
from nanobanana_async.ledger.owners import Owners


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "jobs.sqlite"


def test_forked_child_closes_its_copies_of_the_locks(path: Path) -> None:
    owners = Owners(path)
    released, held = owners.acquire(), owners.acquire()
    released.release()
    owners_module._close_all_in_child()  # a forked child does this first
    assert not owners.is_alive(held.id)
    held.release()


def test_owner_with_an_unreadable_file_counts_as_alive(path: Path) -> None:
    owners = Owners(path)
    owner = owners.acquire()
    unreadable = path.with_name("jobs.sqlite-owners") / "unreadable.lock"
    unreadable.symlink_to(unreadable)
    assert owners.is_alive("unreadable")
    unreadable.unlink()
    owner.release()
    assert not owners.is_alive(owner.id)


def test_acquire_retries_when_a_sweep_removes_its_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tries: list[int] = []
    try_lock = file_locks.try_lock

    def sweep_first(descriptor: int) -> bool:
        tries.append(descriptor)
        if len(tries) == 1:  # the file exists and is not locked yet, so a sweep removes it
            monkeypatch.setattr(owners_module, "try_lock", try_lock)
            Owners(path).remove_dead()
            monkeypatch.setattr(owners_module, "try_lock", sweep_first)
        return try_lock(descriptor)

    monkeypatch.setattr(owners_module, "try_lock", sweep_first)
    owner = Owners(path).acquire()
    monkeypatch.undo()
    assert len(tries) == 2
    assert Owners(path).is_alive(owner.id)
    owner.release()
    owner.release()


def test_file_system_without_locks_has_no_owners(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    living = Owners(path).acquire()

    def no_locks(*_: object, **__: object) -> bool:
        raise OSError(errno.ENOLCK, "No locks available")

    with monkeypatch.context() as patched:
        patched.setattr(owners_module, "try_lock", no_locks)
        with pytest.raises(OSError, match="No locks"):
            Owners(path).acquire()
        assert Owners(path).is_alive(living.id)
    assert [file.stem for file in path.with_name("jobs.sqlite-owners").iterdir()] == [living.id]
    living.release()


def test_acquire_retries_when_the_folder_vanishes(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mkdir, made = Path.mkdir, list[Path]()

    def made_and_removed(folder: Path, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
        mkdir(folder, mode, parents, exist_ok)
        made.append(folder)
        if len(made) == 1:
            folder.rmdir()

    monkeypatch.setattr(Path, "mkdir", made_and_removed)
    owner = Owners(path).acquire()
    assert len(made) == 2
    owner.release()


def test_released_owner_is_dead_though_its_file_remains(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    owners = Owners(path)
    owner = owners.acquire()

    def stuck(*_: object, **__: object) -> None:
        raise PermissionError("stuck")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", stuck)
        owner.release()
    assert not owners.is_alive(owner.id)
    owners.remove_dead()
    assert not path.with_name("jobs.sqlite-owners").exists()
