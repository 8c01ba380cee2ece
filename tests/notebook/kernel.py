"""Run a real Jupyter kernel in a test, isolated from the user's configuration, and keep its warnings."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.lazy import lazy

MISSING = "notebooks are tested with a real kernel: pip install nbclient ipykernel"
nbclient, nbformat = lazy("nbclient", MISSING), lazy("nbformat", MISSING)
lazy("ipykernel", MISSING)


@asynccontextmanager
async def kernel(notebook: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Any]:
    """Start a kernel in its own folder; check its stderr at the end."""
    for name in ("JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "IPYTHONDIR"):
        monkeypatch.setenv(name, str(folder / name.lower()))
    # Other warnings of the kernel are not ours to fix; a resource left open is.
    environ = {**os.environ, "PYTHONWARNINGS": "default::ResourceWarning"}
    client = nbclient.NotebookClient(notebook, timeout=40, kernel_name="python3", allow_errors=True)
    with (folder / "stderr").open("w+") as errors:
        async with client.async_setup_kernel(stderr=errors, env=environ, cwd=str(folder)):
            yield client
        errors.seek(0)
        output = errors.read()
    assert "ResourceWarning" not in output
    assert "Traceback" not in output
    assert "never retrieved" not in output


async def executed(client: Any, cell: Any) -> Any:
    """Run one cell and return it; its outputs must contain no error."""
    await client.async_execute_cell(cell, client.nb.cells.index(cell))
    assert [output for output in cell.outputs if output.output_type == "error"] == []
    assert [output for output in cell.outputs if output.get("name") == "stderr"] == []
    return cell


async def interrupted(client: Any, cell: Any) -> str:
    """Run one cell, interrupt the kernel after its first output, and return the name of the error that ended it."""
    async with asyncio.TaskGroup() as group:
        running = group.create_task(client.async_execute_cell(cell, client.nb.cells.index(cell)))
        async with asyncio.timeout(20):
            while not cell.outputs:  # noqa: ASYNC110 - nbclient has no event for it
                await asyncio.sleep(0.02)
        await client.km.interrupt_kernel()
        await running
    (error,) = (output for output in cell.outputs if output.output_type == "error")
    return str(error.ename)


def html(cell: Any) -> str:
    """Return the HTML of a cell's outputs."""
    return "".join(output.data.get("text/html", "") for output in cell.outputs if "data" in output)


def printed(cell: Any) -> str:
    """Return what a cell printed."""
    return "".join(output.text for output in cell.outputs if output.output_type == "stream")
