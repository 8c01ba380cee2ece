"""How many credits an account has: the answers of both gateways and of API Mall's relatives."""

import json
from decimal import Decimal
from typing import Any

import pytest

from nanobanana_async.errors import (
    AuthenticationError,
    GatewayError,
    GatewayUnavailable,
    InsufficientCredits,
    TaskNotFound,
    UnexpectedResponse,
)
from nanobanana_async.gateways import ApiMall, DefApi, HttpResponse
from nanobanana_async.gateways.capabilities import HasBalance
from tests.support.rows import each_row

MALL, DEFAPI = ApiMall(api_key="sk-1234567890abcdef"), DefApi(api_key="dk-1234567890abcdef")


def reply(body: Any, status: int = 200) -> HttpResponse:
    return HttpResponse(status=status, body=json.dumps(body).encode())


def answered(gateway: HasBalance, amount: Any) -> Decimal:
    if gateway is MALL:
        data = {"credits": 900, "api_credits": amount}
        return gateway.read_balance(reply({"success": True, "data": data, "request_id": "req_1"}))
    return gateway.read_balance(reply({"code": 0, "message": "ok", "data": {"credit": amount}}))


def test_both_gateways_offer_a_balance() -> None:
    requests = [gateway.build_balance() for gateway in (MALL, DEFAPI) if isinstance(gateway, HasBalance)]
    assert [(request.method, request.url, request.body) for request in requests] == [
        ("GET", "https://gateway.apimall.ai/api/v1/account/balances", None),
        ("GET", "https://api.defapi.org/api/user", None),
    ]


@each_row("gateway", [MALL, DEFAPI])
@each_row(
    ("amount", "expected"),
    [
        (112, "112"),
        (0, "0"),
        (12.5, "12.5"),
        ("112", "112"),
        (" 12.500000 ", "12.500000"),
        (-3, "-3"),
        (-0.25, "-0.25"),
        ("-0.5", "-0.5"),
    ],
)
def test_balance_is_a_number_however_it_is_written(gateway: HasBalance, amount: Any, expected: str) -> None:
    assert str(answered(gateway, amount)) == expected


@each_row("gateway", [MALL, DEFAPI])
@each_row("amount", [None, "", "much", "-", "--5", True, [5], {"credits": 5}, 10**30, "1e99"])
def test_balance_that_is_no_number_is_unexpected(gateway: HasBalance, amount: Any) -> None:
    with pytest.raises(UnexpectedResponse, match="the balance, is missing or is no number"):
        answered(gateway, amount)


@each_row("gateway", [MALL, DEFAPI])
@each_row("body", [{}, {"data": None}, {"data": []}, {"success": True, "code": 0, "data": {}}])
def test_answer_without_a_balance_is_unexpected(gateway: HasBalance, body: Any) -> None:
    with pytest.raises(UnexpectedResponse):
        gateway.read_balance(reply(body))


@pytest.mark.parametrize("number", ["-1e999999999", "1e999999999", '"-1e999999999"', "-1e-9999999999999999999"])
def test_balance_with_a_huge_exponent_is_unexpected(number: str) -> None:
    body = f'{{"success": true, "code": 0, "data": {{"api_credits": {number}, "credit": {number}}}}}'.encode()
    for gateway in (MALL, DEFAPI):
        with pytest.raises(UnexpectedResponse):
            gateway.read_balance(HttpResponse(status=200, body=body))


def test_relative_of_api_mall_counts_web_credits_apart() -> None:
    body = {"success": True, "data": {"web_credits": 50, "api_credits": 12}}
    assert MALL.read_balance(reply(body)) == 12


def test_credit_beside_the_envelope_of_defapi_is_read() -> None:
    assert DEFAPI.read_balance(reply({"code": 0, "message": "ok", "credit": "7.25"})) == Decimal("7.25")


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (401, "invalid_api_key", AuthenticationError),
        (402, "insufficient_credits", InsufficientCredits),
        (404, "not_found", TaskNotFound),
        (503, "busy", GatewayUnavailable),
        (200, "invalid_api_key", AuthenticationError),
    ],
)
def test_refusal_is_the_error_that_a_poll_would_raise(status: int, code: str, kind: type[GatewayError]) -> None:
    words = code.replace("_", " ")
    mall = {"success": False, "error": {"code": code, "message": words}}
    for gateway, body in ((MALL, mall), (DEFAPI, {"code": 1, "message": words})):
        with pytest.raises(kind):
            gateway.read_balance(reply(body, status))
