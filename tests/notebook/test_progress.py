"""`generate_many(..., progress=True)`: the bar shows the counts, is always closed, and never fails the batch."""

import asyncio
import gc
import os
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Iterator

import pytest
from tqdm.auto import tqdm

from nanobanana_async import BatchStopped, ConfigurationError, SessionClosed
from nanobanana_async.testing import FakeTransport
from tests.support.fakes import FakeGateway, apimall, now, virtually
from tests.support.replies import completed, created, in_turn, refused

PROMPTS = ["a fox", "an owl", "a hare"]


@pytest.fixture(autouse=True)
def closed_bars() -> Iterator[None]:
    """Check that no test leaves a bar open; tqdm tracks its instances."""
    yield
    gc.collect()
    assert list(getattr(tqdm, "_instances", ())) == []


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Return each drawing of the bar; the last one is left by its closing."""
    drawn = capsys.readouterr().err
    assert drawn.endswith("\n")
    return drawn.replace("\n", "").split("\r")[1:]


@virtually
async def _run_batch(batch_size: int = 3) -> None:
    async with apimall(FakeTransport(FakeGateway(job_s=3.0).answer)) as session:
        taken = [outcome async for outcome in session.generate_many(PROMPTS[:batch_size], progress=True)]
        assert len(taken) == batch_size


def test_the_bar_shows_rows_slots_and_credits(capsys: pytest.CaptureFixture[str]) -> None:
    _run_batch()
    drawn = lines(capsys)
    assert "0/3" in drawn[0]
    assert any("0/3" in line and "3 slots" in line for line in drawn)
    assert "3/3" in drawn[-1]
    assert "0 failed, 0 slots, 24 credits" in drawn[-1]


def test_the_bar_is_redrawn_while_no_job_ends(capsys: pytest.CaptureFixture[str]) -> None:
    _run_batch(1)
    assert sum("0/1" in line for line in lines(capsys)) >= 3


def test_input_without_a_length_has_no_total_and_the_batch_name_is_shown(
    capsys: pytest.CaptureFixture[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    async def prompts() -> AsyncIterator[str]:
        for prompt in PROMPTS:
            yield prompt

    @virtually
    async def run_batch() -> None:
        ledger = tmp_path_factory.mktemp("ledger") / "jobs.sqlite"
        async with apimall(FakeTransport(FakeGateway().answer), ledger=ledger) as session:
            async for _ in session.generate_many(prompts(), batch="<b>spring</b>", progress=True):
                pass

    run_batch()
    last = lines(capsys)[-1]
    assert "3 rows [" in last
    assert last.startswith("<b>spring</b>: ")


def test_a_stopped_batch_counts_failures_and_closes_its_bar(capsys: pytest.CaptureFixture[str]) -> None:
    @virtually
    async def run_batch() -> None:
        refusal = refused(402, message="no credits")
        async with apimall(FakeTransport(in_turn([created(), refused(400), refusal], [completed()]))) as session:
            with pytest.raises(BatchStopped):
                async for _ in session.generate_many([*PROMPTS, "a wren"], progress=True):
                    pass

    run_batch()
    last = lines(capsys)[-1]
    assert "2/4" in last
    assert "1 failed" in last


def test_leaving_early_closes_the_bar(capsys: pytest.CaptureFixture[str]) -> None:
    @virtually
    async def run_batch() -> None:
        async with apimall(FakeTransport(FakeGateway().answer)) as session:
            async with session.generate_many(PROMPTS, progress=True) as batch:
                async for _ in batch:
                    break
            assert list(getattr(tqdm, "_instances", ())) == []

    run_batch()
    assert "/3" in lines(capsys)[-1]


def test_a_batch_that_is_dropped_closes_its_bar(capsys: pytest.CaptureFixture[str]) -> None:
    @virtually
    async def run_batch() -> None:
        async with apimall(FakeTransport(FakeGateway().answer)) as session:
            async for _ in session.generate_many(PROMPTS, progress=True):
                break
            gc.collect()
            await asyncio.sleep(0.1)
            assert list(getattr(tqdm, "_instances", ())) == []

    run_batch()
    assert "/3" in lines(capsys)[-1]


def test_an_input_error_closes_the_bar(capsys: pytest.CaptureFixture[str]) -> None:
    async def prompts() -> AsyncIterator[str]:
        yield "a fox"
        raise LookupError("the file is cut off")

    @virtually
    async def run_batch() -> None:
        async with apimall(FakeTransport(FakeGateway().answer)) as session:
            with pytest.raises(LookupError):
                async for _ in session.generate_many(prompts(), progress=True):
                    pass

    run_batch()
    assert "1 rows" in lines(capsys)[-1]


def test_closing_the_session_closes_the_bar(capsys: pytest.CaptureFixture[str]) -> None:
    @virtually
    async def run_batch() -> None:
        async with apimall(FakeTransport(FakeGateway(job_s=60).answer)) as session, asyncio.TaskGroup() as group:
            closing = asyncio.get_running_loop().call_later(2, lambda: group.create_task(session.aclose()))
            with pytest.raises(SessionClosed):
                async for _ in session.generate_many(PROMPTS, progress=True):
                    pass
            closing.cancel()

    run_batch()
    assert "0/3" in lines(capsys)[-1]


def test_a_batch_continued_after_an_interrupt_has_a_new_bar(
    capsys: pytest.CaptureFixture[str],
) -> None:
    gateway = FakeGateway(job_s=3.0, limit=1)

    @virtually
    async def run_batch() -> None:
        async with apimall(FakeTransport(gateway.answer)) as session:
            batch = session.generate_many(PROMPTS, progress=True)

            async def cell() -> list[int]:
                return [outcome.index async for outcome in batch]

            with pytest.raises(TimeoutError):
                await asyncio.wait_for(cell(), timeout=1)
            assert list(getattr(tqdm, "_instances", ())) == []
            assert sorted(await cell()) == [0, 1, 2]

    run_batch()
    drawn = capsys.readouterr().err
    assert drawn.count("\n") == 2
    assert "3/3" in drawn
    assert gateway.sold == 3


# Releases of tqdm before 4.69.1 close in `__del__` a bar that their constructor has not finished, which Python reports.
@pytest.mark.filterwarnings("ignore:.*<function tqdm.__del__:pytest.PytestUnraisableExceptionWarning")
def test_a_broken_stderr_does_not_end_the_batch(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class ClosedStream:
        encoding = "utf-8"

        def write(self, _: str) -> int:
            raise BrokenPipeError("the pipe is closed")

        def flush(self) -> None:
            raise BrokenPipeError("the pipe is closed")

    monkeypatch.setattr(sys, "stderr", ClosedStream())
    _run_batch()
    assert [record.getMessage() for record in caplog.records if "progress.failed" in record.getMessage()] != []


def test_without_tqdm_the_extra_is_named_and_nothing_is_bought(monkeypatch: pytest.MonkeyPatch) -> None:
    transport = FakeTransport(FakeGateway().answer)

    @virtually
    async def asked() -> None:
        async with apimall(transport) as session:
            with pytest.raises(ConfigurationError, match=r"pip install 'nanobanana-async\[notebook\]'"):
                session.generate_many(PROMPTS, progress=True)
            await asyncio.sleep(now() + 10)

    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    asked()
    assert list(transport.requests) == []


def test_a_bar_is_drawn_at_most_five_times_a_second(capsys: pytest.CaptureFixture[str]) -> None:
    @virtually
    async def run_batch() -> None:
        async with apimall(FakeTransport(FakeGateway(job_s=0.1).answer)) as session:
            async for _ in session.generate_many((f"fox {number}" for number in range(300)), progress=True):
                pass
        assert now() < 60

    run_batch()
    assert len(lines(capsys)) < 300


NO_WIDGETS = """
    import sys, types
    sys.modules["ipykernel.zmqshell"] = types.ModuleType("ipykernel.zmqshell")
    sys.modules["IPython"] = shell = types.ModuleType("IPython")
    shell.get_ipython = lambda: None
    sys.modules["ipywidgets"] = None
    from nanobanana_async.testing import FakeTransport
    from tests.support.fakes import FakeGateway, apimall, virtually

    @virtually
    async def main():
        async with apimall(FakeTransport(FakeGateway().answer)) as session:
            async for _ in session.generate_many(["a fox"], progress=True):
                pass

    main()
"""


@pytest.mark.slow
def test_a_notebook_without_widgets_gets_text_and_no_warning() -> None:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
    program = [sys.executable, "-W", "error", "-c", textwrap.dedent(NO_WIDGETS)]
    done = subprocess.run(program, env=environ, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    assert "1/1" in done.stderr
    assert "Warning" not in done.stderr
