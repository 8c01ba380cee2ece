"""Paths that users write: `~` is their home folder everywhere, and a URL is no folder of this machine."""

from pathlib import Path

import pytest

from nanobanana_async import ConfigurationError, Session, SqliteLedger
from nanobanana_async.emulator import Emulator, Fixed

URLS = ["https://example.com/a", "ftp://example.com/x", "sqlite:///jobs.db", "file:j.db?mode=memory"]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


@pytest.mark.slow
async def test_a_tilde_is_the_home_folder(home: Path) -> None:
    async with (
        Emulator(duration=Fixed(0.05), image_scale=0.1) as emulator,
        Session(emulator.apimall(), ledger="~/jobs.sqlite") as session,
    ):
        (saved,) = await session.save(await session.generate("a fox"), "~/one")
        outcomes = [outcome async for outcome in session.generate_many(["an owl"], save_to=Path("~/two"))]
    assert Path(saved).parent == home / "one"
    assert Path(outcomes[0].saved[0]).parent == home / "two"
    assert (home / "jobs.sqlite").is_file()
    assert [path.name for path in home.parent.iterdir()] == ["home"]


@pytest.mark.slow
@pytest.mark.parametrize("url", URLS)
async def test_a_url_is_refused_before_anything_is_bought(url: str, home: Path) -> None:
    async with Emulator(duration=Fixed(0.05)) as emulator, Session(emulator.apimall()) as session:
        result = await session.generate("a fox")
        for path in (url, Path(url)):
            with pytest.raises(ConfigurationError, match=r"save_to must be the path of a folder.*, not (a|the) URL"):
                session.generate_many(["an owl"], save_to=path)
            with pytest.raises(ConfigurationError, match=r"target must be .*, not (a|the) URL"):
                await session.save(result, path)
            with pytest.raises(ConfigurationError, match="the ledger must be the path of a file on this machine"):
                Session(emulator.apimall(), ledger=path)
        assert emulator.stats().creates_accepted == 1
    assert [path.name for path in home.parent.iterdir()] == ["home"]


def test_the_home_folder_of_no_user_is_an_error() -> None:
    with pytest.raises(ConfigurationError, match="home folder is not known"):
        SqliteLedger("~nobody-of-this-name/jobs.sqlite")


def test_a_colon_in_a_name_is_no_url(tmp_path: Path) -> None:
    assert SqliteLedger(tmp_path / "a:b.sqlite").path == tmp_path / "a:b.sqlite"
    assert SqliteLedger("C:/jobs.sqlite").path == Path("C:/jobs.sqlite")
