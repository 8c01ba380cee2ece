"""A session that is called from threads without an event loop."""

import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from nanobanana_async import Budget, ConfigurationError, InvalidRequest, JobWithdrawn, Session, SessionClosed
from nanobanana_async.events import CreateFailed, Event
from nanobanana_async.session_portal import portal
from nanobanana_async.testing import FakeTransport
from tests.support.fakes import FakeGateway, apimall_now
from tests.support.replies import refused

WITHIN_S = 20.0


def opened(gateway: FakeGateway) -> Session:
    return apimall_now(FakeTransport(gateway.answer))


def test_threads_share_one_session_and_pay_once_for_a_key() -> None:
    gateway = FakeGateway(job_s=0.0)
    with portal(opened(gateway)) as images, ThreadPoolExecutor(20) as threads:
        calls = [threads.submit(images.generate, f"fox {n % 5}", idempotency_key=f"key-{n % 5}") for n in range(40)]
        tasks = {call.result(WITHIN_S).task_id for call in calls}
    assert (len(tasks), gateway.sold) == (5, 5)


def test_errors_are_those_of_the_session() -> None:
    with portal(opened(FakeGateway(job_s=0.0))) as images:
        with pytest.raises(InvalidRequest):
            images.generate("")
        with pytest.raises(AttributeError, match=r"portal\.call\(portal\.session\.stats"):
            images.stats  # noqa: B018


def test_batch_yields_its_outcomes_to_a_plain_loop() -> None:
    gateway = FakeGateway(job_s=0.0)
    with portal(opened(gateway)) as images:
        outcomes = list(images.generate_many(["a fox", "an owl", "a crow"], ordered=True))
    assert [outcome.error for outcome in outcomes] == [None] * 3
    assert gateway.sold == 3


def test_budget_is_counted_for_a_plain_thread() -> None:
    with portal(opened(FakeGateway(job_s=0.0))) as images:
        images.generate("a fox", budget=Budget(name="alice", max_credits=50))
        assert images.budgets()["alice"].left < 50


def test_job_is_awaited_by_call() -> None:
    with portal(opened(FakeGateway(job_s=0.0))) as images:
        job = images.submit("a fox")
        assert images.call(job.result).task_id == "t1"


def test_thread_that_stops_waiting_withdraws_an_unsent_job() -> None:
    is_refused = threading.Event()

    def observe(event: Event) -> None:
        if isinstance(event, CreateFailed):  # the main thread waits for the job, and no create is in flight
            is_refused.set()

    def interrupt() -> None:
        is_refused.wait(30.0)
        signal.pthread_kill(main.ident or 0, signal.SIGINT)

    transport = FakeTransport(lambda _: refused(429, "rate_limited", "Slow down", **{"retry-after": "1000"}))
    main = threading.main_thread()
    assert threading.current_thread() is main
    with portal(apimall_now(transport, observers=[observe])) as images:
        interrupting = threading.Thread(target=interrupt)
        interrupting.start()
        with pytest.raises(KeyboardInterrupt):
            images.generate("a fox", idempotency_key="order-1")
        interrupting.join()
        job = images.job("order-1")
        assert job is not None
        with pytest.raises(JobWithdrawn):
            images.call(job.result)
    assert len(transport.creates) == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on Windows")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_portal_is_refused_in_a_forked_process() -> None:
    with portal(opened(FakeGateway())) as images:
        if not (child := os.fork()):
            code = 1
            try:
                images.generate("a fox")
            except ConfigurationError as error:
                code = 0 if "open one in each worker process" in str(error) else 2
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_closed_portal_is_named() -> None:
    with portal(opened(FakeGateway())) as images:
        pass
    with pytest.raises(SessionClosed, match="the portal of the session is closed"):
        images.generate("a fox")


async def test_event_loop_is_not_blocked() -> None:
    with pytest.raises(ConfigurationError, match="this thread runs an event loop"), portal(opened(FakeGateway())):
        pass


def test_class_instead_of_a_session_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="not the class Session"), portal(Session):  # type: ignore[arg-type]
        pass
