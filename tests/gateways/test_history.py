"""The history of API Mall and its relatives: tasks, the last page, and answers that can't be used."""

import json
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

from nanobanana_async.errors import AuthenticationError, InvalidRequest, UnexpectedResponse
from nanobanana_async.gateways import ApiMall, DefApi, HttpResponse
from nanobanana_async.gateways.capabilities import HasHistory, HistoryPage, PastTask
from tests.support.rows import each_row

KEY = "mall-key-0123456789"
NOON = "2026-03-12T12:00:00.000Z"
ITEM = {
    "task_id": "img_1",
    "model": "nano-banana-pro",
    "source": "api",
    "created_at": NOON,
    "status": "completed",
    "image_url": "https://cdn.example/1.png",
    "credits_used": 8,
    "credits_refunded": 0,
    "completed_at": "2026-03-12T12:01:00.000Z",
}
TASK = PastTask(
    task_id="img_1",
    created_at=datetime(2026, 3, 12, 12, tzinfo=UTC),
    model="nano-banana-pro",
    status="completed",
    image_url="https://cdn.example/1.png",
    credits_used=Decimal(8),
)

mall: ApiMall = ApiMall(api_key=KEY)


def page_of(data: Any, **headers: str) -> HistoryPage:
    body = json.dumps({"success": True, "data": data, "request_id": "req_1"}).encode()
    return mall.read_history(HttpResponse(status=200, headers=headers, body=body))


def item(**changes: Any) -> dict[str, Any]:
    return {name: value for name, value in {**ITEM, **changes}.items() if value != "absent"}


def test_only_api_mall_has_a_history() -> None:
    assert isinstance(mall, HasHistory)
    assert not isinstance(DefApi(api_key=KEY), HasHistory)
    assert mall.history_delay_s == 40.0


def test_request_for_a_page_is_a_plain_get() -> None:
    request = mall.build_history(3)
    assert (request.method, request.body) == ("GET", None)
    assert request.url == "https://gateway.apimall.ai/api/v1/images/history?page=3&limit=50"


def test_request_asks_caches_to_let_it_pass() -> None:
    assert mall.build_history(1).headers["Cache-Control"] == "no-cache"


@pytest.mark.parametrize("age", ["1", "86400", "soon"])
def test_copy_of_a_cache_is_refused(age: str) -> None:
    with pytest.raises(UnexpectedResponse, match=f"a copy of a cache, {age} seconds old"):
        page_of({"items": [ITEM]}, age=age)


@pytest.mark.parametrize("age", ["", "0", " 0 "])
def test_age_of_nothing_is_no_copy(age: str) -> None:
    assert page_of({"items": [ITEM]}, age=age).tasks == [TASK]


def test_page_has_the_tasks_and_the_date_of_the_answer() -> None:
    page = page_of({"items": [ITEM], "page": 1, "limit": 50}, date="Thu, 12 Mar 2026 12:05:00 GMT")
    assert page == HistoryPage([TASK], is_last=True, answered_at=datetime(2026, 3, 12, 12, 5, tzinfo=UTC))


@pytest.mark.parametrize(
    "data",
    [
        [ITEM],
        {"tasks": [{**item(task_id="absent", created_at="absent"), "taskId": "img_1", "createdAt": NOON}]},
        {"list": [{**item(task_id="absent", image_url="absent"), "id": "img_1", "url": "https://cdn.example/1.png"}]},
        {"items": [item(created_at=1773316800)]},
    ],
    ids=["a list", "camel case", "other names", "epoch time"],
)
def test_history_of_a_relative_is_read(data: Any) -> None:
    assert list(page_of(data).tasks) == [TASK]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model", 7.5),
        ("status", ""),
        ("image_url", "no link"),
        ("image_url", "data:image/png;base64,aGk="),
        ("image_url", None),
    ],
)
def test_optional_field_that_does_not_fit_is_left_out(field: str, value: Any) -> None:
    (task,) = page_of({"items": [item(**{field: value})]}).tasks
    assert getattr(task, field) is None


@each_row(
    ("data", "why"),
    [
        ({"page": 1}, "no list of tasks"),
        ({"items": {"0": ITEM}}, "no list of tasks"),
        ({"items": [item(created_at="absent")]}, "task 1 of the history has no time"),
        ({"items": [ITEM, item(created_at="soon")]}, "task 2 of the history has no time"),
        ({"items": [item(task_id="absent")]}, "task 1 of the history: a task id is text"),
        ({"items": ["img_1"]}, "task 1 of the history has no time"),
    ],
)
def test_page_with_a_task_that_cannot_be_read_is_an_error(data: Any, why: str) -> None:
    with pytest.raises(UnexpectedResponse, match=why):
        page_of(data)


@each_row(
    ("facts", "is_last"),
    [
        ({"limit": 1}, False),
        ({"limit": 2}, True),
        ({"per_page": 2}, True),
        ({}, False),  # a page of unknown length: another one may follow
        ({"has_more": False}, True),
        ({"has_more": True, "limit": 50}, False),
        ({"page": 1, "total_pages": 1}, True),
        ({"page": 1, "total_pages": 2, "limit": 50}, False),
        ({"pagination": {"page": 2, "totalPages": 2}}, True),
        ({"limit": "many"}, False),
    ],
)
def test_last_page_is_recognised(facts: dict[str, Any], is_last: bool) -> None:
    assert page_of({"items": [ITEM], **facts}).is_last is is_last


def test_empty_page_is_the_last() -> None:
    assert page_of({"items": []}).is_last


@pytest.mark.parametrize("date", ["", "yesterday", "x" * 5000])
def test_date_that_cannot_be_read_is_left_out(date: str) -> None:
    assert page_of({"items": []}, date=date).answered_at is None


@pytest.mark.parametrize(
    ("status", "kind"), [(401, AuthenticationError), (200, AuthenticationError), (400, InvalidRequest)]
)
def test_refusal_raises_its_error(status: int, kind: type[Exception]) -> None:
    body = json.dumps({"success": False, "error": {"code": "invalid_api_key", "message": "no"}}).encode()
    with pytest.raises(kind):
        mall.read_history(HttpResponse(status=status, body=body))
