"""Timeouts, and the gateway that the environment selects."""

from typing import Any

import pytest

from nanobanana_async import ApiMall, ConfigurationError, DefApi, RetryPolicy, Timeouts
from nanobanana_async.config import gateway_from_env
from nanobanana_async.gateways import Secret
from tests.support.rows import each_row

MALL, DEF = {"APIMALL_API_KEY": "mall-key"}, {"DEFAPI_API_KEY": "def-key"}
NAMED_MALL, NAMED_DEF = {"NANOBANANA_GATEWAY": "apimall"}, {"NANOBANANA_GATEWAY": "defapi"}
MOVED = {"NANOBANANA_BASE_URL": "http://127.0.0.1:8080/"}


@each_row(
    ("environ", "kind", "key"),
    [
        (MALL, ApiMall, "mall-key"),
        (DEF, DefApi, "def-key"),
        (MALL | NAMED_MALL, ApiMall, "mall-key"),
        (DEF | NAMED_DEF, DefApi, "def-key"),
        (MALL | DEF | NAMED_MALL, ApiMall, "mall-key"),
        (MALL | DEF | NAMED_DEF, DefApi, "def-key"),
        (MALL | {"DEFAPI_API_KEY": "  "}, ApiMall, "mall-key"),
        (MALL | {"NANOBANANA_GATEWAY": ""}, ApiMall, "mall-key"),
        (DEF | {"NANOBANANA_GATEWAY": " DefApi "}, DefApi, "def-key"),
        ({"APIMALL_API_KEY": " mall-key\n"}, ApiMall, "mall-key"),
    ],
)
def test_environment_selects_the_gateway(environ: dict[str, str], kind: type, key: str) -> None:
    gateway = gateway_from_env(environ)
    assert type(gateway) is kind
    assert gateway.api_key == Secret(key)


@pytest.mark.parametrize("environ", [MALL, DEF, MALL | NAMED_MALL])
def test_environment_sets_the_base_url(environ: dict[str, str]) -> None:
    assert gateway_from_env(environ | MOVED).base_url == "http://127.0.0.1:8080"


@each_row(
    ("environ", "says"),
    [
        ({}, "set APIMALL_API_KEY or DEFAPI_API_KEY"),
        ({"APIMALL_API_KEY": " "}, "APIMALL_API_KEY is empty; pass one, or set APIMALL_API_KEY or DEFAPI_API_KEY"),
        (MALL | DEF, "choose one gateway with NANOBANANA_GATEWAY"),
        (MALL | {"NANOBANANA_GATEWAY": "openai"}, "must be one of apimall, defapi, not 'openai'"),
        (MALL | NAMED_DEF, "DEFAPI_API_KEY is not set"),
        (NAMED_MALL, "APIMALL_API_KEY is not set: it holds the API key of API Mall, .*run `nanobanana demo`"),
        (MALL | {"NANOBANANA_BASE_URL": "http://gateway.example"}, "must be https"),
    ],
)
def test_missing_or_ambiguous_environment_is_a_clear_error(environ: dict[str, str], says: str) -> None:
    with pytest.raises(ConfigurationError, match=says) as caught:
        gateway_from_env(environ)
    assert "mall-key" not in str(caught.value)


def test_process_environment_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NANOBANANA_GATEWAY", "NANOBANANA_BASE_URL", "APIMALL_API_KEY", "DEFAPI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigurationError):
        gateway_from_env()
    monkeypatch.setenv("APIMALL_API_KEY", "mall-key")
    assert gateway_from_env().api_key == Secret("mall-key")


@each_row("name", ["connect_s", "create_s", "query_s", "close_s"])
@each_row("value", [0, -1, "10", None])
def test_invalid_timeout_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=name):
        Timeouts(**{name: value})


@pytest.mark.parametrize("value", [0, -1, "10"])
def test_invalid_job_s_is_refused_by_name(value: Any) -> None:
    with pytest.raises(ConfigurationError, match="job_s"):
        Timeouts(job_s=value)


@pytest.mark.parametrize(
    ("name", "value"),
    [("max_attempts", 0), ("max_attempts", 2.5), ("max_wait_s", 0), ("first_backoff_s", -1), ("max_backoff_s", None)],
)
def test_invalid_retry_policy_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=name):
        RetryPolicy(**{name: value})


def test_documented_defaults() -> None:
    timeouts, retry = Timeouts(), RetryPolicy()
    assert (timeouts.create_s, timeouts.query_s, timeouts.close_s) == (120.0, 15.0, 10.0)
    assert retry.max_attempts >= 10
    assert (retry.retry_uncertain, retry.retry_unkeyed_5xx) == (False, False)
