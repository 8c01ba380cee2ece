"""What the gateways say about an account: API Mall's history of tasks, and the balances of both."""

import math
from collections.abc import Mapping
from datetime import timedelta
from email.utils import format_datetime

from nanobanana_async.emulator import apimall, defapi
from nanobanana_async.emulator.accounts import UNLIMITED_CREDITS, Refusal, Task, TaskState
from nanobanana_async.emulator.endpoints import JSON, admission_refusal, configured_word, refuse, urls_of
from nanobanana_async.emulator.messages import EmulatedResponse
from nanobanana_async.emulator.state import State

_MOST_PER_PAGE = 50


def history(state: State, now: float, headers: Mapping[str, str], query: Mapping[str, str]) -> EmulatedResponse:
    """Return a page of the tasks of API Mall, newest first."""
    if refusal := admission_refusal(state, now, "apimall", headers):
        return refuse(state, now, "apimall", refusal)
    page, limit = _whole(query.get("page", "1")), _whole(query.get("limit", "20"))
    if page is None or page < 1:
        return refuse(state, now, "apimall", Refusal(400, "invalid_request", "page must be an integer from 1"))
    if limit is None or not 1 <= limit <= _MOST_PER_PAGE:
        wrong = Refusal(400, "invalid_request", f"limit must be an integer between 1 and {_MOST_PER_PAGE}")
        return refuse(state, now, "apimall", wrong)
    listed_before = now - state.settings.history_delay_s
    tasks = [task for task in state.tasks.values() if task.gateway == "apimall" and task.created_at <= listed_before]
    tasks.sort(key=lambda task: (task.created_at, task.number), reverse=True)
    items = [_item(state, now, task) for task in tasks[(page - 1) * limit : page * limit]]
    data = {"items": items, "page": page, "limit": limit}
    body = apimall.encoded({"success": True, "data": data, "request_id": state.request_id()})
    sent_at = state.settings.started_at + timedelta(seconds=now)
    return EmulatedResponse(200, {**JSON, "Date": format_datetime(sent_at, usegmt=True)}, body)


def apimall_balance(state: State, now: float, headers: Mapping[str, str]) -> EmulatedResponse:
    """Return the credits of an account at API Mall: all of them, or as its relative names them."""
    if refusal := admission_refusal(state, now, "apimall", headers):
        return refuse(state, now, "apimall", refusal)
    left = state.accounts["apimall"].credits
    api_credits = UNLIMITED_CREDITS if left is None else apimall.number(left)
    web_credits = apimall.number(state.settings.web_credits)
    data = {"web_credits": web_credits, "api_credits": api_credits}
    if state.settings.balance_fields == "credits":
        data = {"credits": web_credits + api_credits, "api_credits": api_credits}
    body = apimall.encoded({"success": True, "data": data, "request_id": state.request_id()})
    return EmulatedResponse(200, JSON, body)


def defapi_balance(state: State, now: float, headers: Mapping[str, str]) -> EmulatedResponse:
    """Return the credits of an account at defapi."""
    if refusal := admission_refusal(state, now, "defapi", headers):
        return refuse(state, now, "defapi", refusal)
    left = state.accounts["defapi"].credits
    credit = UNLIMITED_CREDITS if left is None else apimall.number(left)
    return EmulatedResponse(200, JSON, defapi.encoded({"code": 0, "message": "ok", "data": {"credit": credit}}))


def _item(state: State, now: float, task: Task) -> dict[str, object]:
    task_state = task.state_at(now)
    ended = task_state in (TaskState.SUCCEEDED, TaskState.FAILED)
    started_at = state.settings.started_at
    urls = urls_of(state, now, task, task_state)
    return {
        "task_id": task.task_id,
        "model": task.request.model,
        "source": "api",
        "created_at": _created_at(state, task),
        "status": configured_word(state, apimall.status_word(task_state)),
        "image_url": urls[0] if urls else None,
        "credits_used": apimall.number(task.price),
        "credits_refunded": apimall.number(task.price) if task.refunded else 0,
        "completed_at": apimall.iso(started_at, task.ends_at) if ended else None,
    }


def _created_at(state: State, task: Task) -> str:
    started_at = state.settings.started_at
    if not state.settings.history_time_step_s:
        return apimall.iso(started_at, task.created_at)
    # In whole seconds of the day, not since the start of the emulator.
    fraction_s = started_at.microsecond / 1e6
    return apimall.iso(started_at, math.floor(task.created_at + fraction_s) - fraction_s)


def _whole(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else None
