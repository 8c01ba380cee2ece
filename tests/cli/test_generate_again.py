"""The same `nanobanana generate` again: what was bought is delivered and not bought again."""

from pathlib import Path

import pytest
from attrs import evolve

from nanobanana_async import ApiMall, ConfigurationError, ImageRequest
from nanobanana_async.cli.open_runs import OpenRun, fingerprint
from nanobanana_async.emulator import Emulator, Fixed, Script
from nanobanana_async.emulator.faults import error
from tests.support.command import Said, environment, nanobanana
from tests.support.held import BUYING_S, HeldJobs

QUICK = Fixed(0.1)
slow = pytest.mark.slow


async def generate(emulator: Emulator, folder: Path, *arguments: str) -> Said:
    ledger = {"NANOBANANA_LEDGER": str(folder / "jobs.sqlite")}
    return await nanobanana("generate", *arguments, environ=environment(emulator, **ledger), folder=folder)


def open_runs(folder: Path) -> list[str]:
    return [file.name for file in (folder / "jobs.sqlite-runs").glob("*.json")]


@slow
async def test_a_delivered_command_buys_again_and_says_so(tmp_path: Path) -> None:
    async with Emulator(duration=QUICK) as emulator:
        first, second = [await generate(emulator, tmp_path, "a fox") for _ in range(2)]
        assert emulator.stats().creates_accepted == 2
    assert first.out != second.out
    assert first.err.startswith("1 image, 8 credits, ")
    assert "bought before" in second.err
    assert open_runs(tmp_path) == []


@slow
async def test_a_job_that_outlived_its_command_is_not_bought_again(tmp_path: Path) -> None:
    held = HeldJobs()
    async with Emulator(duration=held, image_scale=0.1) as emulator:
        left = await generate(emulator, tmp_path, "a fox", "--timeout", BUYING_S, "-o", "out")
        assert (left.code, emulator.stats().creates_accepted) == (1, 1)
        held.release(emulator)
        again = await generate(emulator, tmp_path, "a fox", "-o", "other")
        assert emulator.stats().creates_accepted == 1
    assert again.code == 0
    assert (tmp_path / again.out.strip()).parent.name == "other"
    assert "an earlier run of this command did not deliver everything: 1 job of it did not end;" in again.err
    assert "bought now: nothing; bought by an earlier run: 1 image, 8 credits; " in again.err
    assert open_runs(tmp_path) == []


@slow
async def test_a_failed_prompt_does_not_buy_the_others_again(tmp_path: Path) -> None:
    script = Script({"apimall.create": [None, error(451), None]})
    async with Emulator(duration=QUICK, script=script) as emulator:
        first = await generate(emulator, tmp_path, "one", "two", "--max-jobs", "1")
        second = await generate(emulator, tmp_path, "one", "two", "--max-jobs", "1")
        assert [job.prompt for job in emulator.jobs()] == ["one", "two"]
    assert (first.code, second.code) == (1, 0)
    assert first.out.strip() in second.out
    assert len(second.out.splitlines()) == 2
    assert "everything: 1 job of it ended with images, 1 prompt of it not bought yet; what" in second.err
    assert "bought now: 1 image, 8 credits; bought by an earlier run: 1 image, 8 credits; " in second.err


@slow
async def test_a_failed_job_says_that_the_same_command_buys_it_again(tmp_path: Path) -> None:
    async with Emulator(duration=QUICK, failure_probability=1.0) as emulator:
        first = await generate(emulator, tmp_path, "a fox")
        assert (first.code, emulator.stats().creates_accepted) == (1, 1)
        await generate(emulator, tmp_path, "a fox")
        assert emulator.stats().creates_accepted == 2
    assert first.complaint.endswith("; the same command buys it again")


@slow
async def test_buy_again_buys_new_images_of_an_open_run(tmp_path: Path) -> None:
    held = HeldJobs()
    async with Emulator(duration=held) as emulator:
        await generate(emulator, tmp_path, "a fox", "--timeout", BUYING_S)
        held.release(emulator)
        assert (await generate(emulator, tmp_path, "a fox", "--buy-again")).code == 0
        assert emulator.stats().creates_accepted == 2
        assert open_runs(tmp_path) == []


@slow
async def test_equal_prompts_are_separate_purchases_and_continued_as_such(tmp_path: Path) -> None:
    held = HeldJobs()
    async with Emulator(duration=held) as emulator:
        await generate(emulator, tmp_path, "a fox", "a fox", "--timeout", BUYING_S)
        held.release(emulator)
        said = await generate(emulator, tmp_path, "a fox", "a fox", "a fox")
        assert emulator.stats().creates_accepted == 3
    assert (said.code, len(set(said.out.splitlines()))) == (0, 3)


@slow
async def test_an_unwritable_ledger_buys_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    async with Emulator() as emulator:
        for path, word in (("file/jobs.sqlite", "--ledger"), ("s3://bucket/jobs.sqlite", "not the URL")):
            said = await generate(emulator, tmp_path, "a fox", "--ledger", path)
            assert (said.code, word in said.complaint) == (2, True)
        assert not emulator.stats().requests
    assert not open_runs(tmp_path)


class TestOpenRuns:
    """Runs of one process exclude each other as runs of several do: each opens its lock file itself."""

    def test_a_live_run_is_left_alone(self, tmp_path: Path) -> None:
        ledger = tmp_path / "jobs.sqlite"
        live = OpenRun(ledger, "id", ["a"], buy_again=False)
        other = OpenRun(ledger, "id", ["a"], buy_again=False)
        assert other.continued == 0
        assert other.keys != live.keys
        live.close(live.keys)
        other.close()
        assert OpenRun(ledger, "id", ["a"], buy_again=False).keys == live.keys

    def test_what_is_not_taken_over_stays_open(self, tmp_path: Path) -> None:
        ledger = tmp_path / "jobs.sqlite"
        dead = OpenRun(ledger, "id", ["a", "b", "a"], buy_again=False)
        dead.close(dead.keys)
        first = OpenRun(ledger, "id", ["a"], buy_again=False)
        assert first.keys == [dead.keys[0]]
        first.close()
        second = OpenRun(ledger, "id", ["c", "b", "a"], buy_again=False)
        assert second.continued == 2
        assert second.keys[1:] == dead.keys[1:]
        second.close()
        assert OpenRun(ledger, "id", ["a", "b", "c"], buy_again=False).continued == 0

    def test_a_job_that_two_files_name_is_taken_over_once(self, tmp_path: Path) -> None:
        ledger = tmp_path / "jobs.sqlite"
        dead = OpenRun(ledger, "id", ["a"], buy_again=False)
        dead.close(dead.keys)
        folder = tmp_path / "jobs.sqlite-runs"
        (file,) = folder.glob("*.json")
        (folder / "killed.json").write_bytes(file.read_bytes())  # as a kill during a takeover leaves it
        assert OpenRun(ledger, "id", ["a", "a"], buy_again=False).continued == 1

    def test_requests_differ_by_address_model_and_fields(self) -> None:
        gateway, request = ApiMall(api_key="one"), ImageRequest("a fox")
        others = [
            fingerprint(evolve(gateway, base_url="https://other.example"), request),
            fingerprint(evolve(gateway, model="nano-banana-2"), request),
            fingerprint(gateway, ImageRequest("a fox", num_images=2)),
        ]
        assert fingerprint(evolve(gateway, api_key="new"), ImageRequest("a fox", model=gateway.model)) not in others
        assert fingerprint(evolve(gateway, api_key="new"), request) == fingerprint(gateway, request)
        assert len({*others, fingerprint(gateway, request)}) == 4

    def test_runs_of_a_lost_ledger_stop_the_same_command(self, tmp_path: Path) -> None:
        ledger = tmp_path / "jobs.sqlite"
        dead = OpenRun(ledger, "lost", ["a", "b"], buy_again=False)
        dead.close(dead.keys)
        with pytest.raises(ConfigurationError, match="was lost or replaced"):
            OpenRun(ledger, "new", ["c", "b"], buy_again=False)
        OpenRun(ledger, "new", ["c"], buy_again=False).close()
        OpenRun(ledger, "new", ["b"], buy_again=True).close()
        assert OpenRun(ledger, "new", ["b"], buy_again=False).continued == 0
        with pytest.raises(ConfigurationError, match="was lost or replaced"):
            OpenRun(ledger, "new", ["a"], buy_again=False)

    @pytest.mark.parametrize(
        "text", ["", "5", "[]", '{"k": ["x"]}', '{"ledger": "id", "jobs": {"k": ["x"]}', "[" * 99999]
    )
    def test_damaged_file_of_a_run_is_named(self, tmp_path: Path, text: str) -> None:
        folder = tmp_path / "jobs.sqlite-runs"
        folder.mkdir()
        (folder / "dead.json").write_text(text)
        ledger = tmp_path / "jobs.sqlite"
        with pytest.raises(ConfigurationError, match=r"dead\.json can't be read") as raised:
            OpenRun(ledger, "id", ["a"], buy_again=False)
        commands = str(raised.value).split("`")[1::2]
        assert [command.split()[-2:] for command in commands] == [["--ledger", str(ledger)]] * 2

    def test_forgotten_jobs_are_not_continued(self, tmp_path: Path) -> None:
        ledger = tmp_path / "jobs.sqlite"
        dead = OpenRun(ledger, "id", ["a", "b"], buy_again=False)
        dead.close(dead.keys)
        new = OpenRun(ledger, "id", ["a"], buy_again=True)
        assert (new.continued, new.keys[0] in dead.keys) == (0, False)
        new.close()
        assert OpenRun(ledger, "id", ["b", "a"], buy_again=False).continued == 1
