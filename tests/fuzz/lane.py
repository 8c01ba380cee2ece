"""The lanes of a long run, each in a process of its own: a target, a way to choose inputs, so many executions.

`bytes` gives atheris, which follows the coverage, the input itself; `shapes` lets it choose among inputs of the right
form, as hypothesis makes them; `random` is hypothesis alone, without coverage.
"""

import atexit
import importlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from tests.fuzz.target import Findings

MOST_MEMORY = 4 << 30
"""Bytes of address space: what needs more fails with a MemoryError, which is a finding."""


def main(arguments: list[str]) -> None:
    """Run `ENGINE JOBS FOLDER`, with the lanes on stdin: `LANE TARGET EXECUTIONS SEED` in each line.

    The package is imported once, and each lane is a fork. What a lane found is in FOLDER/TARGET-LANE-SEED.json.
    """
    engine, jobs, folder = arguments
    lanes = [line.split() for line in sys.stdin]
    if engine == "atheris":
        atheris = importlib.import_module("atheris")
        with atheris.instrument_imports(include=["nanobanana_async"]):
            importlib.import_module("tests.fuzz.table")
    else:
        importlib.import_module("tests.fuzz.table")
    running: dict[int, str] = {}
    for lane, name, executions, seed in lanes:
        while len(running) >= int(jobs):
            _wait_for_one(running)
        sys.stdout.flush()
        if process := os.fork():
            running[process] = f"{name}-{lane}-{seed}"
            continue
        output = Path(folder, f"{name}-{lane}-{seed}.json")
        sys.stderr = open(output.with_suffix(".log"), "w")  # noqa: SIM115 - until the fork ends
        os.dup2(sys.stderr.fileno(), 2)
        _play(lane, name, int(executions), int(seed), output)
        os._exit(0)
    while running:
        _wait_for_one(running)


def _wait_for_one(running: dict[int, str]) -> None:
    process, _ = os.wait()
    print(running.pop(process), flush=True)


def _play(lane: str, name: str, executions: int, seed: int, output: Path) -> None:
    from tests.fuzz.table import TARGETS
    from tests.fuzz.target import Findings

    findings = Findings(TARGETS[name])
    _bound_memory()
    if lane == "random":
        _play_at_random(findings, executions, seed)
        _end(findings, output)
    _play_guided(findings, lane, executions, seed, output)


def _play_guided(findings: "Findings", lane: str, executions: int, seed: int, output: Path) -> None:
    """Let atheris choose the inputs. This does not return: libFuzzer ends the process, or the last input does."""
    atheris = importlib.import_module("atheris")
    one = findings.play if lane == "bytes" else _shaped(findings)

    def play(data: bytes) -> None:
        if findings.executions < executions:
            one(data)
        if findings.executions >= executions:
            _end(findings, output)

    folder = Path(tempfile.mkdtemp(prefix="nanobanana-inputs-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    inputs, words = folder / "inputs", folder / "words"
    inputs.mkdir()
    for number, data in enumerate(findings.target.seeds):
        (inputs / str(number)).write_bytes(data)
    words.write_text("".join(f'"{_escaped(word)}"\n' for word in findings.target.words))
    longest = max(8192, *(2 * len(each) for each in findings.target.seeds))  # a workbook that is cut is none
    options = [f"-seed={seed}", "-runs=-1", f"-max_len={longest}", "-timeout=300", "-rss_limit_mb=0", "-verbosity=0"]
    options += [f"-dict={words}"] if findings.target.words else []  # libFuzzer refuses an empty file
    atheris.Setup([sys.argv[0], *options, str(inputs)], play)
    atheris.Fuzz()


def _shaped(findings: "Findings") -> Callable[[bytes], object]:
    """Return a function that makes an input of any bytes, which choose among inputs of the right form."""
    from hypothesis import given

    shapes = findings.target.shapes
    assert shapes is not None

    @given(shapes)
    def play(data: bytes) -> None:
        findings.play(data)

    inner = play.hypothesis.fuzz_one_input  # type: ignore[attr-defined]

    def one(data: bytes) -> None:
        before = findings.executions
        inner(data)
        if findings.executions == before:  # bytes that choose nothing
            findings.executions += 1

    return one


def _play_at_random(findings: "Findings", executions: int, seed: int) -> None:
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis import seed as seeded

    quiet = settings(
        max_examples=executions,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
    )

    @seeded(seed)
    @quiet
    @given(findings.target.inputs)
    def play(data: bytes) -> None:
        findings.play(data)

    play()


def _bound_memory() -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))


def _end(findings: "Findings", output: Path) -> NoReturn:
    """Write what was found, and end the process: libFuzzer would not come back to Python."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    output.write_text(json.dumps({**findings.to_json(), "peak_kib": peak}))
    atexit._run_exitfuncs()  # they remove the folders
    os._exit(0)


def _escaped(word: bytes) -> str:
    return "".join(f"\\x{byte:02x}" for byte in word)


if __name__ == "__main__":
    main(sys.argv[1:])
