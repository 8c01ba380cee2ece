"""The settings of both gateways: validation, environment, and no key in any output."""

from decimal import Decimal
from typing import Any

import pytest
from attrs import evolve
from attrs.exceptions import FrozenInstanceError

from nanobanana_async.accounts import account_fingerprint
from nanobanana_async.errors import ConfigurationError
from nanobanana_async.gateways import ApiMall, DefApi
from nanobanana_async.gateways.base import GatewaySettings
from nanobanana_async.models import ImageRequest
from tests.support.rows import each_row

BOTH = [ApiMall, DefApi]
KEY = "k-secret-0123456789"

both = pytest.mark.parametrize("kind", BOTH)


@both
def test_key_is_stripped_and_hidden_in_repr(kind: type[GatewaySettings]) -> None:
    gateway = kind(api_key=f" {KEY}\n")  # type: ignore[call-arg]
    assert gateway.api_key.reveal() == KEY
    assert KEY not in repr(gateway)
    assert gateway.account == account_fingerprint(gateway.name, KEY)


@both
@pytest.mark.parametrize("key", ["", "  ", "two words", "schlüssel", "a\r\nb", "a\x00b", None, 5])
def test_invalid_key_is_refused_with_advice(kind: Any, key: object) -> None:
    with pytest.raises(ConfigurationError, match=f"(set|reads) {kind.key_variable},? or pass api_key") as caught:
        kind(api_key=key)
    assert not str(key).strip() or str(key) not in str(caught.value)


@both
@pytest.mark.parametrize(
    ("key", "why"),
    [
        ('"sk-1a2b3c4d"', "quotation marks"),
        ("'sk-1a2b3c4d'", "quotation marks"),
        ("sk-1a2b3c4d\u201d", "quotation marks"),
        ("Bearer sk-1a2b3c4d", 'begins with "Bearer"'),
        ("Authorization: Bearer sk-1a2b3c4d", 'begins with "Bearer"'),
        ("sk-1a2b\n3c4d", "line break"),
        ("sk-1a2b 3c4d", "space in it"),
        ("sk-\u200b1a2b3c4d", r"U\+200B \(ZERO WIDTH SPACE\) at position 4"),
        ("\ufeffsk-1a2b3c4d", r"U\+FEFF"),
        ("your-api-key", "placeholder"),
        ("YOUR_API_KEY_HERE", "placeholder"),
        ("<API_KEY>", "placeholder"),
        ("${APIMALL_API_KEY}", "placeholder"),
        ("sk-...", "placeholder"),
        ("sk-xxxxxxxx", "placeholder"),
        ("***", "placeholder"),
        ("changeme", "placeholder"),
    ],
)
def test_what_is_wrong_with_a_key_is_named(kind: Any, key: str, why: str) -> None:
    with pytest.raises(ConfigurationError, match=why) as caught:
        kind(api_key=key)
    assert kind.key_variable in str(caught.value)
    assert "1a2b" not in str(caught.value)


@each_row("key", ["sk-Your1a2bkey", "mykey1a2b", "emulator-key", "the-key", "k", "a:b/c+d=="])
def test_an_unusual_key_is_accepted(key: str) -> None:
    assert ApiMall(api_key=key).api_key.reveal() == key


@pytest.mark.parametrize("url", ["http://emulator:8080", "http://192.168.1.5", "http://host.docker.internal:80"])
def test_plain_http_to_another_machine_needs_consent(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NANOBANANA_ALLOW_HTTP", "1")  # which the constructor does not read
    with pytest.raises(ConfigurationError, match=r"containers, allow_http=True permits that"):
        ApiMall(api_key=KEY, base_url=url)
    assert ApiMall(api_key=KEY, base_url=url, allow_http=True).base_url == url
    variables = {"APIMALL_API_KEY": KEY, "NANOBANANA_BASE_URL": url}
    assert ApiMall.from_env(variables | {"NANOBANANA_ALLOW_HTTP": "1"}).base_url == url
    with pytest.raises(ConfigurationError, match=r"allow_http=True or NANOBANANA_ALLOW_HTTP=1 permits that"):
        ApiMall.from_env(variables)
    for refused, why in (("0", "must be https"), ("maybe", "NANOBANANA_ALLOW_HTTP must be 1 or 0")):
        with pytest.raises(ConfigurationError, match=why):
            ApiMall.from_env(variables | {"NANOBANANA_ALLOW_HTTP": refused})


@each_row(
    ("url", "expected"),
    [
        ("https://gateway.example/", "https://gateway.example"),
        (" https://gateway.example/proxy// ", "https://gateway.example/proxy"),
        ("http://127.0.0.1:8080", "http://127.0.0.1:8080"),
        ("http://127.8.9.1", "http://127.8.9.1"),
        ("http://LOCALHOST:1", "http://LOCALHOST:1"),
        ("http://[::1]:8080/", "http://[::1]:8080"),
    ],
)
def test_base_url_loses_trailing_slashes(url: str, expected: str) -> None:
    gateway = DefApi(api_key=KEY, base_url=url)
    assert gateway.base_url == expected
    assert gateway.build_query("t").url == f"{expected}/api/task/query?task_id=t"


@each_row(
    ("url", "why"),
    [
        ("http://gateway.example", "must be https"),
        ("http://127.0.0.1.example", "must be https"),
        ("http://128.0.0.1", "must be https"),
        ("http://0.0.0.0", "must be https"),
        ("https://me:pw@gateway.example", "credentials"),
        ("https://@gateway.example", "credentials"),
        ("https://gateway.example?x=1", "query"),
        ("https://gateway.example/#top", "fragment"),
        ("https://gateway.example/?", "query"),
        ("ftp://gateway.example", "https://"),
        ("gateway.example", "begin with https:// and name a host, not 'gateway.example': as in https://"),
        ("localhost:8123", "not 'localhost:8123': as in .* or in http://localhost:8123 for this machine"),
        ("me:pw@gateway.example", "begin with https:// and name a host: as in"),
        ("https://", "name a host, not 'https:'"),
        ("https://[::1", "host or port"),
        ("https://gateway.example:99999", "host or port"),
        ("https://gateway.example\\@evil.example", "backslashes"),
        ("https://gateway example", "visible ASCII"),
        ("https://gätewäy.example", "visible ASCII"),
        ("", "must be a URL"),
        (None, "must be a URL"),
    ],
)
def test_unsafe_base_url_is_refused(url: Any, why: str) -> None:
    with pytest.raises(ConfigurationError, match=why) as caught:
        ApiMall(api_key=KEY, base_url=url)
    assert "pw@" not in str(caught.value)


@both
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model", ""),
        ("model", " "),
        ("model", "a\nb"),
        ("model", None),
        ("expected_job_s", 0),
        ("expected_job_s", "20"),
        ("slots_per_image", 1),
        ("allow_http", "no"),
    ],
)
def test_invalid_setting_is_refused_by_name(kind: Any, name: str, value: object) -> None:
    with pytest.raises(ConfigurationError, match=name):
        kind(api_key=KEY, **{name: value})


def test_key_lifetime_may_be_zero_but_not_negative() -> None:
    assert ApiMall(api_key=KEY, key_lifetime_s=0).key_lifetime_s == 0
    with pytest.raises(ConfigurationError, match="key_lifetime_s"):
        ApiMall(api_key=KEY, key_lifetime_s=-1)


def test_settings_are_frozen_and_evolve_validates() -> None:
    gateway = ApiMall(api_key=KEY)
    assert evolve(gateway, expected_job_s=5).expected_job_s == 5
    with pytest.raises(FrozenInstanceError):
        gateway.model = "other"  # type: ignore[misc]
    with pytest.raises(ConfigurationError):
        evolve(gateway, api_key="")


@both
def test_environment_sets_key_and_base_url(kind: type[GatewaySettings]) -> None:
    environ = {kind.key_variable: KEY, "NANOBANANA_BASE_URL": "http://127.0.0.1:8080"}
    gateway = kind.from_env(environ)
    assert (gateway.api_key.reveal(), gateway.base_url) == (KEY, "http://127.0.0.1:8080")


@both
def test_arguments_override_the_environment(kind: type[GatewaySettings]) -> None:
    environ = {kind.key_variable: "other", "NANOBANANA_BASE_URL": "http://127.0.0.1:8080"}
    gateway = kind.from_env(environ, api_key=KEY, base_url="https://gateway.example", model="m")
    assert (gateway.api_key.reveal(), gateway.base_url, gateway.model) == (KEY, "https://gateway.example", "m")


@both
def test_empty_base_url_in_the_environment_is_ignored(kind: Any) -> None:
    gateway = kind.from_env({kind.key_variable: KEY, "NANOBANANA_BASE_URL": " "})
    assert gateway.base_url == kind(api_key=KEY).base_url


@both
@pytest.mark.parametrize("value", [None, "", " "])
def test_missing_key_error_names_the_variable(
    kind: type[GatewaySettings], value: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(kind.key_variable, raising=False)
    if value is not None:
        monkeypatch.setenv(kind.key_variable, value)
    state = "not set" if value is None else "empty"
    with pytest.raises(ConfigurationError, match=f"{kind.key_variable} is {state}"):
        kind.from_env()


def test_request_takes_one_slot_unless_images_count() -> None:
    three = ImageRequest("x", num_images=3)
    assert ApiMall(api_key=KEY).slots_for(three) == 1
    assert ApiMall(api_key=KEY, slots_per_image=True).slots_for(three) == 3


@pytest.mark.parametrize(
    ("gateway", "wanted", "expected"),
    [
        (ApiMall(api_key=KEY), ImageRequest("x", resolution="2K"), "apimall/nano-banana-pro/text-to-image/2K/1"),
        (
            ApiMall(api_key=KEY, model="m"),
            ImageRequest("x", images=["https://a.example/1"], num_images=4),
            "apimall/m/image-to-image/default/4",
        ),
        (DefApi(api_key=KEY), ImageRequest("x", model="n"), "defapi/n/text-to-image/default/1"),
        (
            DefApi(api_key=KEY, model="n"),
            ImageRequest("x", extra={"seed": 7, "quality": "high", "image_size": "4K"}),
            "defapi/n/text-to-image/default/1/image_size=4K/quality=high",
        ),
    ],
)
def test_price_class_holds_all_price_factors(gateway: ApiMall | DefApi, wanted: ImageRequest, expected: str) -> None:
    assert gateway.price_class(wanted) == expected


@pytest.mark.parametrize(
    ("gateway", "wanted", "example"),
    [
        (ApiMall(api_key=KEY), ImageRequest("x"), "8"),
        (ApiMall(api_key=KEY), ImageRequest("x", num_images=6), "48"),
        (DefApi(api_key=KEY), ImageRequest("x"), "0.5"),
    ],
)
def test_example_price_is_per_image(gateway: ApiMall | DefApi, wanted: ImageRequest, example: str) -> None:
    assert gateway.example_credits(wanted) == Decimal(example)


def test_expected_duration_is_read_from_the_environment() -> None:
    environ = {"APIMALL_API_KEY": "k", "NANOBANANA_EXPECTED_JOB_S": " 7.5 "}
    assert ApiMall.from_env(environ).expected_job_s == 7.5
    assert ApiMall.from_env(environ, expected_job_s=3.0).expected_job_s == 3.0
    assert ApiMall.from_env({**environ, "NANOBANANA_EXPECTED_JOB_S": ""}).expected_job_s == 20.0


@pytest.mark.parametrize("broken", ["soon", "-1", "nan"])
def test_invalid_expected_duration_is_refused_by_name(broken: str) -> None:
    with pytest.raises(ConfigurationError, match=r"(?i)expected_job_s"):
        ApiMall.from_env({"APIMALL_API_KEY": "k", "NANOBANANA_EXPECTED_JOB_S": broken})


@both
def test_named_account_survives_a_key_change(kind: Any) -> None:
    gateway = kind(api_key=KEY, account=" studio ")
    assert gateway.account == f"{gateway.name}:studio"
    assert evolve(gateway, api_key="another-key").account == gateway.account
    assert evolve(gateway, account="").account == account_fingerprint(gateway.name, KEY)
    assert kind(api_key=KEY, account=gateway.account) == gateway  # the form that ledgers and messages show
    assert kind(api_key=KEY, account="x" * 64).account == f"{gateway.name}:{'x' * 64}"
    assert account_fingerprint(gateway.name, KEY).isalnum()  # so no name is a fingerprint


@both
@pytest.mark.parametrize("name", ["x" * 65, "two words", "schlüssel", "a\nb", None, 5, KEY, f" {KEY} ", "third:studio"])
def test_invalid_account_name_is_refused_without_showing_the_key(kind: Any, name: object) -> None:
    with pytest.raises(ConfigurationError, match="account") as caught:
        kind(api_key=KEY, account=name)
    assert KEY not in str(caught.value)


@both
def test_environment_sets_the_account(kind: Any) -> None:
    environ = {kind.key_variable: KEY, "NANOBANANA_ACCOUNT": "studio"}
    assert kind.from_env(environ).account == f"{kind.short_name}:studio"
    assert kind.from_env(environ, account="other").account == f"{kind.short_name}:other"
    assert kind.from_env({**environ, "NANOBANANA_ACCOUNT": " "}).account == account_fingerprint(kind.short_name, KEY)
    with pytest.raises(ConfigurationError, match="account"):
        kind.from_env({**environ, "NANOBANANA_ACCOUNT": "two words"})
