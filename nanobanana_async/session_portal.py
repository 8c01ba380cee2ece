"""Call a session from code that has no event loop: Celery, RQ, Dask, Spark, plain threads.

The session lives in an event loop in a thread of its own (anyio's blocking portal). Any number of threads may call it
at once, and share its limits, its keys and its connections.
"""

import functools
import os
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import CancelledError, Future
from contextlib import contextmanager
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

from anyio.from_thread import BlockingPortal, start_blocking_portal

from nanobanana_async.batch.outcome import Outcome
from nanobanana_async.errors import ConfigurationError, SessionClosed
from nanobanana_async.loop_guard import running_loop_or_none
from nanobanana_async.session import Session
from nanobanana_async.validators import check_kind

P = ParamSpec("P")
T = TypeVar("T")


def _blocking(
    method: Callable[Concatenate[Session, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate["SessionPortal", P], T]:
    """Return the method of `Session` as one that blocks its thread until the result is there."""

    @functools.wraps(method)
    def call(portal: "SessionPortal", *args: P.args, **kwargs: P.kwargs) -> T:
        return portal.call(method, portal.session, *args, **kwargs)

    return cast("Callable[Concatenate[SessionPortal, P], T]", call)


class SessionPortal:
    """A session whose methods block. They may be called from any thread of the process that opened it.

    The methods have the parameters and errors of the session's. A thread that stops waiting, by KeyboardInterrupt or by
    the time limit of a task queue, leaves its job as a cancelled caller of `generate` does.
    """

    def __init__(self, session: Session, portal: BlockingPortal) -> None:
        self.session = session
        """The session, for `call`: its own methods must not be called from other threads."""
        self._portal = portal
        self._process = os.getpid()

    def __repr__(self) -> str:
        return f"<SessionPortal of {self.session!r}>"

    generate = _blocking(Session.generate)  # type: ignore[arg-type]  # mypy: `misspelt` could be `self`
    """`Session.generate`, which blocks."""
    submit = _blocking(Session.submit)  # type: ignore[arg-type]
    """`Session.submit`, which blocks."""
    job = _blocking(Session.job)
    """`Session.job`, which blocks."""
    attach = _blocking(Session.attach)
    """`Session.attach`, which blocks."""
    resume = _blocking(Session.resume)
    """`Session.resume`, which blocks."""
    resolve = _blocking(Session.resolve)
    """`Session.resolve`, which blocks."""
    reconcile = _blocking(Session.reconcile)
    """`Session.reconcile`, which blocks."""
    save = _blocking(Session.save)
    """`Session.save`, which blocks."""
    download = _blocking(Session.download)
    """`Session.download`, which blocks."""
    balance = _blocking(Session.balance)
    """`Session.balance`, which blocks."""
    budgets = _blocking(Session.budgets)
    """`Session.budgets`, which blocks."""

    def generate_many(self, requests: Any, **options: Any) -> Iterator[Outcome]:
        """Yield the outcomes of a batch, as `async for outcome in session.generate_many(...)` does.

        The input is read in the event loop's thread. Closing the iterator, or leaving a `for` loop early and dropping
        it, ends the batch: what is unsent is not bought.
        """

        async def begin() -> Any:
            return self.session.generate_many(requests, **options)

        async def take(batch: Any) -> Outcome | None:
            return await anext(batch, None)

        batch = self.call(begin)
        try:
            while (outcome := self.call(take, batch)) is not None:
                yield outcome
        finally:
            self.call(batch.aclose)

    def call(self, function: Callable[P, Coroutine[Any, Any, T]], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run an async function in the session's event loop and return its result: `call(job.result)`."""
        self._check_caller()
        try:
            future: Future[T] = self._portal.start_task_soon(functools.partial(function, *args, **kwargs))
        except RuntimeError as error:
            raise SessionClosed("the portal of the session is closed") from error
        try:
            return future.result()
        except CancelledError:
            raise SessionClosed("the portal of the session was closed before there was a result") from None
        except BaseException:
            future.cancel()  # no effect on a function that has raised
            raise

    def __getattr__(self, name: str) -> object:  # for type checkers no function, so that they refuse a call
        where = f"it is `portal.call(portal.session.{name}, ...)`" if hasattr(Session, name) else "nor has Session"
        raise AttributeError(f"SessionPortal has no {name}: {where}")

    def _check_caller(self) -> None:
        """Raise `ConfigurationError` for a call that would wait for ever, or block an event loop."""
        if os.getpid() != self._process:
            raise ConfigurationError(
                f"the portal was opened by process {self._process}, and this is a fork of it, process {os.getpid()},"
                " where its thread does not run: open one in each worker process (in Celery by the first task that"
                " runs there)"
            )
        if running_loop_or_none() is not None:
            raise ConfigurationError(
                "this thread runs an event loop, which a call of the portal would block: await the session's own"
                " methods there, or call the portal from another thread"
            )


@contextmanager
def portal(session: Session) -> Iterator[SessionPortal]:
    """Open a session in an event loop of its own thread, for callers without one; close both at the end.

    `with portal(Session(ApiMall.from_env(), ledger="jobs.sqlite")) as images: images.generate("a fox")`. Open one for
    each process and keep it: opened for each call, it would not know the account's limits. Closing does not wait for
    jobs: unfinished ones stay in the ledger.
    """
    check_kind("session", session, Session, "a Session that is not open yet")
    if running_loop_or_none() is not None:
        raise ConfigurationError("this thread runs an event loop: use 'async with Session(...)' there, and no portal")
    with start_blocking_portal() as blocking, blocking.wrap_async_context_manager(session):
        yield SessionPortal(session, blocking)
