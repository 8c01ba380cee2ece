"""Checks of single request fields, shared by both references: each returns a complaint or None."""

import json
import re
from collections.abc import Callable, Mapping
from typing import Any, cast

Check = Callable[[object], str | None]

_RATIO = re.compile(r"[1-9]\d{0,3}:[1-9]\d{0,3}")
_URL = re.compile(r"https?://[^\s/]+\S*", re.IGNORECASE)
_canonical = json.JSONEncoder(sort_keys=True, separators=(",", ":")).encode


def one_of(*choices: str) -> Check:
    """Demand one of these words, exactly as spelled."""

    def check(value: object) -> str | None:
        if not isinstance(value, str):
            return "must be a string"
        return None if value in choices else f"must be one of {', '.join(choices)}"

    return check


def text(value: object) -> str | None:
    """Demand a string with something in it."""
    if not isinstance(value, str):
        return "must be a string"
    return None if value.strip() else "must not be empty"


def whole_number(least: int, most: int) -> Check:
    """Demand a whole number in this range; true is not one."""

    def check(value: object) -> str | None:
        if not isinstance(value, int) or isinstance(value, bool):
            return "must be an integer"
        return None if least <= value <= most else f"must be between {least} and {most}"

    return check


def ratio(value: object) -> str | None:
    """Demand something like 16:9."""
    if not isinstance(value, str):
        return "must be a string"
    return None if _RATIO.fullmatch(value) else "must look like 16:9"


def url(value: object) -> str | None:
    """Demand an http or https URL."""
    if not isinstance(value, str):
        return "must be a string"
    return None if _URL.fullmatch(value) else "must be an http or https URL"


def urls(most: int | None = None) -> Check:
    """Demand an array of URLs, not more than `most`."""

    def check(value: object) -> str | None:
        if not isinstance(value, list):
            return "must be an array"
        items = cast("list[object]", value)
        if most is not None and len(items) > most:
            return f"must not have more than {most} items"
        return next((f"items {wrong}" for item in items if (wrong := url(item))), None)

    return check


def complaint(fields: Mapping[str, Check], required: tuple[str, ...], body: Mapping[str, object]) -> str | None:
    """Return the first thing wrong with a body, naming the field."""
    for name in required:
        if body.get(name) is None:
            return f"{name} is required"
    for name, value in body.items():
        if name not in fields:
            return f"{name} is not a parameter of this endpoint"
        if wrong := fields[name](value):
            return f"{name} {wrong}"
    return None


def read_object(headers: Mapping[str, str], body: bytes) -> dict[str, Any] | str:
    """Return the JSON object of a request, or what is wrong with it."""
    media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        return "Content-Type must be application/json"
    try:
        parsed: object = json.loads(body)
    except (ValueError, RecursionError):
        return "malformed JSON"
    if not isinstance(parsed, dict):
        return "the body must be a JSON object"
    return cast("dict[str, Any]", parsed)


def canonical(body: Mapping[str, object]) -> str:
    """Return the same text for bodies that mean the same."""
    return _canonical(body)
