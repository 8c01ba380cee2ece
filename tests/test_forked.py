"""A forked process is what the real one would be, except for its imports."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from asyncio.subprocess import PIPE
from pathlib import Path
from typing import Any

import pytest

from tests.support import forked

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="processes are forked on Linux only"),
]

PROBE = [sys.executable, "-m", "tests.support.probe"]


def environ(folder: Path, **variables: str) -> dict[str, str]:
    plain = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return plain | {"PYTHONPATH": str(forked.ROOT), "OWN": f"found in {folder}"} | variables


def said(folder: Path, how: str, *, session: bool = False, **variables: str) -> tuple[int, dict[str, Any], str, str]:
    """Return the exit code of the probe, its facts, the rest of its output, and its errors."""
    done = subprocess.run(
        [*PROBE, how, "two words"],
        input=b"typed\r\n",
        capture_output=True,
        cwd=folder,
        env=environ(folder, **variables),
        start_new_session=session,
        timeout=50,
        check=False,
    )
    facts, _, rest = done.stdout.decode().partition("\n")
    frames_above = r'  File "<(?:frozen runpy|string)>".*?(?=  File "/\S+probe.py)'
    return done.returncode, json.loads(facts), rest, re.sub(frames_above, "", done.stderr.decode(), flags=re.DOTALL)


def compare(folder: Path, how: str, *, session: bool = False, **variables: str) -> tuple[int, str, str]:
    """Check that a forked process says what a real one says; return its exit code and output."""
    code, facts, rest, errors = said(folder, how, session=session, **variables)
    forked.uninstall()
    try:
        real_code, real_facts, real_rest, real_errors = said(folder, how, session=session, **variables)
    finally:
        forked.install()
    assert (facts.pop("forked"), real_facts.pop("forked")) == (True, False)
    assert facts == real_facts
    assert (code, rest, errors) == (real_code, real_rest, real_errors)
    return code, rest, errors


@pytest.mark.parametrize(
    ("how", "code", "rest", "error"),
    [
        ("return", 0, "the end\n", ""),
        ("leave", 7, "the end\n", ""),
        ("message", 1, "the end\n", "a message"),
        ("raise", 1, "the end\n", "ValueError: a bug"),
        ("interrupt", -signal.SIGINT, "the end\n", "KeyboardInterrupt"),
        ("abort", -signal.SIGABRT, "", ""),
        ("thread", 0, "a thread ended\nthe end\n", ""),
    ],
)
def test_forked_process_ends_as_a_real_one(tmp_path: Path, how: str, code: int, rest: str, error: str) -> None:
    found = compare(tmp_path, how)
    assert found[:2] == (code, rest)
    assert found[2].strip().splitlines()[-1:] == ([error] if error else [])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PYTHONUNBUFFERED", "1"),
        ("PYTHONIOENCODING", "cp1252:strict"),
        ("PYTHONWARNINGS", "error"),
        ("TZ", "Asia/Tokyo"),
    ],
)
def test_forked_process_obeys_variables_read_at_start(tmp_path: Path, name: str, value: str) -> None:
    compare(tmp_path, "return", session=True, **{name: value})


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT, signal.SIGPIPE])
def test_forked_process_ignores_what_its_parent_ignores(tmp_path: Path, number: signal.Signals) -> None:
    before = signal.signal(number, signal.SIG_IGN)
    try:
        compare(tmp_path, "return")
    finally:
        signal.signal(number, before)


async def test_forked_process_is_a_child_to_kill_and_wait_for(tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(*PROBE, "return", env=environ(tmp_path), stdin=PIPE, stdout=PIPE)
    process.kill()
    async with asyncio.timeout(30):
        assert await process.wait() == -signal.SIGKILL
    with pytest.raises(ProcessLookupError):
        os.kill(process.pid, 0)


def test_several_children_at_once_have_streams_of_their_own(tmp_path: Path) -> None:
    children = [
        subprocess.Popen([*PROBE, "return"], env=environ(tmp_path), stdin=PIPE, stdout=PIPE, text=True)
        for _ in range(5)
    ]
    for number, child in reversed(list(enumerate(children))):  # none of them holds the stdin of another one open
        out, _ = child.communicate(f"for {number}", timeout=50)
        assert json.loads(out.splitlines()[0])["read"] == f"for {number}"


@pytest.mark.parametrize(
    "options",
    [{"umask": 0o27}, {"close_fds": False}, {"pass_fds": [0]}, {"preexec_fn": os.getpid}, {"process_group": 0}],
)
def test_process_with_rare_options_is_a_real_one(tmp_path: Path, options: dict[str, Any]) -> None:
    done = subprocess.run(
        [*PROBE, "return"], input=b"", capture_output=True, env=environ(tmp_path), timeout=50, check=True, **options
    )
    assert json.loads(done.stdout.splitlines()[0])["forked"] is False


def test_fixture_starts_real_processes(tmp_path: Path, real_processes: None) -> None:
    del real_processes
    assert said(tmp_path, "return")[1]["forked"] is False
