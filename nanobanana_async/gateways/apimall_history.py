"""API Mall's history, the list of the account's tasks. Its relatives name some fields differently.

A task without an id or a time can't be skipped: it could be the one that is looked for. So such a page is an error.
"""

from collections.abc import Mapping
from typing import Any

from nanobanana_async.gateways.apimall_pages import first_present, states_further_pages
from nanobanana_async.gateways.capabilities import HistoryPage, PastTask
from nanobanana_async.gateways.contract import MIB, HttpRequest
from nanobanana_async.gateways.images import parse_image_url
from nanobanana_async.gateways.parsing import GatewayAnswer, parse_decimal, parse_task_id, parse_time, parse_word
from nanobanana_async.gateways.rate_limits import http_date

PAGE_SIZE = 50
"""The most that the reference allows."""

_HEADERS = {"Accept": "application/json", "Cache-Control": "no-cache"}
_LISTS = ("items", "tasks", "images", "records", "list", "history", "results", "data")
_TASK_IDS = ("task_id", "taskId", "id")
_TIMES = ("created_at", "createdAt", "created", "create_time")
_IMAGES = ("image_url", "imageUrl", "primary_url", "url")


def build_history(base_url: str, page: int) -> HttpRequest:
    """Return the request for a page, counted from 1."""
    url = f"{base_url}/api/v1/images/history?page={page}&limit={PAGE_SIZE}"
    return HttpRequest(method="GET", url=url, headers=_HEADERS, max_answer_bytes=4 * MIB)


def parse_history(answer: GatewayAnswer, envelope: Mapping[str, Any]) -> HistoryPage:
    """Return the tasks of a page; raise `UnexpectedResponse` if there is no list, or a task without an id or a time."""
    age = answer.headers.get("age", "0").strip()
    if age.strip("0"):
        raise answer.unexpected_response(f"the history is a copy of a cache, {age[:20]} seconds old")
    data = envelope.get("data")
    facts = data if isinstance(data, Mapping) else envelope
    items = data if isinstance(data, list) else first_present(facts, _LISTS)
    if not isinstance(items, list):
        raise answer.unexpected_response("the history has no list of tasks")
    tasks = [_parse_task(answer, item, number) for number, item in enumerate(items)]
    more = states_further_pages(facts, len(items))
    is_last = not (items if more is None else more)  # only an empty page is the last one for certain
    return HistoryPage(tasks, is_last, answered_at=http_date(answer.headers.get("date", "")))


def _parse_task(answer: GatewayAnswer, item: object, number: int) -> PastTask:
    fields: Mapping[str, Any] = item if isinstance(item, Mapping) else {}
    created_at = parse_time(first_present(fields, _TIMES))
    if created_at is None:
        raise answer.unexpected_response(f"task {number + 1} of the history has no time of creation")
    try:
        known_as = parse_task_id(first_present(fields, _TASK_IDS))
    except ValueError as error:
        raise answer.unexpected_response(f"task {number + 1} of the history: {error}") from None
    return PastTask(
        task_id=known_as,
        created_at=created_at,
        model=parse_word(fields.get("model")),
        status=parse_word(fields.get("status")),
        image_url=_link(first_present(fields, _IMAGES)),
        credits_used=parse_decimal(first_present(fields, ("credits_used", "creditsUsed"))),
    )


def _link(value: object) -> str | None:
    """Return an http(s) link. An inline image is left out: the ledger does not store those."""
    try:
        link = parse_image_url(value)
    except ValueError:
        return None
    return None if link is None or link.startswith("data:") else link
