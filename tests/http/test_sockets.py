"""The socket tracker: it knows the open sockets, and waits until they are closed."""

import asyncio
import socket

import pytest

from nanobanana_async.http import sockets
from nanobanana_async.http.sockets import SocketTracker

ANYWHERE = (socket.AF_INET, socket.SOCK_STREAM, 0, "", ("127.0.0.1", 0))


async def test_wait_closed_returns_once_all_are_closed() -> None:
    counted = SocketTracker()
    made = [counted.make_socket(ANYWHERE) for _ in range(2)]
    assert set(counted.open_sockets()) == set(made)
    made[0].close()
    assert counted.open_sockets() == [made[1]]
    asyncio.get_running_loop().call_later(0.03, made[1].close)
    await counted.wait_closed()
    assert counted.open_sockets() == []


async def test_wait_closed_gives_up_on_a_socket_that_stays_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets, "_PAUSE_S", 0)
    counted = SocketTracker()
    with counted.make_socket(ANYWHERE) as made:
        await counted.wait_closed()
        assert counted.open_sockets() == [made]


async def test_garbage_collected_socket_is_not_waited_for() -> None:
    counted = SocketTracker()
    counted.make_socket(ANYWHERE).close()
    await counted.wait_closed()
    assert counted.open_sockets() == []
