"""The create endpoint of both gateways: every check in order, then the purchase."""

from collections.abc import Mapping

from nanobanana_async.emulator import apimall, defapi
from nanobanana_async.emulator.replies import JSON, refuse, unauthorized
from nanobanana_async.emulator.state import State
from nanobanana_async.emulator.tasks import Order, Refusal, Task
from nanobanana_async.emulator.values import Answer, Gateway

BLOCKED_MARKER = "[blocked]"


def create(
    state: State,
    now: float,
    gateway: Gateway,
    headers: Mapping[str, str],
    body: bytes,
    *,
    read: bool,
) -> Answer:
    """Return the answer to a create; `read` says whether the caller gets to see it."""
    outcome = _decide(state, now, gateway, headers, body)
    if isinstance(outcome, Refusal):
        state.tally.refused[outcome.status] += 1
        if outcome.kind is not None:
            state.tally.refusals_429[outcome.kind] += 1
        return refuse(state, now, gateway, outcome)
    state.tally.lost += not read
    said = apimall.created(outcome) if gateway == "apimall" else defapi.created(outcome)
    return Answer(200, JSON, said)


def _decide(state: State, now: float, gateway: Gateway, headers: Mapping[str, str], body: bytes) -> Task | Refusal:
    """Return the job, new or of a repeated key, or the first reason against it.

    A refusal leaves nothing behind: its key is as good as never seen.
    """
    if refusal := unauthorized(state, gateway, headers, create=True):
        return refusal
    if refusal := state.accounts[gateway].over_rate(now, create=True):
        return refusal
    read_order = apimall.read_order if gateway == "apimall" else defapi.read_order
    order = read_order(headers, body)
    if isinstance(order, Refusal):
        return order
    key = headers.get("idempotency-key") or None
    if gateway == "apimall" and key is not None:
        known = state.keys.look(now, key, order.canonical)
        if isinstance(known, Task):
            state.tally.replays += 1
        if known is not None:
            return known
    if refusal := _refuse_order(state, gateway, order):
        return refusal
    return state.accept(now, gateway, key, order)


def _refuse_order(state: State, gateway: Gateway, order: Order) -> Refusal | None:
    if BLOCKED_MARKER in order.prompt:
        return apimall.BLOCKED if gateway == "apimall" else defapi.BLOCKED
    account = state.accounts[gateway]
    return account.too_poor(state.price(gateway, order)) or account.over_limit(order)
