"""Replies of API Mall and defapi, for tests that script a gateway."""

import json
from collections.abc import Callable, Iterable
from datetime import timedelta
from email.utils import format_datetime
from typing import Any

from nanobanana_async.gateways.contract import HttpRequest, HttpResponse
from nanobanana_async.testing import EPOCH, FakeTransport, Reply

Step = Reply | Callable[[HttpRequest], Reply]


def json_reply(status: int, body: Any, **headers: str) -> HttpResponse:
    return HttpResponse(status=status, headers=headers, body=json.dumps(body).encode())


def created(task_id: str = "img_1", cost: int = 8) -> HttpResponse:
    data = {"task_id": task_id, "credits_used": cost, "remaining_credits": 100, "model": "nano-banana-pro"}
    return json_reply(200, {"success": True, "data": data, "request_id": "req_1"})


def refused(status: int, code: str = "no", message: str = "No", **headers: str) -> HttpResponse:
    body = {"success": False, "error": {"code": code, "message": message}, "request_id": "req_9"}
    return json_reply(status, body, **headers)


def task(status: str, task_id: str = "img_1", **facts: Any) -> HttpResponse:
    return json_reply(
        200, {"success": True, "data": {"task_id": task_id, "status": status, **facts}, "request_id": "req_2"}
    )


def completed(task_id: str = "img_1", url: str = "https://cdn.example/a.png") -> HttpResponse:
    return task("completed", task_id, primary_url=url, credits_used=8, credits_refunded=0)


def past_task(task_id: str, created_s: float, **facts: Any) -> dict[str, Any]:
    """Return what API Mall's history says of a task, created so many seconds after `EPOCH`: it shows whole ones."""
    created_at = (EPOCH + timedelta(seconds=int(created_s))).isoformat()
    known = {"task_id": task_id, "model": "nano-banana-pro", "created_at": created_at}
    return {**known, "status": "processing", "credits_used": 8, **facts}


def history_page(
    tasks: Iterable[dict[str, Any]], sent_s: float | None, *, limit: int | None = 50, **headers: str
) -> HttpResponse:
    """Return the first page of API Mall's history.

    `sent_s` is when it was sent, in seconds after `EPOCH`, `limit` how many tasks it may have. None: it does not say.
    """
    if sent_s is not None:
        headers = {"date": format_datetime(EPOCH + timedelta(seconds=int(sent_s)), usegmt=True), **headers}
    pages = {} if limit is None else {"page": 1, "limit": limit}
    return json_reply(200, {"success": True, "data": {"items": list(tasks), **pages}}, **headers)


def defapi_created(task_id: str = "ta1") -> HttpResponse:
    return json_reply(200, {"code": 0, "message": "ok", "data": {"task_id": task_id}})


def defapi_done(task_id: str = "ta1", image: str = "https://cdn.example/a.png") -> HttpResponse:
    data = {"task_id": task_id, "status": "success", "result": [{"image": image}], "consumed": "0.500000"}
    return json_reply(200, {"code": 0, "message": "ok", "data": data})


def in_turn(creates: list[Step], queries: list[Step]) -> Callable[[HttpRequest], Reply]:
    """Answer creates and queries from their own list, in order; the last of each repeats."""
    left = {"POST": list(creates), "GET": list(queries)}

    def answer(request: HttpRequest) -> Reply:
        steps = left[request.method]
        step = steps.pop(0) if len(steps) > 1 else steps[0]
        return step(request) if callable(step) else step

    return answer


def scripted_creates(*creates: Step) -> FakeTransport:
    """Answer creates in turn; the first poll finds the job running, every later one completed."""
    return FakeTransport(in_turn([*creates], [task("processing"), completed()]))
