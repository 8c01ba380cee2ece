"""An invalid image of a task costs only that image."""

import json
from typing import Any

import pytest

from nanobanana_async.gateways import ApiMall, DefApi, HttpResponse
from nanobanana_async.gateways.images import parse_images
from nanobanana_async.jobs import JobState, Observation, with_indexes
from tests.support.rows import each_row

GOOD = [f"https://cdn.example/{number}.png" for number in range(6)]
INVALID = {
    "empty": ("", "no link"),
    "blank": ("  ", "no link"),
    "null": (None, "no link"),
    "a number": (17, "not int"),
    "a list": ([GOOD[0]], "not list"),
    "not http": ("ftp://cdn.example/1.png", "neither an http"),
    "a word": ("pending", "neither an http"),
    "too long": ("https://cdn.example/" + "x" * 20_000, "longer than 16384"),
    "unparseable": ("https://[::1/1.png", "neither an http"),
    "a port that is none": ("https://cdn.example:99999/1.png", "neither an http"),
    "port zero": ("https://cdn.example:0/1.png", "neither an http"),
    "no host": ("https:///1.png", "neither an http"),
    "no image inline": ("data:text/html;base64,PGI+", "not a base64 image"),
}


def answered(gateway: str, urls: list[Any]) -> Observation:
    if gateway == "apimall":
        data = {"task_id": "t1", "status": "completed", "output": {"resultUrls": urls}}
        body = json.dumps({"success": True, "data": data}).encode()
        return ApiMall(api_key="k" * 8).read_query(HttpResponse(status=200, body=body))
    results = [{"image": url} for url in urls]
    found: dict[str, Any] = {"task_id": "t1", "status": "success", "result": results}
    body = json.dumps({"code": 0, "data": found}).encode()
    return DefApi(api_key="k" * 8).read_query(HttpResponse(status=200, body=body))


@each_row("gateway", ["apimall", "defapi"])
@each_row("place", [0, 2, 5])
@each_row("kind", INVALID)
def test_invalid_image_costs_only_its_own_place(kind: str, place: int, gateway: str) -> None:
    invalid, why = INVALID[kind]
    seen = answered(gateway, [invalid if number == place else url for number, url in enumerate(GOOD)])
    assert seen.state is JobState.SUCCEEDED
    assert seen.images == tuple(url for number, url in enumerate(GOOD) if number != place)
    assert [number for number, _ in seen.missing] == [place]
    assert why in seen.missing[0][1]
    assert with_indexes(seen.images, seen.missing) == [(n, url) for n, url in enumerate(GOOD) if n != place]


@pytest.mark.parametrize("gateway", ["apimall", "defapi"])
def test_only_invalid_images_is_success_without_image(gateway: str) -> None:
    seen = answered(gateway, [invalid for invalid, _ in INVALID.values()])
    assert (seen.state, seen.images) == (JobState.SUCCEEDED, ())


def test_at_most_100_images_are_read() -> None:
    delivery = parse_images([GOOD[0]] * 5000, b"")
    assert len(delivery.images) == 100
    assert delivery.missing == ((100, "the gateway lists 5000 images, of which only 100 are read"),)
