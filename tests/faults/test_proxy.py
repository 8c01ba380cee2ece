"""The public fault proxy: each kind of fault, at the byte and for the request that it is for."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from nanobanana_async.errors import ConfigurationError
from nanobanana_async.testing import ConnectionFault, Exchange, FaultProxy
from nanobanana_async.testing.fault_proxy import FaultKind, Side
from tests.support.loopback import until
from tests.support.peers import PATIENCE_S

ASKED, ANSWERED = b"0123456789" * 3, b"abcdefghij" * 4


@asynccontextmanager
async def echoing(path: Path | None = None) -> AsyncIterator[tuple[int | str, list[bytes]]]:
    """Run a server that answers each request of `ASKED`; yield its address, and what each connection has received."""
    received: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        received.append(b"")
        number = len(received) - 1
        try:
            while data := await reader.read(1000):
                received[number] += data
                if received[number].endswith(ASKED):
                    writer.write(ANSWERED)
        except (ConnectionError, asyncio.CancelledError):  # the end of the test
            pass
        finally:
            writer.close()

    if path is None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        address: int | str = server.sockets[0].getsockname()[1]
    else:
        server, address = await asyncio.start_unix_server(serve, str(path)), str(path)
    async with server:
        yield address, received


async def ask(proxy: FaultProxy, times: int = 1, *, stalls_at: int | None = None) -> tuple[bytes, str]:
    """Send requests on one connection, and return what came, and how it ended: "open", "end" or "reset".

    After `stalls_at` bytes it waits for a moment only.
    """
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    came = b""
    try:
        for number in range(times):
            writer.write(ASKED)
            while len(came) < (number + 1) * len(ANSWERED):
                is_over = stalls_at is not None and len(came) >= stalls_at
                data = await asyncio.wait_for(reader.read(1000), 0.3 if is_over else PATIENCE_S)
                if not data:
                    return came, "end"
                came += data
        return came, "open"
    except TimeoutError:
        return came, "open"
    except ConnectionResetError:
        return came, "reset"
    finally:
        writer.close()


async def test_proxy_without_faults_passes_everything() -> None:
    async with echoing() as (port, received):
        with FaultProxy(port) as proxy:
            assert await ask(proxy, 3) == (ANSWERED * 3, "open")
            assert proxy.exchanges == [Exchange(number, len(ASKED), len(ANSWERED)) for number in range(3)]
            assert proxy.struck == 0
        assert received == [ASKED * 3]


@pytest.mark.parametrize("at", [0, 1, 17, len(ANSWERED)])
@pytest.mark.parametrize(("kind", "ended"), [("cut", "end"), ("reset", "reset"), ("stall", "open")])
async def test_answer_breaks_at_its_byte(kind: FaultKind, ended: str, at: int) -> None:
    async with echoing() as (port, received):
        with FaultProxy(port) as proxy:
            proxy.queue(ConnectionFault(kind, at=at))
            came, how = await ask(proxy, stalls_at=at if kind == "stall" else None)
            assert came == ANSWERED[:at]
            assert how == (ended if at < len(ANSWERED) else "open")  # it had all it waited for
            assert received == [ASKED]
            await until(lambda: proxy.struck == 1)


@pytest.mark.parametrize("at", [0, 1, 17])
@pytest.mark.parametrize(("kind", "ended"), [("cut", "end"), ("reset", "reset"), ("stall", "open")])
async def test_request_breaks_at_its_byte(kind: FaultKind, ended: str, at: int) -> None:
    async with echoing() as (port, received):
        with FaultProxy(port) as proxy:
            proxy.queue(ConnectionFault(kind, side="request", at=at))
            assert await ask(proxy, stalls_at=0 if kind == "stall" else None) == (b"", ended)
            await until(lambda: [exchange.request_bytes for exchange in proxy.exchanges] == [at])
            await until(lambda: b"".join(received) == ASKED[:at])


async def test_garbage_stands_in_place_of_the_rest() -> None:
    async with echoing() as (port, _):
        with FaultProxy(port) as proxy:
            proxy.queue(ConnectionFault("garbage", at=4, content=b"\xff\x00"))
            assert await ask(proxy) == (ANSWERED[:4] + b"\xff\x00", "end")


@pytest.mark.parametrize("side", ["request", "answer"])
async def test_drip_and_delay_pass_everything_later(side: Side) -> None:
    async with echoing() as (port, received):
        with FaultProxy(port) as proxy:
            proxy.queue(
                ConnectionFault("drip", side=side, at=5, piece_bytes=10, wait_s=0.02),
                ConnectionFault("delay", side=side, at=5, wait_s=0.05),
            )
            began = time.perf_counter()
            assert await ask(proxy, 2) == (ANSWERED * 2, "open")
            assert time.perf_counter() - began >= 0.05 + 2 * 0.02
        assert received == [ASKED * 2]


async def test_fault_waits_for_the_request_with_its_words() -> None:
    async with echoing() as (port, received):
        with FaultProxy(port) as proxy:
            proxy.queue(ConnectionFault("cut", words=b"other"), ConnectionFault("cut", words=b"345"))
            assert await ask(proxy) == (b"", "end")
            assert await ask(proxy, 2) == (ANSWERED * 2, "open")
        assert received == [ASKED, ASKED * 2]


async def test_words_are_found_across_pieces_of_a_request() -> None:
    async with echoing() as (port, _):
        with FaultProxy(port) as proxy:
            proxy.queue(ConnectionFault("cut", words=b"90123"))
            reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
            for start in range(0, len(ASKED), 4):
                writer.write(ASKED[start : start + 4])
                await asyncio.sleep(0.01)
            assert await reader.read() == b""
            writer.close()
            assert proxy.struck == 1


async def test_schedule_is_asked_about_each_request() -> None:
    async with echoing() as (port, _):
        with FaultProxy(port, schedule={1: ConnectionFault("cut", at=3)}.get) as proxy:
            assert await ask(proxy, 3) == (ANSWERED + ANSWERED[:3], "end")
            assert await ask(proxy) == (ANSWERED, "open")
            assert [exchange.struck for exchange in proxy.exchanges] == [False, True, False]


async def test_pause_holds_everything_until_resume() -> None:
    async with echoing() as (port, received):
        with FaultProxy(port) as proxy:
            proxy.pause()
            asking = asyncio.Task(ask(proxy))
            await asyncio.sleep(0.1)
            assert b"".join(received) == b""
            proxy.resume()
            assert await asking == (ANSWERED, "open")


async def test_cut_all_closes_what_is_open_and_nothing_later() -> None:
    async with echoing() as (port, _):
        with FaultProxy(port) as proxy:
            proxy.queue(ConnectionFault("stall", side="request"))
            asking = asyncio.Task(ask(proxy))
            await until(lambda: proxy.struck > 0)
            proxy.cut_all()
            assert (await asking)[1] in ("end", "reset")
            assert await ask(proxy) == (ANSWERED, "open")


async def test_unix_socket_can_be_the_target(tmp_path: Path) -> None:
    async with echoing(tmp_path / "s") as (path, received):
        with FaultProxy(path) as proxy:
            proxy.queue(ConnectionFault("reset", words=b"0", at=2))
            assert await ask(proxy) == (ANSWERED[:2], "reset")
        assert received == [ASKED]


async def test_server_that_is_down_resets_the_client() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with FaultProxy(unused.getsockname()[1]) as proxy:
            assert (await ask(proxy))[0] == b""


def test_blocking_client_of_another_thread_is_served() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, FaultProxy(server.getsockname()[1]) as proxy:
        proxy.queue(ConnectionFault("cut", at=1))
        with socket.create_connection(("127.0.0.1", proxy.port)) as client:
            client.settimeout(PATIENCE_S)
            client.sendall(b"x")
            accepted, _ = server.accept()
            with accepted:
                assert accepted.recv(10) == b"x"
                accepted.sendall(b"yz")
                assert client.recv(10) == b"y"
                assert client.recv(10) == b""


def test_senseless_faults_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="leave side out"):
        ConnectionFault("garbage", side="request")
    with pytest.raises(ConfigurationError, match="at must be a whole number of at least 0"):
        ConnectionFault("cut", at=-1)
    with pytest.raises(ValueError, match="explode"):
        ConnectionFault("explode")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="enter it first"):
        FaultProxy(1).pause()
