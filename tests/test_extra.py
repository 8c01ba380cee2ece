"""Extra fields of a request: JSON values, checked when the request is made, and part of what it is."""

import copy
import enum
import json
import pickle
from typing import Any

import pytest

from nanobanana_async.errors import InvalidRequest
from nanobanana_async.extra import MAX_DEPTH, ExtraFields, value_of_text
from nanobanana_async.gateways import ApiMall, DefApi, Gateway
from nanobanana_async.models import (
    ImageRequest,
    difference,
    request_facts,
    request_from_mapping,
    same_request,
    to_request,
)
from tests.support.rows import each_row


def with_extra(extra: Any) -> ImageRequest:
    return ImageRequest("a fox", extra=extra)


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


def test_extra_holds_json_values_in_sorted_order() -> None:
    given = {"seed": 7, "a": {"z": (1, None, True), "b": 0.5}, "words": "x"}
    extra = with_extra(given).extra
    assert list(extra) == ["a", "seed", "words"]
    assert dict(extra) == {"a": {"b": 0.5, "z": [1, None, True]}, "seed": 7, "words": "x"}
    assert repr(extra) == '{"a":{"b":0.5,"z":[1,null,true]},"seed":7,"words":"x"}'
    assert with_extra(given).to_dict()["extra"] == dict(extra)


@each_row("absent", [None, "", " ", float("nan"), {}, "{}"])
def test_request_without_extra_values_has_none(absent: Any) -> None:
    assert with_extra(absent) == ImageRequest("a fox")
    assert not with_extra(absent).extra


def test_json_text_of_an_object_is_extra() -> None:
    assert with_extra('{"seed": 7}') == with_extra({"seed": 7})


def test_changing_what_was_given_or_returned_changes_no_request() -> None:
    given = {"sizes": [1, 2]}
    request = with_extra(given)
    given["sizes"].append(3)
    request.extra["sizes"].append(4)
    assert request.extra == {"sizes": [1, 2]}


def test_order_of_names_makes_no_other_request() -> None:
    one, other = with_extra({"a": 1, "b": {"c": 2, "d": 3}}), with_extra({"b": {"d": 3, "c": 2}, "a": 1})
    assert (one, hash(one)) == (other, hash(other))
    assert same_request(one, other)


@pytest.mark.parametrize("other", [{"seed": 8}, {"seed": 7.0}, {"seed": "7"}, {"seed": 7, "quality": "low"}, {}])
def test_other_extra_is_another_request(other: dict[str, Any]) -> None:
    assert not same_request(with_extra({"seed": 7}), with_extra(other))
    assert difference(with_extra({"seed": 7}), with_extra(other)) == "extra differs"


def test_true_is_not_the_number_one() -> None:
    assert with_extra({"seed": 1}) != with_extra({"seed": True})


def test_extra_equals_a_mapping_with_its_values_only() -> None:
    extra = ExtraFields({"seed": 7})
    assert extra == {"seed": 7}
    assert extra != {"seed": {7}}
    assert extra != 7


def test_extra_survives_copying_and_pickling() -> None:
    request = with_extra({"seed": 7, "sizes": [1]})
    assert pickle.loads(pickle.dumps(request)) == request
    assert copy.deepcopy(request) == copy.copy(request) == request
    assert copy.copy(request.extra) is copy.deepcopy(request.extra) is request.extra


@each_row(
    ("extra", "named"),
    [
        (7, 'extra must be an object of JSON values such as {"seed": 7}, not int'),
        ([7], "not list"),
        ("[7]", "not list"),
        ("seed=7", "extra must be a JSON object such as {\"seed\": 7}, not 'seed=7'"),
        ('{"a": NaN}', r"extra\['a'\] is nan: JSON has no such number"),
        ({"a": float("inf")}, r"extra\['a'\] is inf: JSON has no such number"),
        ({"a": [1, {"b": {1}}]}, r"extra\['a'\]\[1\]\['b'\] must be a JSON value, not set"),
        ({"a": b"x"}, "not bytes"),
        ({7: 1}, "extra: a name must be text and not empty, not 7"),
        ({"a": {" ": 1}}, r"extra\['a'\]: a name must be text and not empty, not ' '"),
        ({"a": "\ud800"}, r"extra\['a'\] contains a lone surrogate at index 0"),
        ({"a\ud800": 1}, "extra contains a lone surrogate at index 1"),
        ({"a": 10**5000}, "more digits than a number may have"),
        ({"a": nested(MAX_DEPTH)}, "nested deeper than 16 levels"),
    ],
)
def test_value_that_is_no_json_is_refused_by_name(extra: Any, named: str) -> None:
    with pytest.raises(InvalidRequest, match=named) as caught:
        with_extra(extra)
    assert caught.value.status is None


def test_deepest_value_is_taken_and_one_that_holds_itself_is_not() -> None:
    assert with_extra({"a": nested(MAX_DEPTH - 1)}).extra
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(InvalidRequest, match="nested deeper"):
        with_extra({"a": endless})


def test_mapping_and_prompt_take_extra() -> None:
    wanted = with_extra({"seed": 7})
    assert request_from_mapping({"prompt": "a fox", "extra": {"seed": 7}}) == wanted
    assert to_request("a fox", {"extra": {"seed": 7}}) == wanted


def test_field_without_a_name_here_is_pointed_to_extra() -> None:
    with pytest.raises(InvalidRequest, match=r"seed is extra \(as in extra={'seed': 7}\) here"):
        request_from_mapping({"prompt": "a fox", "seed": 7})


def test_notebook_shows_extra_values() -> None:
    assert ("seed", 7) in request_facts(with_extra({"seed": 7}))


@each_row(
    ("text", "value"),
    [
        *(("7", 7), ("-1.5", -1.5), ("true", True), ("null", None), ('"7"', "7"), ('{"a": [1]}', {"a": [1]})),
        *(("high", "high"), ("007", "007"), ("NaN", "NaN"), ("", ""), ("[" * 100_000, "[" * 100_000)),
    ],
)
def test_text_is_json_where_it_can_be(text: str, value: object) -> None:
    assert value_of_text(text) == value


def test_every_value_reaches_the_body_as_it_is() -> None:
    extra = {"seed": 7, "off": None, "box": {"b": [1, 2.5], "a": "ö"}}
    body = json.loads(ApiMall(api_key="k" * 20).encode(with_extra(extra)))
    assert {name: body[name] for name in extra} == extra


class Quality(str, enum.Enum):  # noqa: UP042 - the kind that prints its name
    HIGH = "high"


class Size(enum.IntEnum):
    LARGE = 4


def test_member_of_an_enum_is_its_value() -> None:
    assert repr(with_extra({"a": Quality.HIGH, "b": [Size.LARGE], "c": True}).extra) == '{"a":"high","b":[4],"c":true}'
    assert repr(with_extra({Quality.HIGH: {Quality.HIGH: 1}}).extra) == '{"high":{"high":1}}'


@pytest.mark.parametrize("text", ['{"seed": 1, "seed": 2}', '{"a": [{"seed": 1, "seed": 1}]}'])
def test_json_text_with_a_repeated_name_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match="extra has the name 'seed' more than once"):
        with_extra(text)


@each_row("gateway", [ApiMall(api_key="k" * 24), DefApi(api_key="k" * 24)])
@each_row(
    ("name", "meant"),
    [
        *(("Prompt", "prompt"), ("MODEL", "model"), ("model ", "model"), ("callback_url", "callback_url")),
        *(("image_urls", "images"), ("type", "task_type"), (" Num_Images", "num_images")),
    ],
)
def test_name_of_a_field_of_any_gateway_is_refused(gateway: Gateway, name: str, meant: str) -> None:
    with pytest.raises(InvalidRequest, match=f"pass {meant}=..., not extra="):
        gateway.check(with_extra({name: "x"}))
