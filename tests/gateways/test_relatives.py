"""White-label relatives of API Mall: other hosts with the same paths, so that another `base_url` is all they need."""

import json
from decimal import Decimal
from typing import Any

import pytest

from nanobanana_async import ConfigurationError, Session
from nanobanana_async.emulator import Emulator
from nanobanana_async.errors import AccessDenied, UnexpectedResponse
from nanobanana_async.gateways import ApiMall, HttpRequest, HttpResponse
from nanobanana_async.models import ImageRequest
from nanobanana_async.testing import FakeTransport
from tests.support.fakes import virtually
from tests.support.replies import created, json_reply, task
from tests.support.rows import each_row

HOST = "https://gateway.nanobananapro.site"
KEY = "sk-1234567890abcdef"


def relative(**settings: Any) -> ApiMall:
    return ApiMall(api_key=KEY, base_url=HOST, **settings)


def test_paths_and_bodies_are_those_of_api_mall() -> None:
    ours, theirs = relative(), ApiMall(api_key=KEY)
    body = ours.encode(ImageRequest("a fox"))
    assert body == theirs.encode(ImageRequest("a fox"))
    for one, other in (
        (ours.build_create(body, wire_key="k"), theirs.build_create(body, wire_key="k")),
        (ours.build_query("img_1"), theirs.build_query("img_1")),
        (ours.build_balance(), theirs.build_balance()),
    ):
        assert one.url == other.url.replace("https://gateway.apimall.ai", HOST)
        assert (one.method, one.headers, one.body) == (other.method, other.headers, other.body)


def test_environment_selects_the_relative() -> None:
    environ = {"APIMALL_API_KEY": KEY, "NANOBANANA_BASE_URL": f"{HOST}/"}
    assert ApiMall.from_env(environ).base_url == HOST


@each_row(
    "path",
    [
        *("/api", "/api/v1", "/api/v1/images", "/api/v1/images/generate", "/api/v1/images/img_1"),
        *("/api/v1/account/balances", "/api/v1/files", "/api/image/gen", "/api/task/query", "/api/user"),
    ],
)
def test_address_with_a_path_of_the_api_is_refused(path: str) -> None:
    with pytest.raises(ConfigurationError, match=f"leave out {path}$"):
        ApiMall(api_key=KEY, base_url=f"{HOST}{path}")


@pytest.mark.parametrize("path", ["/gateway", "/apis", "/api-of-ours", "/v1", "/api/v1/of-ours"])
def test_address_may_have_a_path_of_its_own(path: str) -> None:
    assert ApiMall(api_key=KEY, base_url=f"{HOST}{path}").build_balance().url.startswith(f"{HOST}{path}/api/v1/")


def test_403_names_the_host_that_was_asked() -> None:
    body = {"success": False, "error": {"code": "forbidden", "message": "use the gateway host"}}
    with pytest.raises(AccessDenied, match=rf"or {HOST} is not the gateway.*check base_url"):
        relative().read_query(HttpResponse(status=403, body=json.dumps(body).encode()))


def test_page_instead_of_an_answer_names_the_host_that_was_asked() -> None:
    with pytest.raises(UnexpectedResponse, match=f"check base_url, which is {HOST}"):
        relative().read_query(HttpResponse(status=404, body=b"<html>"))


@virtually
async def test_job_of_a_relative_has_images_from_any_host() -> None:
    hosts: set[str] = set()
    image = "https://files.nanobananapro.site/a.png"

    def answer(request: HttpRequest) -> HttpResponse:
        hosts.add(request.url.removeprefix("https://").partition("/")[0])
        if request.url.endswith("/account/balances"):
            return json_reply(200, {"success": True, "data": {"web_credits": 3, "api_credits": 112}})
        return created() if request.method == "POST" else task("completed", primary_url=image)

    async with Session(relative(), http=FakeTransport(answer)) as session:
        assert (await session.generate("a fox")).url == image
        assert await session.balance() == 112
    assert hosts == {"gateway.nanobananapro.site"}


async def test_relative_is_served_over_sockets() -> None:
    async with Emulator(balance_fields="web_credits", web_credits=Decimal(5), credits=Decimal(100)) as emulator:
        gateway = ApiMall(api_key=emulator.apimall().api_key.reveal(), base_url=emulator.url)
        async with Session(gateway) as session:
            assert await session.balance() == 100
