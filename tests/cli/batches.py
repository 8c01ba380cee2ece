"""Run `nanobanana batch` in the process of the test, against the emulator."""

import asyncio
import io
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Unpack

import pytest

from nanobanana_async.cli import app as cli
from nanobanana_async.emulator import API_KEY, Emulator, EmulatorOptions, Fixed
from tests.cli.batch_kills import lines_of
from tests.support.command import Said, environment


class _Terminal(io.TextIOWrapper):
    def isatty(self) -> bool:
        return True


class Command:
    """Runs the command in this process, in a temporary folder."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder = folder
        self.out = folder / "out"
        self.patch = patch
        self._capsys = capsys

    async def __call__(
        self, file: str, *options: str, folder: str = "out", stdin: bytes = b"", terminal: bool = False
    ) -> Said:
        with self.patch.context() as patch:
            kind = _Terminal if terminal else io.TextIOWrapper
            patch.setattr(sys, "stdin", kind(io.BytesIO(stdin)))
            self._capsys.readouterr()
            code = await asyncio.to_thread(cli.run, ["batch", file, "-o", folder, *options])
        said = self._capsys.readouterr()
        return Said(code, said.out, said.err)

    def write(self, name: str, *lines: str) -> str:
        (self.folder / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        return name

    def prompts(self, count: int) -> str:
        return self.write("foxes.txt", *(f"a fox {number}" for number in range(count)))

    def lines(self) -> dict[str, dict[str, Any]]:
        """Return the results by prompt; prompts must be unique."""
        lines = lines_of(self.out)
        assert len({line["prompt"] for line in lines}) == len(lines)
        return {line["prompt"]: line for line in lines}

    def statuses(self) -> Counter[str]:
        return Counter(line["status"] for line in lines_of(self.out))


@asynccontextmanager
async def emulated(
    batch: Command, gateway: str = "apimall", **settings: Unpack[EmulatorOptions]
) -> AsyncIterator[Emulator]:
    options: EmulatorOptions = {"duration": Fixed(0.05), "image_scale": 0.05}
    options.update(settings)
    async with Emulator(**options) as emulator:
        variables = {"NANOBANANA_GATEWAY": gateway, "DEFAPI_API_KEY": API_KEY, "NANOBANANA_EXPECTED_JOB_S": "0.05"}
        for name, value in environment(emulator, **variables).items():
            batch.patch.setenv(name, value)
        yield emulator


def requests(emulator: Emulator) -> Counter[str]:
    return Counter({str(name): count for name, count in emulator.stats().requests.items()})
