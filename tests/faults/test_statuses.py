"""Every 4xx and 5xx to a create, in each form: what it means, which key is sent next, and how long is waited."""

import json
import math
from functools import partial

import pytest

from nanobanana_async import ApiMall, DefApi, InvalidRequest, JobUnfinished, NanoBananaError, RetryPolicy
from nanobanana_async.errors import GatewayError, UnexpectedResponse
from nanobanana_async.gateways.contract import HttpRequest, HttpResponse
from nanobanana_async.policy.retry import Attempt, RetryAction, asked_wait_s, decide_failed_create
from nanobanana_async.testing import FakeTransport
from tests.support.fakes import API_KEY, Opening, apimall, defapi, now, virtually, wire_key
from tests.support.rows import each_row

ALL = range(400, 600)
LONGEST_WAIT_S = 120.0
DATE = "Fri, 27 Nov 2026 00:00:00 GMT"
RETRY_AFTER: dict[str | None, float | None] = {
    None: None,
    "5": 5.0,
    "+7": 7.0,
    "1.5": 1.5,
    "0": 0.0,
    "-5": 0.0,
    "-99999999999": 0.0,
    "99999999999": LONGEST_WAIT_S,
    "9" * 400: LONGEST_WAIT_S,
    "1e9": None,
    "inf": None,
    "nan": None,
    "soon": None,
    "": None,
    " 5 ": 5.0,
    "\u0665": None,
    "Fri, 27 Nov 2026 00:00:30 GMT": 30.0,
    "Thu, 26 Nov 2026 23:00:00 GMT": 0.0,
    "Fri, 31 Dec 9999 23:59:59 GMT": LONGEST_WAIT_S,
    "Mon, 99 Foo 2026 99:99:99 GMT": None,
}
"""The header, and how long it asks to wait."""
FINAL = {400, 401, 402, 403, 404, 413, 422, 451}
REFUSE, REQUEUE, REPEAT, PARK = RetryAction.REFUSE, RetryAction.REQUEUE, RetryAction.REPEAT, RetryAction.PARK


def body_of(name: str, form: str, status: int) -> bytes:
    if form == "empty":
        return b""
    if form == "html":
        return b"<html><body>nginx</body></html>"
    error = {"code": "refused_so", "message": "Refused"}
    envelope = {"success": False, "error": error} if name == "apimall" else {"code": status, "message": "Refused"}
    return json.dumps(envelope).encode()


def expected(status: int, form: str, *, keyed: bool, sent_before: bool) -> RetryAction:
    """Return what the table of the design says."""
    if status == 429:
        return REQUEUE
    if status == 413 or (form == "envelope" and status in FINAL):
        return REFUSE
    if status == 409 and keyed and not sent_before:
        return PARK
    return REPEAT if keyed else PARK


@each_row("name", ["apimall", "defapi"])
@each_row("form", ["envelope", "empty", "html"])
def test_each_status_means_what_the_table_says(name: str, form: str) -> None:
    gateway = ApiMall(api_key=API_KEY) if name == "apimall" else DefApi(api_key=API_KEY)
    keyed = name == "apimall"
    for status in ALL:
        with pytest.raises((GatewayError, UnexpectedResponse)) as caught:
            gateway.read_create(HttpResponse(status=status, body=body_of(name, form, status)))
        for sent_before in (False, True):
            attempt = Attempt(
                keyed=keyed,
                sent_before=sent_before,
                in_doubt=False,
                number=1,
                waited_s=0.0,
                key_age_s=0.0,
                key_lifetime_s=1800.0,
            )
            decision = decide_failed_create(caught.value, attempt, RetryPolicy())
            wanted = expected(status, form, keyed=keyed, sent_before=sent_before)
            assert decision.action is wanted, f"{status}, {form}, sent before: {sent_before}"
            assert decision.in_doubt == (wanted in (REPEAT, PARK))


@each_row("name", ["apimall", "defapi"])
@each_row("form", ["envelope", "empty", "html"])
def test_each_form_of_retry_after_is_a_bounded_wait(name: str, form: str) -> None:
    gateway = ApiMall(api_key=API_KEY) if name == "apimall" else DefApi(api_key=API_KEY)
    for status in (400, 409, 413, 422, 429, 500, 502, 503, 504, 599):
        for header, wait_s in RETRY_AFTER.items():
            headers = {"date": DATE} if header is None else {"date": DATE, "retry-after": header}
            with pytest.raises((GatewayError, UnexpectedResponse)) as caught:
                gateway.read_create(HttpResponse(status=status, headers=headers, body=body_of(name, form, status)))
            asked = asked_wait_s(caught.value)
            assert math.isfinite(asked)
            assert 0.0 <= asked <= LONGEST_WAIT_S
            if isinstance(caught.value, GatewayError):
                assert asked == (wait_s or 0.0), f"{status}, {form}, Retry-After: {header!r}"


@pytest.mark.slow
@pytest.mark.usefixtures("quiet_log")
@pytest.mark.parametrize("session_of", [apimall, defapi])
@virtually
async def test_no_status_is_answered_with_another_key_or_without_end(session_of: Opening) -> None:
    for status in sorted({*range(400, 600, 7), *FINAL, 409, 429, 500, 502, 503, 504}):
        for form in ("envelope", "empty"):
            reply = HttpResponse(
                status=status,
                headers={"retry-after": "99999999"},
                body=body_of("apimall" if session_of is apimall else "defapi", form, status),
            )
            transport = FakeTransport(partial(_create_only, reply))
            policy = RetryPolicy(max_attempts=3, max_wait_s=400.0)
            began = now()
            async with session_of(transport, retry=policy) as session:
                with pytest.raises(NanoBananaError) as caught:
                    await session.generate("a fox", idempotency_key="order-1", timeout=500.0)
            keys = {wire_key(request) for request in transport.creates}
            assert keys == ({"order-1"} if session_of is apimall else {None}), f"{status}, {form}"
            bodies = {request.body for request in transport.creates}
            assert len(bodies) == 1
            if isinstance(caught.value, JobUnfinished):
                assert status == 429
            elif status in FINAL and form == "envelope":
                assert len(transport.creates) == 1
            no_such_path = form == "empty" and status in (404, 405, 501)  # not the gateway: surely not bought
            most = 1 if session_of is defapi and status != 429 and not no_such_path else 6
            assert 1 <= len(transport.creates) <= most, f"{status}, {form}: {len(transport.creates)} creates"
            assert now() - began <= 900.0


def _create_only(reply: HttpResponse, request: HttpRequest) -> HttpResponse:
    return reply if request.method == "POST" else HttpResponse(status=404, body=b"{}")


@virtually
async def test_422_is_one_create_under_one_key() -> None:
    reply = HttpResponse(status=422, body=body_of("apimall", "envelope", 422))
    transport = FakeTransport(lambda request: reply)
    async with apimall(transport) as session:
        with pytest.raises(InvalidRequest):
            await session.generate("a fox", idempotency_key="order-1")
    assert [wire_key(request) for request in transport.creates] == ["order-1"]
