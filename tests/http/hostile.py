"""Measure how long each hostile answer blocks the event loop, and its memory: `python -m tests.http.hostile`.

Each case runs in a child process, which sends a request through a session and its real transport to this process. The
figure is the longest gap between two turns of the child's event loop, at most the CPU time that the child used in it:
other work on the machine does not count.
"""

import argparse
import asyncio
import contextlib
import json
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from typing import Any

from nanobanana_async import ApiMall, DefApi, GeneratedImage, RetryPolicy, Session, Timeouts
from nanobanana_async.engine import resolver
from nanobanana_async.errors import NanoBananaError
from nanobanana_async.events import JobPolled, PollFailed
from tests.http.hostile_bodies import CASES, Case

PATIENCE_S = 120.0
MAX_BLOCK_MS = 50.0
MAX_MEMORY_MIB = 64.0


@contextlib.contextmanager
def served(answer: bytes) -> Iterator[int]:
    """Send this answer to every request; yield the port."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    threading.Thread(target=_answer, args=(connection, answer), daemon=True).start()

        threading.Thread(target=serve, daemon=True).start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)


def _answer(connection: socket.socket, answer: bytes) -> None:
    with connection, contextlib.suppress(OSError):
        connection.recv(65536)
        connection.sendall(answer)
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(65536):
            pass


async def ask(name: str, port: int) -> dict[str, Any]:
    """Send one request, in a child process; return its cost and how it ended."""
    case = CASES[name]
    url = f"http://127.0.0.1:{port}"
    settings: dict[str, Any] = {"api_key": "key-0123456789", "base_url": url, "expected_job_s": 0.01}
    # A job in doubt waits for the history only this long.
    gateway = ApiMall(**settings, history_delay_s=0.01) if case.gateway == "apimall" else DefApi(**settings)
    timeouts = Timeouts(job_s=0.2, query_s=PATIENCE_S)
    once, answered = RetryPolicy(max_attempts=1), asyncio.Event()
    # `attach` repeats a query that failed for as long as a replica may lag; here it raises the first failure.
    resolver.__dict__["LATE_REPLICA_S"] = 0.0

    def observe(event: object) -> None:
        if isinstance(event, (JobPolled, PollFailed)):
            answered.set()

    async with Session(gateway, timeouts=timeouts, retry=once, observers=[observe]) as session:
        session._components.downloads._attempts = 1
        before = _memory_mib("VmRSS")
        watch = Watch()
        async with asyncio.timeout(PATIENCE_S):
            ended = await _ended(session, case, port, answered)
        await asyncio.sleep(0.01)
        longest_ms = watch.end()
        peak = _memory_mib("VmHWM") - before
    return {"block_ms": longest_ms, "memory_mib": max(0.0, peak), **ended}


async def _ended(session: Session, case: Case, port: int, answered: asyncio.Event) -> dict[str, Any]:
    try:
        match case.ask:
            case "query":
                job = await session.attach("t1")
                await answered.wait()
                result = await job.result(timeout=0.5)
                shown = [repr(result), str(result.credits), result._repr_html_()[:100], session.stats()._repr_html_()]
                image = await session.download(result.images[0]) if case.legitimate else b""
                return {"ended": "delivered", "shown": max(map(len, shown)), "image": len(image)}
            case "create":
                await session.generate("a fox")
            case "callback":
                await session._callback_router.handle_callback("k", case.answer())
            case _:
                await session.download(GeneratedImage(url=case.link or f"http://127.0.0.1:{port}/1.png"))
    except NanoBananaError as error:
        return {"ended": type(error).__name__, "shown": len(str(error)), "message": str(error)[:300]}
    except Exception as error:
        traceback.print_exc()
        return {"ended": f"ESCAPED {type(error).__name__}", "shown": 0, "message": str(error)[:300]}
    return {"ended": "taken", "shown": 0}


class Watch:
    """Measures the longest gap between two turns of the event loop."""

    def __init__(self) -> None:
        self._longest = 0.0
        self._task = asyncio.get_running_loop().create_task(self._measure())

    def end(self) -> float:
        """Return the longest gap between two turns, in milliseconds."""
        self._task.cancel()
        return self._longest * 1000

    async def _measure(self) -> None:
        while True:
            wall, processor = time.perf_counter(), time.process_time()
            await asyncio.sleep(0)
            gap = min(time.perf_counter() - wall, time.process_time() - processor)
            self._longest = max(self._longest, gap)


def _memory_mib(name: str) -> float:
    with open("/proc/self/status", encoding="ascii") as file:
        [line] = [line for line in file if line.startswith(f"{name}:")]
    return int(line.split()[1]) / 1024


async def measured(name: str) -> dict[str, Any]:
    """Return the cost of one case in a child process."""
    case = CASES[name]
    answer = case.answer() if case.ask != "callback" else b""
    with served(answer) as port:
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.http.hostile", "--child", name, str(port), stdout=asyncio.subprocess.PIPE
        )
        async with asyncio.timeout(PATIENCE_S + 60):
            out, _ = await child.communicate()
    found: dict[str, Any] = json.loads(out)
    return found


async def _table(names: list[str]) -> int:
    bad = 0
    for name in names:
        found = await measured(name)
        case = CASES[name]
        slow = found["block_ms"] > MAX_BLOCK_MS
        large = found["memory_mib"] > MAX_MEMORY_MIB and not case.legitimate
        bad += slow or large or found["ended"].startswith("ESCAPED")
        mark = " TOO SLOW" * slow + " TOO LARGE" * large
        print(
            f"{name:45} {found['block_ms']:8.1f} ms {found['memory_mib']:8.1f} MiB  {found['ended']}{mark}", flush=True
        )
    return 1 if bad else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="cases; all when none is named")
    parser.add_argument("--child", nargs=2, metavar=("NAME", "PORT"))
    given = parser.parse_args()
    if given.child:
        print(json.dumps(asyncio.run(ask(given.child[0], int(given.child[1])))))
        return 0
    return asyncio.run(_table(given.names or list(CASES)))


if __name__ == "__main__":
    sys.exit(main())
