"""How much of a task is done, where a gateway says so: percent, shares, and what says nothing."""

import json
import math
from decimal import Decimal
from typing import Any

from nanobanana_async.gateways import ApiMall, DefApi, HttpResponse
from nanobanana_async.gateways.progress import parse_progress
from nanobanana_async.jobs import JobState
from tests.support.rows import each_row

MALL, DEFAPI = ApiMall(api_key="sk-1234567890abcdef"), DefApi(api_key="dk-1234567890abcdef")


@each_row(
    ("stated", "share"),
    [
        *((45, 0.45), ("45%", 0.45), (" 45 % ", 0.45), ("45", 0.45), (0.45, 0.45), (Decimal("0.45"), 0.45)),
        *((Decimal("45.5"), 0.455), (100, 1.0), ("100%", 1.0), (0, 0.0), ("0%", 0.0), (2, 0.02), (99.9, 0.999)),
        *(("1%", 0.01), ("0.5%", 0.005), ("1.5", 0.015)),
    ],
)
def test_numbers_above_one_are_percent_and_below_one_shares(stated: object, share: float) -> None:
    found = parse_progress(stated)
    assert found is not None
    assert math.isclose(found, share)


@each_row(
    "stated",
    [
        *(None, True, False, [45], {"percent": 45}, "", "much", "45 of 100", "-5%", "1e2", "٤٥", "9" * 400),
        *(1, 1.0, "1", "1.0"),
        *(-0.1, 100.1, 101, "101%", float("nan"), float("inf"), Decimal("NaN"), Decimal("sNaN"), Decimal("1e999")),
        10**400,
    ],
)
def test_what_is_no_share_says_nothing(stated: object) -> None:
    assert parse_progress(stated) is None


@each_row("status", ["processing", "Processing ", "in_progress"])
@each_row(("stated", "share"), [(45, 0.45), ("45%", 0.45), (0.45, 0.45), (None, None), ("soon", None), (1e400, None)])
def test_poll_of_either_gateway_brings_progress(status: str, stated: Any, share: float | None) -> None:
    data = {"task_id": "t-1", "status": status, "progress": stated}
    mall = MALL.read_query(HttpResponse(status=200, body=json.dumps({"success": True, "data": data}).encode()))
    other = DEFAPI.read_query(HttpResponse(status=200, body=json.dumps({"code": 0, "data": data}).encode()))
    for seen in (mall, other):
        assert (seen.state, seen.progress) == (JobState.RUNNING, share)


def test_callback_brings_progress() -> None:
    body = json.dumps({"task_id": "t-1", "status": "in_progress", "progress": "45%"}).encode()
    assert DEFAPI.read_callback(body).progress == 0.45
