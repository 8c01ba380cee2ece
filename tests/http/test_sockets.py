"""Sockets that are counted until they are gone."""

import asyncio
import socket

import pytest

from nanobanana_async.http import sockets
from nanobanana_async.http.sockets import Sockets

ANYWHERE = (socket.AF_INET, socket.SOCK_STREAM, 0, "", ("127.0.0.1", 0))


async def test_waiting_ends_as_soon_as_all_are_closed() -> None:
    counted = Sockets()
    made = [counted.make(ANYWHERE) for _ in range(2)]
    assert set(counted.open()) == set(made)
    made[0].close()
    assert counted.open() == [made[1]]
    asyncio.get_running_loop().call_later(0.03, made[1].close)
    await counted.gone()
    assert counted.open() == []


async def test_waiting_ends_also_when_one_never_closes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets, "_PAUSE_S", 0)
    counted = Sockets()
    with counted.make(ANYWHERE) as made:
        await counted.gone()
        assert counted.open() == [made]


async def test_a_socket_nobody_holds_is_not_waited_for() -> None:
    counted = Sockets()
    counted.make(ANYWHERE).close()
    await counted.gone()
    assert counted.open() == []
