"""Any answer of a gateway or proxy gives a typed value or a typed error, and nothing else."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nanobanana_async.errors import GatewayError, UnexpectedResponse
from nanobanana_async.gateways import ApiMall, DefApi, HttpResponse
from nanobanana_async.jobs import Accepted, JobState, Observation
from tests.gateways.recorded import body

pytestmark = pytest.mark.slow
thorough = settings(max_examples=100)

SECRET = "dk-0123456789abcdef"
GATEWAYS: list[ApiMall | DefApi] = [ApiMall(api_key=SECRET), DefApi(api_key=SECRET)]
STATUSES = st.sampled_from([200, 201, 202, 204, 301, 400, 401, 402, 403, 404, 409, 418, 429, 451, 500, 502, 503, 504])

words = st.sampled_from(
    ["completed", "failed", "pending", "success", "https://a.example/1.png", "data:image/png;base64,AA", "[1]", "{}"]
)
leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | words
values = st.recursive(leaves, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8)
required = ["success", "error", "code", "message", "detail", "data", "task_id", "status", "output", "resultUrls"]
image_fields = ["primary_url", "image_url", "result", "image"]
optional = ["request_id", "model", "credits_used", "credits_refunded", "consumed", "created_at", "completed_at"]
reasons = ["error_message", "failMsg", "status_reason"]
names = st.sampled_from([*required, *image_fields, *optional, *reasons])
fields = st.recursive(
    st.dictionaries(names, values), lambda inner: st.dictionaries(names, inner | values), max_leaves=12
)
headers = st.dictionaries(st.sampled_from(["retry-after", "date", "x-request-id", "ratelimit"]), st.text())


def outcome(read: Callable[[], Accepted | Observation]) -> Accepted | Observation | UnexpectedResponse | GatewayError:
    try:
        return read()
    except (UnexpectedResponse, GatewayError) as error:
        return error


def fits(seen: Accepted | Observation | UnexpectedResponse | GatewayError) -> bool:
    match seen:
        case UnexpectedResponse():
            return len(seen.body) <= 200 and seen.body.isprintable() and SECRET not in str(seen)
        case GatewayError():
            return seen.message.isprintable() and SECRET not in str(seen)
        case Accepted():
            return 0 < len(seen.task_id) <= 512 and seen.task_id.isprintable()
        case Observation():
            return seen.state in (JobState.RUNNING, JobState.SUCCEEDED, JobState.FAILED) and all(seen.images)


def assert_readable(gateway: ApiMall | DefApi, response: HttpResponse) -> None:
    assert fits(outcome(lambda: gateway.read_create(response)))
    assert fits(outcome(lambda: gateway.read_query(response)))
    assert fits(outcome(lambda: gateway.read_callback(response.body)))


@pytest.mark.parametrize("gateway", GATEWAYS)
@thorough
@given(status=st.integers(0, 999) | STATUSES, body=st.binary(), headers=headers)
@example(status=200, body=b"[" * 200_000, headers={})
@example(status=200, body=b'{"success":true,"data":' + b'{"data":' * 900 + b"1" + b"}" * 901, headers={})
@example(status=429, body=SECRET.encode(), headers={})
def test_any_bytes_give_a_value_or_typed_error(
    gateway: ApiMall | DefApi, status: int, body: bytes, headers: dict[str, str]
) -> None:
    assert_readable(gateway, HttpResponse(status=status, headers=headers, body=body))


@pytest.mark.parametrize("gateway", GATEWAYS)
@thorough
@given(status=STATUSES, answer=fields | values, headers=headers)
def test_any_json_gives_a_value_or_typed_error(
    gateway: ApiMall | DefApi, status: int, answer: Any, headers: dict[str, str]
) -> None:
    assert_readable(gateway, HttpResponse(status=status, headers=headers, body=json.dumps(answer).encode()))


REFERENCE = ["apimall_create.json", "apimall_completed.json", "defapi_create.json", "defapi_success.json"]


@settings(max_examples=150)
@given(name=st.sampled_from(REFERENCE), data=st.data())
def test_reference_body_with_any_field_replaced_is_parsed(name: str, data: st.DataObject) -> None:
    envelope = json.loads(body(name))
    place = data.draw(st.sampled_from([envelope, envelope["data"]]))
    place[data.draw(st.sampled_from(sorted(place)))] = data.draw(values)
    response = HttpResponse(status=200, body=json.dumps(envelope).encode())
    for gateway in GATEWAYS:
        assert_readable(gateway, response)


@pytest.mark.parametrize("name", REFERENCE)
def test_truncated_body_is_unexpected(name: str) -> None:
    whole = body(name).rstrip()
    gateway = GATEWAYS[name.startswith("defapi")]
    for end in range(len(whole)):
        response = HttpResponse(status=200, body=whole[:end])
        with pytest.raises(UnexpectedResponse, match="not JSON"):
            gateway.read_create(response)
        with pytest.raises(UnexpectedResponse, match="not JSON"):
            gateway.read_query(response)


OPTIONAL = ["credits_used", "credits_refunded", "created_at", "updated_at", "completed_at", "model", "error_message"]


@settings(max_examples=150)
@given(field=st.sampled_from(OPTIONAL), value=values)
def test_invalid_optional_field_does_not_lose_the_image(field: str, value: Any) -> None:
    envelope = json.loads(body("apimall_completed.json"))
    envelope["data"][field] = value
    seen = GATEWAYS[0].read_query(HttpResponse(status=200, body=json.dumps(envelope).encode()))
    assert seen.images == ("https://cdn.apimall.ai/generated/result.webp",)
