"""The history of tasks, and the balances of both gateways."""

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

from nanobanana_async.emulator import EmulatedRequest, EmulatedResponse, RandomFault, faults
from tests.emulator.calling import HEADERS, Caller, body_of
from tests.support.rows import each_row


def get(caller: Caller, path: str, **query: str) -> EmulatedResponse:
    return caller.simulator.handle(caller.now, EmulatedRequest("GET", path, query, HEADERS))


def history(caller: Caller, **query: str) -> Any:
    response = get(caller, "/api/v1/images/history", **query)
    assert response.status == 200
    return body_of(response)["data"]


def listed(caller: Caller, **query: str) -> list[str]:
    return [item["task_id"] for item in history(caller, **query)["items"]]


def test_history_lists_tasks_newest_first_page_by_page() -> None:
    caller = Caller()
    tasks = []
    for caller.now in (0.0, 1.0, 2.0):
        tasks.append(caller.bought())
    assert listed(caller) == tasks[::-1]
    assert [listed(caller, page=page, limit="2") for page in ("1", "2", "3")] == [tasks[:0:-1], tasks[:1], []]
    assert {name: history(caller)[name] for name in ("page", "limit")} == {"page": 1, "limit": 20}


def test_item_of_the_history_has_the_fields_of_the_contract() -> None:
    caller = Caller(credits=100)
    tasks = caller.bought(), caller.bought("a [fail] fox")
    caller.bought_defapi()
    caller.now = 10.0
    failed, completed = history(caller)["items"]
    assert (completed["task_id"], failed["task_id"]) == tasks
    image_url = completed.pop("image_url")
    assert caller.fetch(image_url).status == 200
    assert completed == {
        "task_id": tasks[0],
        "model": "nano-banana-pro",
        "source": "api",
        "created_at": "2026-01-01T00:00:00.000Z",
        "status": "completed",
        "credits_used": 8,
        "credits_refunded": 0,
        "completed_at": "2026-01-01T00:00:10.000Z",
    }
    assert (failed["status"], failed["image_url"], failed["credits_refunded"]) == ("failed", None, 8)


@each_row("query", [{"page": "0"}, {"page": "x"}, {"limit": "0"}, {"limit": "51"}, {"limit": ""}, {"limit": "-1"}])
def test_wrong_page_or_limit_is_400(query: dict[str, str]) -> None:
    response = get(Caller(), "/api/v1/images/history", **query)
    assert (response.status, body_of(response)["error"]["code"]) == (400, "invalid_request")


def test_task_is_listed_only_after_the_delay_of_the_history() -> None:
    caller = Caller(history_delay_s=30.0)
    task = caller.bought()
    caller.now = 29.9
    assert listed(caller) == []
    assert caller.poll(task).status == 200
    caller.now = 30.0
    assert listed(caller) == [task]


@pytest.mark.parametrize(("step", "created_at"), [(0, "10.600Z"), (1, "10.000Z")])
def test_history_may_round_times_of_creation_down(step: int, created_at: str) -> None:
    start = datetime(2026, 1, 1, microsecond=700_000, tzinfo=UTC)
    caller = Caller(history_time_step_s=step, started_at=start)
    caller.now = 9.9
    caller.bought()
    assert history(caller)["items"][0]["created_at"] == f"2026-01-01T00:00:{created_at}"


def test_foreign_tasks_are_listed_and_queried_but_not_counted() -> None:
    caller = Caller(credits=100, job_limit=1)
    own = caller.bought()
    past, future = caller.simulator.add_foreign_tasks(0.0, [-60.0, 60.0], duration_s=5.0)
    assert listed(caller) == [own, past]
    assert (caller.polled(past)["status"], caller.poll(future).status) == ("completed", 404)
    caller.now = 70.0
    assert listed(caller) == [future, own, past]
    assert [facts.task_id for facts in caller.simulator.jobs(70.0)] == [own]
    stats = caller.stats()
    assert (stats.creates_accepted, stats.ended, stats.unpolled) == (1, 1, 1)
    assert stats.credits_remaining == 92


@each_row(("key", "status"), [("", 401), ("Bearer wrong", 401), ("Bearer unapproved-key", 403)])
@each_row("path", ["/api/v1/images/history", "/api/v1/account/balances"])
def test_history_and_balance_need_the_key(path: str, key: str, status: int) -> None:
    headers = {"Authorization": key}
    assert Caller().simulator.handle(0.0, EmulatedRequest("GET", path, {}, headers)).status == status


def test_balance_of_defapi_needs_the_key() -> None:
    response = Caller().simulator.handle(0.0, EmulatedRequest("GET", "/api/user", {}, {}))
    assert (response.status, body_of(response)["code"]) == (401, 401)


def test_history_and_balances_count_as_requests() -> None:
    caller = Caller(requests_per_minute=3)
    paths = ("/api/v1/images/history", "/api/v1/account/balances", "/api/user")
    assert [get(caller, path).status for path in paths] == [200] * 3
    assert [get(caller, path).status for path in paths] == [429] * 3
    assert caller.stats().refusals_429 == {"queries": 3}
    assert caller.stats().requests == {"apimall.history": 2, "apimall.balance": 2, "defapi.balance": 2}


def test_history_may_lose_its_answer() -> None:
    caller = Caller(random_faults=[RandomFault(1.0, faults.error(503), "apimall.history")])
    assert get(caller, "/api/v1/images/history").status == 503
    assert caller.poll(caller.bought()).status == 200


def test_balances_follow_charges_and_refunds() -> None:
    caller = Caller(credits=100, web_credits=Decimal(7))
    caller.bought()
    caller.bought("a [fail] fox")
    assert body_of(get(caller, "/api/v1/account/balances"))["data"] == {"credits": 91, "api_credits": 84}
    assert body_of(get(caller, "/api/user")) == {"code": 0, "message": "ok", "data": {"credit": 84}}
    caller.now = 10.0
    assert body_of(get(caller, "/api/v1/account/balances"))["data"]["api_credits"] == 92
    assert body_of(get(caller, "/api/user"))["data"]["credit"] == 92


def test_relative_names_its_balance_otherwise() -> None:
    caller = Caller(credits=100, web_credits=Decimal(7), balance_fields="web_credits")
    assert body_of(get(caller, "/api/v1/account/balances"))["data"] == {"web_credits": 7, "api_credits": 100}


def test_balance_of_an_unlimited_account_is_large() -> None:
    caller = Caller()
    assert body_of(get(caller, "/api/v1/account/balances"))["data"]["api_credits"] > 100_000
    assert body_of(get(caller, "/api/user"))["data"]["credit"] > 100_000


def test_separate_accounts_have_separate_balances() -> None:
    caller = Caller(credits=100, separate_accounts=True)
    caller.bought()
    assert body_of(get(caller, "/api/v1/account/balances"))["data"]["api_credits"] == 92
    assert body_of(get(caller, "/api/user"))["data"]["credit"] == 100
