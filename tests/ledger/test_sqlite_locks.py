"""An owner's lock: it is born locked, it dies with its process, and nobody takes a living one for dead."""

from pathlib import Path

import pytest

from nanobanana_async.ledger import owners as owners_module
from nanobanana_async.ledger.owners import Owners


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "jobs.sqlite"


def test_a_process_that_forgets_its_owners_holds_no_lock(path: Path) -> None:
    owners = Owners(path)
    resigned, held = owners.acquire(), owners.acquire()
    resigned.release()
    owners_module._forget_all()  # what a forked child does first
    assert not owners.alive(held.id)
    held.release()


def test_an_owner_that_cannot_be_asked_is_taken_to_live(path: Path) -> None:
    owners = Owners(path)
    owner = owners.acquire()
    puzzle = path.with_name("jobs.sqlite-owners") / "puzzle.lock"
    puzzle.symlink_to(puzzle)
    assert owners.alive("puzzle")
    puzzle.unlink()
    owner.release()
    assert not owners.alive(owner.id)


def test_owners_are_born_while_others_sweep(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[bool] = []
    take = owners_module._take

    def outrun(descriptor: int, *, shared: bool) -> bool:
        taken.append(shared)
        if len(taken) == 1:  # its file is there, its lock is not: somebody takes it for dead
            monkeypatch.setattr(owners_module, "_take", take)
            Owners(path).sweep()
            monkeypatch.setattr(owners_module, "_take", outrun)
        return take(descriptor, shared=shared)

    monkeypatch.setattr(owners_module, "_take", outrun)
    owner = Owners(path).acquire()
    assert len(taken) == 2
    assert Owners(path).alive(owner.id)
    owner.release()
    owner.release()


def test_the_folder_may_vanish_while_an_owner_is_born(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mkdir, made = Path.mkdir, list[Path]()

    def made_and_gone(folder: Path, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
        mkdir(folder, mode, parents, exist_ok)
        made.append(folder)
        if len(made) == 1:
            folder.rmdir()

    monkeypatch.setattr(Path, "mkdir", made_and_gone)
    owner = Owners(path).acquire()
    assert len(made) == 2
    owner.release()


def test_an_owner_is_dead_though_its_file_cannot_be_removed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    owners = Owners(path)
    owner = owners.acquire()

    def stuck(*_: object, **__: object) -> None:
        raise PermissionError("stuck")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", stuck)
        owner.release()
    assert not owners.alive(owner.id)
    owners.sweep()
    assert not path.with_name("jobs.sqlite-owners").exists()
