"""Bound how many bytes are in memory at the same time."""

import asyncio
from collections import deque


class ByteBudget:
    """Lets work wait until its bytes fit, first come, first served; what is larger than the budget goes alone."""

    def __init__(self, most: int) -> None:
        self._max_bytes = most
        self._used = 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    async def acquire(self, size: int) -> None:
        """Wait until `size` bytes fit, and take them; `release` must follow."""
        if not self._waiting and self._fits(size):
            self._used += size
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((size, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.release(size)
            raise

    def release(self, size: int) -> None:
        """Give bytes back, and let those that wait have them."""
        self._used -= size
        while self._waiting:
            wanted, turn = self._waiting[0]
            if turn.done():  # its task was cancelled
                self._waiting.popleft()
                continue
            if not self._fits(wanted):
                return
            self._waiting.popleft()
            self._used += wanted
            turn.set_result(None)

    def _fits(self, size: int) -> bool:
        return not self._used or self._used + size <= self._max_bytes
