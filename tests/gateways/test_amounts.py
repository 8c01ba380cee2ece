"""Amounts in any answer: numbers that are none, or that no one means, never hang, overflow or lose a job."""

from decimal import Decimal

import pytest

from nanobanana_async.errors import UnexpectedResponse
from nanobanana_async.gateways import ApiMall, DefApi, HttpResponse
from nanobanana_async.policy.prices import parse_credits
from tests.support.rows import each_row

mall = ApiMall(api_key="mall-key-0123456789")
defapi = DefApi(api_key="dk-0123456789abcdef")

LONG = "9" * 5000
SENSELESS = [
    *("1e999999999", "-1e999999999", "NaN", "Infinity", "-Infinity", "-1", "-0.5", LONG, f"0.{LONG}e{LONG}", "true"),
    *('"1e999999999"', '"-1e999999999"', '"NaN"', '"Infinity"', '"-1"', f'"{LONG}"', '"1e-999999999"', '"eight"'),
]


def ok(text: str) -> HttpResponse:
    return HttpResponse(status=200, body=text.encode())


@each_row("number", SENSELESS)
def test_senseless_price_is_unknown_in_a_create(number: str) -> None:
    data = f'"task_id": "t-1", "credits_used": {number}, "remaining_credits": {number}'
    accepted = mall.read_create(ok(f'{{"success": true, "data": {{{data}}}}}'))
    assert (accepted.task_id, accepted.credits_used, accepted.credits_remaining) == ("t-1", None, None)
    data = f'"task_id": "t-1", "consumed": {number}'
    assert defapi.read_create(ok(f'{{"code": 0, "data": {{{data}}}}}')).credits_used is None


@each_row("number", SENSELESS)
def test_senseless_cost_is_unknown_in_polls_and_callbacks(number: str) -> None:
    data = f'"task_id": "t-1", "status": "failed", "credits_used": {number}, "credits_refunded": {number}'
    seen = mall.read_query(ok(f'{{"success": true, "data": {{{data}}}}}'))
    assert (seen.task_id, seen.credits_used, seen.credits_refunded) == ("t-1", None, None)
    body = f'{{"code": 0, "data": {{"task_id": "t-1", "status": "failed", "consumed": {number}}}}}'
    assert defapi.read_query(ok(body)).credits_used is None
    assert defapi.read_callback(body.encode()).credits_used is None


@each_row("number", SENSELESS)
def test_senseless_cost_is_unknown_in_the_history(number: str) -> None:
    task = f'"task_id": "t-1", "created_at": "2026-03-12T09:30:00Z", "credits_used": {number}'
    (found,) = mall.read_history(ok(f'{{"success": true, "data": {{"items": [{{{task}}}]}}}}')).tasks
    assert (found.task_id, found.credits_used) == ("t-1", None)


@each_row("number", [number for number in SENSELESS if number not in ("-1", "-0.5", '"-1"')])
def test_senseless_balance_is_unexpected(number: str) -> None:  # below zero it is a debt
    with pytest.raises(UnexpectedResponse, match="the balance, is missing or is no number"):
        mall.read_balance(ok(f'{{"success": true, "data": {{"api_credits": {number}}}}}'))
    with pytest.raises(UnexpectedResponse, match="the balance, is missing or is no number"):
        defapi.read_balance(ok(f'{{"code": 0, "data": {{"credit": {number}}}}}'))


@each_row("number", [*SENSELESS, "7.5"])
def test_senseless_count_is_unknown_in_webhooks(number: str) -> None:
    item = f'"id": "wh-1", "url": "https://a.example", "total_sent": {number}, "total_failed": {number}'
    (found,) = mall.read_webhook_list(ok(f'{{"success": true, "data": {{"items": [{{{item}}}]}}}}')).webhooks
    assert (found.total_sent, found.total_failed) == (None, None)


@pytest.mark.parametrize("amount", [Decimal("1e999999999"), Decimal("-1e999999999"), Decimal("1e-999999999")])
def test_senseless_option_is_refused(amount: Decimal) -> None:
    with pytest.raises(ValueError, match="max_credits must be"):
        parse_credits("max_credits", amount)
