"""The session's own task: it holds the task group from opening to closing, whoever opens and whoever closes."""

import asyncio
import os
import warnings
from contextlib import AsyncExitStack
from weakref import WeakSet

import anyio

from nanobanana_async.engine.assembly import Parts
from nanobanana_async.engine.core import Engine
from nanobanana_async.errors import ConfigurationError, NanoBananaError, SessionClosed
from nanobanana_async.loops import cancel_requested


class Host:
    """Opens a session's parts and its engine, and closes them in reverse. It does not know the session itself."""

    def __init__(self, name: str, parts: Parts) -> None:
        self._name = name
        self._parts = parts
        self._task: asyncio.Task[None] | None = None
        self.engine: Engine | None = None
        self.closed = False
        self._abandoned = False

    async def open(self) -> None:
        """Open everything."""
        if self._task is not None or self.closed:
            raise ConfigurationError("this session was opened before: make a new one")
        loop = asyncio.get_running_loop()
        self._parts.guard.bind()
        self._opened: asyncio.Future[None] = loop.create_future()
        self._closing = asyncio.Event()
        # A task of its own, with no parent scope: whoever opens need not be who closes.
        self._task = loop.create_task(self._live(), name="nanobanana_async session")
        self._task.add_done_callback(lambda _: self._parts.guard.release())
        _HOSTS.add(self)
        try:
            await asyncio.shield(self._opened)
        except BaseException:
            await self.aclose()
            raise

    async def aclose(self) -> None:
        """Close everything that was opened, in the host's task; idempotent, and done when it returns or raises."""
        self._parts.guard.check()
        self.closed = True
        if self._task is None:
            return
        self._closing.set()
        if not self._opened.done():  # an opening that hangs is not waited for
            self._task.cancel()
        cancelled: asyncio.CancelledError | None = None
        with anyio.CancelScope(shield=True):
            while not self._task.done():
                try:
                    await asyncio.wait([self._task])
                except asyncio.CancelledError as error:  # a native cancel does not know anyio's shield
                    cancelled = error
        if not self._opened.done():  # it was cancelled before its first step
            self._opened.set_exception(_closed_while_opening())
        if cancelled is not None:
            raise cancelled
        if not self._task.cancelled():
            self._task.result()

    def lost(self) -> None:
        """Say that the session is gone and was not closed; once, clearly."""
        if self._task is not None and not (self.closed or self._parts.guard.inherited):
            self.closed = True
            self._warn()

    def disown(self) -> None:
        """Leave everything that is open to the parent; called in a child process right after the fork."""
        if self._parts.guard.inherited:
            if self.engine is not None:
                self.engine.runner.disown()
            self._parts.disown()

    def _warn(self) -> None:
        warnings.warn(
            f"{self._name} was never closed: use 'async with Session(...)', or await session.aclose()",
            ResourceWarning,
            stacklevel=3,
        )

    async def _live(self) -> None:
        try:
            async with AsyncExitStack() as stack:
                for part in (self._parts.ledger, self._parts.transport, self._parts.downloads):
                    await part.open()
                    stack.push_async_callback(part.aclose)
                engine = self.engine = self._parts.engine()
                await self._work(engine)
        except BaseException as error:
            stray = isinstance(error, asyncio.CancelledError) and not cancel_requested()
            failure = NanoBananaError(_STRAY) if stray else error
            if self._opened.done() and stray:
                raise failure from error
            if self._opened.done():
                raise
            self._opened.set_exception(_closed_while_opening() if self._closing.is_set() else failure)
        finally:
            if self._abandoned:  # here, where all is closed: a warning may be an error
                self._warn()

    async def _work(self, engine: Engine) -> None:
        async with anyio.create_task_group() as group:
            engine.runner.start(group)
            self._opened.set_result(None)
            try:
                await self._closing.wait()
            except asyncio.CancelledError:  # the event loop ends around us
                self._abandoned, self.closed = not (self.closed or self._parts.guard.inherited), True
                raise
            finally:
                if not self._parts.guard.inherited:
                    with anyio.CancelScope(shield=True):
                        await engine.runner.aclose(self._parts.timeouts.close_s)
                    engine.runner.dismiss()
                group.cancel_scope.cancel()


_STRAY = "the session's ledger or transport was cancelled from within while it was being opened or closed"

_HOSTS: WeakSet[Host] = WeakSet()
"""Those of the sessions that were opened. A forked child has copies of them, and their sockets are its parent's."""


def _disown_all() -> None:
    for host in list(_HOSTS):
        host.disown()


if hasattr(os, "register_at_fork"):  # pragma: no branch - there is no fork on Windows
    os.register_at_fork(after_in_child=_disown_all)


def _closed_while_opening() -> SessionClosed:
    return SessionClosed("the session was closed while it was being opened")
