"""`docs/notebook.ipynb` runs from first to last cell in a real kernel, against the emulator."""

from pathlib import Path
from typing import Any

import pytest

from tests.notebook.kernel import executed, html, interrupted, kernel, nbformat, printed
from tests.notebook.reading import Page

pytestmark = pytest.mark.slow

NOTEBOOK = Path(__file__).parents[2] / "docs" / "notebook.ipynb"
WIDGET = "application/vnd.jupyter.widget-view+json"


def tour() -> Any:
    return nbformat.read(NOTEBOOK, as_version=4)


def test_the_tour_is_committed_without_outputs() -> None:
    notebook = tour()
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.id for cell in cells if cell.outputs or cell.execution_count] == []
    assert set(notebook.metadata) == {"kernelspec", "language_info"}


async def test_the_tour_runs_and_shows_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("PIL", reason="the emulator paints with Pillow: pip install 'nanobanana-async[emulator]'")
    notebook = tour()
    async with kernel(notebook, tmp_path, monkeypatch) as client:
        cells = {
            cell.id: await executed(client, cell) for cell in notebook.cells if cell.cell_type == "code" and cell.source
        }
    images = {name: len(Page(html(cell)).images) for name, cell in cells.items() if html(cell)}
    assert images == {
        "one": 1,
        "edit": 3,
        "timeout": 0,
        "again": 1,
        "batch": 18,
        "bad-row": 0,
        "good-row": 1,
        "stats": 0,
    }
    assert "a lighthouse in fog" in html(cells["one"])
    assert "the job goes on" in printed(cells["timeout"])
    assert "state" in html(cells["timeout"])
    assert any(WIDGET in output.data for output in cells["batch"].outputs if "data" in output)
    assert Page(html(cells["batch"])).text.endswith("done 19 \N{NO-BREAK SPACE} failed 1")
    assert "InvalidRequest" in html(cells["bad-row"])
    assert printed(cells["rerun"]) == "18 images, 0 of them bought again\n"
    assert "23 succeeded" in html(cells["stats"])
    assert cells["save"].outputs[0].data["text/plain"].endswith(".png']")
    assert "closed" in cells["close"].outputs[0].data["text/plain"]


CELLS = {
    "open": """
        from nanobanana_async import Session
        from nanobanana_async.emulator import Emulator
        held = True
        server = Emulator(duration=lambda _: 300.0 if held else 0.1, image_scale=0.05)
        emulator = await server.__aenter__()
        session = Session(emulator.apimall(expected_job_s=1.0), ledger="jobs.sqlite")
        await session.open()
    """,
    "release": """
        held = False  # as in tests/support/held.py
        emulator._running()._started_at -= 300.0
    """,
    "hold": """
        held = True
    """,
    "submit": """
        job = await session.submit("a fox")
        task_id = await job.wait_for_task_id()
    """,
    "wait": """
        print("waiting")
        await job
    """,
    "again": """
        await job
    """,
    "batch": """
        batch = session.generate_many(["an owl", "a hare"], progress=True)
        print("waiting")
        taken = [outcome async for outcome in batch]
    """,
    "go-on": """
        taken = [outcome async for outcome in batch]
        print(len(taken), "taken,", emulator.stats().creates_accepted, "bought,", emulator.stats().double_charges)
    """,
    "close": """
        await session.aclose()
        await server.__aexit__(None, None, None)
    """,
}


async def test_an_interrupted_cell_loses_no_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    new = nbformat.v4.new_code_cell
    lines = {name: source.replace("\n        ", "\n").strip() for name, source in CELLS.items()}
    cells = {name: new(source, id=name) for name, source in lines.items()}
    notebook = nbformat.v4.new_notebook(cells=list(cells.values()))
    async with kernel(notebook, tmp_path, monkeypatch) as client:
        for name in ("open", "submit"):
            await executed(client, cells[name])
        assert await interrupted(client, cells["wait"]) in {"CancelledError", "KeyboardInterrupt"}
        await executed(client, cells["release"])
        assert len(Page(html(await executed(client, cells["again"]))).images) == 1
        await executed(client, cells["hold"])
        assert await interrupted(client, cells["batch"]) in {"CancelledError", "KeyboardInterrupt"}
        await executed(client, cells["release"])
        assert printed(await executed(client, cells["go-on"])) == "2 taken, 3 bought, 0\n"
        await executed(client, cells["close"])
