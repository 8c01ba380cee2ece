"""The gateway of docs/add-a-gateway.md: every line of it runs, and unusable answers raise what the page says."""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pytest

from nanobanana_async import ImageRequest, JobState
from nanobanana_async.errors import GatewayError, InvalidRequest, UnexpectedResponse
from nanobanana_async.gateways.contract import HttpResponse

PAGE = Path(__file__).parents[2] / "docs" / "add-a-gateway.md"


def lines_of(code: CodeType) -> Iterator[int]:
    """Yield the lines of a program that can run, those of its functions included."""
    yield from (line for _, _, line in code.co_lines() if line)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from lines_of(constant)


def answer(code: int = 200, /, **fields: Any) -> HttpResponse:
    return HttpResponse(status=code, body=json.dumps(fields).encode())


def use(example: Any) -> None:
    """Give the gateway each kind of answer that its code distinguishes."""
    gateway = example(api_key="an-example-key")
    assert (gateway.supports_idempotency_keys, gateway.supports_callbacks, gateway.key_lifetime_s) == (
        True,
        False,
        3600,
    )
    with pytest.raises(InvalidRequest, match="resolution"):
        gateway.check(ImageRequest("a fox", resolution="2K"))
    with pytest.raises(UnexpectedResponse, match="status is missing"):
        gateway.read_query(answer(id="t-1"))
    with pytest.raises(UnexpectedResponse, match="id: "):
        gateway.read_create(answer(credits=3))
    with pytest.raises(UnexpectedResponse, match="a success with an error in it"):
        gateway.read_create(answer(id="t-1", error={"message": "full", "code": "busy"}))
    with pytest.raises(UnexpectedResponse, match="sends no callbacks"):
        gateway.read_callback(b"{}")
    with pytest.raises(GatewayError, match="full"):
        gateway.read_create(answer(503, error={"message": "full", "code": "busy"}))
    assert gateway.read_query(answer(id="t-1", status="odd")).state is JobState.RUNNING


def test_every_line_of_the_example_runs() -> None:
    (code,) = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    program = compile(code, str(PAGE), "exec")
    seen: set[int] = set()

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        if frame.f_code.co_filename != str(PAGE):
            return None
        if event in ("call", "line"):
            seen.add(frame.f_lineno)
        return trace

    before, namespace = sys.gettrace(), {"__name__": "example"}
    sys.settrace(trace)
    try:
        exec(program, namespace)
        use(namespace["Example"])
    finally:
        sys.settrace(before)
    source = code.splitlines()
    assert [source[line - 1] for line in sorted(set(lines_of(program)) - seen)] == []
