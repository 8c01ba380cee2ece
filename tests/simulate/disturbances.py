"""Faults of a request between a process and the gateway, both ways, drawn from the seed."""

import random
from collections.abc import Callable

from attrs import frozen

from nanobanana_async.emulator.faults import Fault, cut, error, garbage, html
from tests.simulate.plan import LATEST_S, Plan


@frozen(kw_only=True)
class Disturbance:
    """What happens to one request: on its way, at the gateway, and on the way back."""

    name: str = "-"
    unsent: bool = False
    lost: bool = False
    """It never arrives."""
    out_s: float = 0.0
    fault: Fault | None = None
    back_s: float = 0.0
    answer_lost: bool = False
    other_answer: bool = False
    """A cache on the way gives the answer of an earlier create, if there was one."""
    hangs: bool = False
    """A lost request or answer is noticed by the timeout only."""


FINE = Disturbance()


def away(how: str) -> Disturbance:
    """Return the fault of every request during an outage of this kind."""
    match how:
        case "unreachable":
            return Disturbance(name="unreachable", unsent=True)
        case "silent":
            return Disturbance(name="silent", lost=True, hangs=True)
        case "proxy":
            return Disturbance(name="proxy 502", fault=html(502))
        case "busy":
            return Disturbance(name="busy", fault=error(503))
        case _:
            return Disturbance(name="key revoked", fault=error(401))


Draw = Callable[[random.Random, Plan], Disturbance]


def _lost(draw: random.Random, _: Plan) -> Disturbance:
    return Disturbance(name="lost on the way", lost=True, hangs=draw.random() < 0.3)


def _answer_lost(draw: random.Random, _: Plan) -> Disturbance:
    return Disturbance(name="answer lost", answer_lost=True, hangs=draw.random() < 0.3)


def _cut(draw: random.Random, _: Plan) -> Disturbance:
    return Disturbance(name="answer cut", fault=cut(sent_share=draw.random()))


def _other_answer(_: random.Random, __: Plan) -> Disturbance:
    return Disturbance(name="the answer of another create", other_answer=True)


def _late_answer(draw: random.Random, plan: Plan) -> Disturbance:
    return Disturbance(
        name="late answer", back_s=draw.choice((3.0, plan.timeouts.create_s * 0.9, plan.timeouts.create_s + 5))
    )


def _late_work(draw: random.Random, _: Plan) -> Disturbance:
    return Disturbance(name="late work", out_s=draw.uniform(1.0, LATEST_S))


def _unsent(_: random.Random, __: Plan) -> Disturbance:
    return Disturbance(name="unsent", unsent=True)


def _trouble(draw: random.Random, _: Plan) -> Disturbance:
    status, processed = draw.choice((500, 503)), draw.random() < 0.5
    return Disturbance(name="trouble", fault=error(status, processed=processed, envelope=draw.random() < 0.7))


def _proxy(draw: random.Random, _: Plan) -> Disturbance:
    return Disturbance(name="proxy", fault=html(draw.choice((200, 502, 504)), processed=draw.random() < 0.5))


def _garbage(draw: random.Random, _: Plan) -> Disturbance:
    return Disturbance(name="garbage", fault=garbage(draw.choice((200, 503)), processed=draw.random() < 0.5))


def _limited(draw: random.Random, _: Plan) -> Disturbance:
    code = draw.choice(("too_many_concurrent_jobs", "rate_limit_exceeded", "too_many_requests"))
    wait_s = draw.choice((None, "1", "20", "200"))
    return Disturbance(name=code, fault=error(429, code=code, retry_after=wait_s))


def _refused(draw: random.Random, _: Plan) -> Disturbance:
    return Disturbance(name="refused", fault=error(draw.choice((401, 402, 402, 451, 403))))


def _at_work(draw: random.Random, plan: Plan) -> Disturbance:
    if not plan.keyed:
        return _refused(draw, plan)
    return Disturbance(name="key at work", fault=error(409))


CREATES: tuple[Draw, ...] = (
    _lost,
    _answer_lost,
    _answer_lost,
    _cut,
    _other_answer,
    _late_answer,
    _late_work,
    _unsent,
    _trouble,
    _proxy,
    _garbage,
    _limited,
    _limited,
    _refused,
    _refused,
    _at_work,
)
QUERIES: tuple[Draw, ...] = (_lost, _answer_lost, _unsent, _trouble, _proxy, _garbage, _limited)
REFUSALS_OF_CREATES: tuple[Draw, ...] = (_limited, _refused)
