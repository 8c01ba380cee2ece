"""Validation of requests, and the error envelopes of both gateways."""

import json
from typing import Any

import pytest

from nanobanana_async.emulator import EmulatedRequest, EmulatedResponse, Fixed
from tests.emulator.calling import APIMALL_CREATE, APIMALL_QUERY, DEFAPI_CREATE, DEFAPI_QUERY, HEADERS, Caller, body_of
from tests.support.rows import each_row

URL = "https://example.com/a.png"


def no_of_apimall(answer: EmulatedResponse) -> tuple[int, str, str]:
    body = body_of(answer)
    assert body["success"] is False
    assert set(body) == {"success", "error", "request_id"}
    return answer.status, body["error"]["code"], body["error"]["message"]


def test_apimall_answers_a_create_with_every_field_of_the_reference() -> None:
    caller = Caller(credits=120)
    body = body_of(caller.buy(resolution="2K"))
    assert body["success"] is True
    assert set(body) == {"success", "data", "request_id"}
    assert body["data"]["credits_used"] == 8
    assert body["data"]["remaining_credits"] == 112
    assert body["data"]["model"] == "nano-banana-pro"
    assert body["data"]["task_id"].startswith("img_01")
    assert set(body["data"]) == {"task_id", "request_id", "credits_used", "remaining_credits", "model"}


def test_defapi_answers_a_create_as_its_reference_prints_it() -> None:
    body = body_of(Caller().buy_defapi())
    task_id = body["data"].pop("task_id")
    assert body == {"code": 0, "message": "ok", "data": {}}
    assert [len(part) for part in task_id.split("-")] == [10, 4, 4, 4, 12]
    assert task_id.startswith("ta")


@each_row(
    ("fields", "complaint"),
    [
        ({"model": "nano-banana-9"}, "model must be one of nano-banana-pro"),
        ({"model": None}, "model is required"),
        ({"prompt": None}, "prompt is required"),
        ({"prompt": "  "}, "prompt must not be empty"),
        ({"prompt": 7}, "prompt must be a string"),
        ({"type": "video"}, "type must be one of"),
        ({"type": None}, "type must be a string"),
        ({"image_urls": URL}, "image_urls must be an array"),
        ({"image_urls": [URL, "ftp://x/y"]}, "image_urls items must be an http or https URL"),
        ({"image_urls": [3]}, "image_urls items must be a string"),
        ({"num_images": 0}, "num_images must be between 1 and 6"),
        ({"num_images": 7}, "num_images must be between 1 and 6"),
        ({"num_images": "2"}, "num_images must be an integer"),
        ({"num_images": True}, "num_images must be an integer"),
        ({"aspect_ratio": "wide"}, "aspect_ratio must look like 16:9"),
        ({"aspect_ratio": 1}, "aspect_ratio must be a string"),
        ({"resolution": "2k"}, "resolution must be one of 1K, 2K, 4K"),
        ({"output_format": "webp"}, "output_format must be one of jpeg, jpg, png"),
        ({"callback_url": URL}, "callback_url is not a parameter"),
    ],
)
def test_apimall_names_the_field_that_is_wrong(fields: dict[str, Any], complaint: str) -> None:
    caller = Caller()
    status, code, message = no_of_apimall(caller.buy(**{"prompt": "x", **fields}))
    assert (status, code) == (400, "invalid_request")
    assert message.startswith(complaint)
    assert caller.stats().creates_refused == {400: 1}


@each_row(
    ("fields", "complaint"),
    [
        ({"prompt": None}, "prompt is required"),
        ({"model": "nano-banana-pro"}, "model must be one of google/gempix2"),
        ({"images": [URL] * 5}, "images must not have more than 4 items"),
        ({"num_images": 1}, "num_images is not a parameter"),
        ({"resolution": "1K"}, "resolution is not a parameter"),
        ({"aspect_ratio": "1:1"}, "aspect_ratio is not a parameter"),
        ({"output_format": "png"}, "output_format is not a parameter"),
        ({"image_urls": [URL]}, "image_urls is not a parameter"),
        ({"callback_url": "nowhere"}, "callback_url must be an http or https URL"),
    ],
)
def test_defapi_names_the_field_that_is_wrong(fields: dict[str, Any], complaint: str) -> None:
    answer = Caller().buy_defapi(**{"prompt": "x", **fields})
    body = body_of(answer)
    assert answer.status == 400
    assert (body["code"], body["message"]) == (1, "failed")
    assert body["detail"].startswith(complaint)


def test_all_values_of_the_references_are_accepted() -> None:
    caller = Caller()
    apimall = caller.buy(
        type="image-to-image",
        image_urls=[URL] * 9,
        num_images=6,
        aspect_ratio="21:9",
        resolution="4K",
        output_format="jpg",
    )
    defapi = caller.buy_defapi(images=[URL] * 4, callback_url="http://127.0.0.1:1/x")
    assert (apimall.status, defapi.status) == (200, 200)


GENERAL: dict[str, Any] = {
    "type": "upscale",
    "input_image": URL,
    "image_size": "1024x1024",
    "image_resolution": "2K",
    "seed": 7,
    "quality": "high",
    "background": "transparent",
}


@pytest.mark.parametrize("model", ["nano-banana-pro", "z-image"])
def test_general_endpoint_takes_the_parameters_of_other_models(model: str) -> None:
    caller = Caller(extra_fields=True, duration=Fixed(0.0))
    response = caller.buy(model=model, **GENERAL)
    assert body_of(response)["data"]["model"] == model
    (job,) = caller.simulator.jobs(0.0)
    assert job.reference_digests == (None,)


def test_general_endpoint_has_a_default_model() -> None:
    response = Caller(extra_fields=True).post(APIMALL_CREATE, b'{"prompt": "x"}')
    assert body_of(response)["data"]["model"] == "nano-banana"


@each_row(("field", "value"), GENERAL.items())
def test_page_of_the_model_lacks_the_general_parameters(field: str, value: Any) -> None:
    assert no_of_apimall(Caller().buy(**{field: value}))[0] == 400


@pytest.mark.parametrize(("field", "value"), [("seed", -1), ("seed", "7"), ("quality", "best"), ("input_image", "x")])
def test_general_parameters_are_checked(field: str, value: Any) -> None:
    answer = no_of_apimall(Caller(extra_fields=True).buy(**{field: value}))
    assert answer[0] == 400
    assert answer[2].startswith(field)


def test_defapi_takes_more_images_and_sizes_for_other_models() -> None:
    caller = Caller(extra_fields=True)
    size = {"aspect_ratio": "16:9", "image_size": "2K"}
    assert caller.buy_defapi(model="another/model", images=[URL] * 9, **size).status == 200
    assert caller.buy_defapi(images=[URL] * 4, **size).status == 200
    assert caller.buy_defapi(images=[URL] * 5).status == 400
    assert caller.buy_defapi(aspect_ratio="wide").status == 400


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        (b"{", "malformed JSON"),
        (b"\xff\xfe", "malformed JSON"),
        (b"[" * 100_000, "malformed JSON"),
        (b"[]", "the body must be a JSON object"),
    ],
)
def test_body_that_is_not_a_json_object_is_400(body: bytes, complaint: str) -> None:
    caller = Caller()
    assert no_of_apimall(caller.post(APIMALL_CREATE, body)) == (400, "invalid_request", complaint)
    response = caller.post(DEFAPI_CREATE, body)
    assert (response.status, body_of(response)["detail"]) == (400, complaint)


def test_a_create_must_say_that_it_is_json() -> None:
    body = json.dumps({"model": "nano-banana-pro", "prompt": "x"}).encode()
    response = Caller().post(APIMALL_CREATE, body, Content_Type="text/plain")
    assert no_of_apimall(response)[2] == "Content-Type must be application/json"


@pytest.mark.parametrize("key", ["", "Basic emulator-key", "Bearer wrong", "Bearer", "emulator-key"])
def test_wrong_key_is_401_in_each_endpoints_format(key: str) -> None:
    simulator = Caller().simulator
    headers = {"authorization": key} if key else {}
    create = simulator.handle(0.0, EmulatedRequest("POST", APIMALL_CREATE, {}, headers))
    query = simulator.handle(0.0, EmulatedRequest("GET", APIMALL_QUERY + "img_1", {}, headers))
    for response in (create, query):
        assert no_of_apimall(response)[:2] == (401, "invalid_api_key")
    create = simulator.handle(0.0, EmulatedRequest("POST", DEFAPI_CREATE, {}, headers))
    query = simulator.handle(0.0, EmulatedRequest("GET", DEFAPI_QUERY, {"task_id": "ta1"}, headers))
    assert (create.status, body_of(create)) == (401, {"code": 1, "message": "Invalid API key"})
    assert (query.status, body_of(query)) == (401, {"code": 401, "message": "Invalid API key"})


def test_an_unapproved_key_is_403_at_apimall_and_401_at_defapi() -> None:
    caller = Caller()
    headers = {"Authorization": "Bearer unapproved-key"}
    response = caller.simulator.handle(0.0, EmulatedRequest("POST", APIMALL_CREATE, {}, headers))
    assert no_of_apimall(response)[:2] == (403, "access_not_approved")
    response = caller.simulator.handle(0.0, EmulatedRequest("POST", DEFAPI_CREATE, {}, headers))
    assert response.status == 401


@pytest.mark.parametrize(("host", "status"), [("gw.test", 200), ("GW.test:80", 200), ("www.test", 403), ("", 403)])
def test_wrong_host_is_refused_if_a_host_is_required(host: str, status: int) -> None:
    caller = Caller(required_host="gw.test")
    body = json.dumps({"model": "nano-banana-pro", "prompt": "x"}).encode()
    response = caller.post(APIMALL_CREATE, body, Host=host)
    assert response.status == status
    assert caller.buy_defapi().status == 200


@each_row(
    ("method", "path"),
    [
        ("GET", "/api/v1/images/history"),
        ("GET", "/api/v1/account/balances"),
        ("POST", "/api/v1/files/base64"),
        ("POST", "/api/v1/files/upload-url"),
        ("POST", "/api/v1/files/from-url"),
        ("GET", "/api/v1/webhooks"),
        ("DELETE", "/api/v1/webhooks/x"),
    ],
)
def test_every_endpoint_of_apimall_may_require_a_host(method: str, path: str) -> None:
    caller = Caller(required_host="gw.test")
    request = EmulatedRequest(method, path, {}, {**HEADERS, "Host": "www.test"})
    assert no_of_apimall(caller.simulator.handle(0.0, request))[:2] == (403, "non_gateway_host")


def test_task_of_the_other_gateway_is_404() -> None:
    caller = Caller()
    task_id = caller.bought()
    assert no_of_apimall(caller.poll("img_nobody"))[:2] == (404, "task_not_found")
    response = caller.poll_defapi(task_id)
    assert (response.status, body_of(response)) == (404, {"code": 1, "message": "task not found"})


def test_defapi_query_without_a_task_id_is_400() -> None:
    response = Caller().poll_defapi("")
    assert (response.status, body_of(response)["detail"]) == (400, "task_id is required")


def test_unknown_path_and_wrong_method_have_an_envelope() -> None:
    simulator = Caller().simulator
    assert no_of_apimall(simulator.handle(0.0, EmulatedRequest("POST", "/api/v1/videos")))[0] == 404
    assert no_of_apimall(simulator.handle(0.0, EmulatedRequest("GET", APIMALL_CREATE)))[0] == 405
    assert simulator.handle(0.0, EmulatedRequest("GET", "/")).status == 404
    assert simulator.process(0.0, EmulatedRequest("PUT", DEFAPI_CREATE)).status == 405


def test_blocked_prompt_is_451_and_not_charged() -> None:
    caller = Caller(credits=100)
    assert no_of_apimall(caller.buy("a [blocked] fox"))[:2] == (451, "prompt_blocked")
    assert caller.buy_defapi("a [blocked] fox").status == 451
    assert caller.stats().credits_remaining == 100


def test_refusals_can_come_inside_a_200() -> None:
    caller = Caller(credits=0, refusals_in_200=True)
    response = caller.buy()
    assert (response.status, body_of(response)["success"]) == (200, False)
    assert body_of(response)["error"]["code"] == "insufficient_credits"
    response = caller.buy_defapi()
    assert (response.status, body_of(response)["code"]) == (200, 402)
    response = caller.poll_defapi("ta-nobody")
    assert body_of(response) == {"code": 404, "message": "task not found"}
    assert caller.stats().creates_refused == {402: 2}
