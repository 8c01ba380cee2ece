"""Start the studio on the emulator: two workers, no key, no cost. Enter kills the workers while jobs run.

python docs/examples/studio/run.py
"""

import argparse
import asyncio
import os
import signal
import socket
import sys
import tempfile
from asyncio.subprocess import Process
from contextlib import suppress
from pathlib import Path

import anyio

from nanobanana_async.emulator import API_KEY, Emulator, LogNormal, RandomFault, faults

HERE = Path(__file__).parent
GATEWAYS = ("apimall", "defapi")


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--gateway", choices=GATEWAYS, default="apimall", help="defapi calls a URL of each job, API Mall a webhook"
    )
    parser.add_argument("--port", type=int, default=8000, help="where the page is; 0 takes a free port")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--job-limit", type=int, default=4, help="how many jobs the account takes at once")
    parser.add_argument("--job-seconds", type=float, default=6.0, help="how long a job takes, as median")
    parser.add_argument(
        "--trouble", action="store_true", help="a fifth of the jobs fails, a fifth of the answers is lost"
    )
    return parser.parse_args()


def emulated(options: argparse.Namespace) -> Emulator:
    """Return the emulated gateways."""
    lost = [
        RandomFault(0.2, faults.reset(processed=True), endpoint) for endpoint in ("apimall.create", "defapi.create")
    ]
    return Emulator(
        job_limit=options.job_limit,
        duration=LogNormal(median_s=options.job_seconds),
        failure_probability=0.2 if options.trouble else 0.0,
        random_faults=lost if options.trouble else [],
    )


async def start(port: int, folder: str, gateway_url: str, options: argparse.Namespace) -> Process:
    """Start uvicorn as on any server, with the emulator as gateway; return once it answers."""
    environ = {
        "NANOBANANA_GATEWAY": options.gateway,
        "NANOBANANA_BASE_URL": gateway_url,
        "NANOBANANA_EXPECTED_JOB_S": str(options.job_seconds),
        f"{options.gateway.upper()}_API_KEY": API_KEY,
        "NANOBANANA_LEDGER": "",  # a file in the folder, also where this variable is set
        "STUDIO_FOLDER": folder,
        "STUDIO_PUBLIC_URL": f"http://127.0.0.1:{port}",
    }
    command = ["-m", "uvicorn", "app:app", "--app-dir", str(HERE), "--port", str(port), "--log-level", "warning"]
    command += ["--workers", str(options.workers), "--timeout-graceful-shutdown", "5"]
    # In a session of its own Ctrl-C does not reach the server, and it can be killed with all its workers.
    process = await asyncio.create_subprocess_exec(
        sys.executable, *command, env=os.environ | environ, start_new_session=True
    )
    while process.returncode is None:
        with suppress(OSError):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET / HTTP/1.0\r\n\r\n")
            await writer.drain()
            writer.close()
            break
        await asyncio.sleep(0.1)
    return process


async def kill_when_asked(process: Process) -> None:
    """Kill all workers, as a crash would, when Enter is pressed."""
    if not sys.stdin.isatty():
        return
    pressed = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(sys.stdin, pressed.set)
    try:
        await pressed.wait()
        sys.stdin.readline()
    finally:
        loop.remove_reader(sys.stdin)
    os.killpg(process.pid, signal.SIGKILL)
    print("Killed. It starts again, and continues with what was bought.", flush=True)


async def stop(process: Process) -> None:
    """Let the workers close their sessions, then kill what is left; the next workers resume its jobs."""
    if process.returncode is None:
        process.terminate()
        with suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), 20)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def free_port() -> int:
    """Return an unused port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def main() -> None:
    """Run the emulator and the studio until Ctrl-C."""
    options = arguments()
    port = options.port or free_port()
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    with tempfile.TemporaryDirectory(prefix="studio-") as folder:
        async with emulated(options) as emulator:
            killed = True
            while killed:
                process = await start(port, folder, emulator.url, options)
                try:
                    print(f"Studio: http://127.0.0.1:{port}  (Enter kills the workers, Ctrl-C ends)", flush=True)
                    async with anyio.create_task_group() as tasks:
                        tasks.start_soon(kill_when_asked, process)
                        killed = await process.wait() == -signal.SIGKILL
                        tasks.cancel_scope.cancel()
                finally:
                    await stop(process)


if __name__ == "__main__":
    with suppress(KeyboardInterrupt, asyncio.CancelledError):
        asyncio.run(main())
