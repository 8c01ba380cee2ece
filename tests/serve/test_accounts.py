"""The served API in front of several accounts."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("python_multipart", reason="the extra serve is missing: pip install -e '.[serve]'")

from nanobanana_async import ApiMall, Budget, ConfigurationError, DefApi, Session
from nanobanana_async.emulator import Emulator
from nanobanana_async.serve import Token, make_app
from tests.serve.serving import client_of, served
from tests.support.images import make_image
from tests.support.lazy import lazy
from tests.support.loopback import QUICK_POLLS, QUICK_RETRIES, emulated

if TYPE_CHECKING:
    import openai
else:
    openai = lazy("openai", "OpenAI's client is missing: pip install openai")

ONE, TWO = "sk-one-0123456789", "sk-two-0123456789"


def session_on(emulator: Emulator, ledger: Path | None = None) -> Session:
    gateways = [
        emulator.apimall(api_key=key, account=name, expected_job_s=0.01) for key, name in ((ONE, "one"), (TWO, "two"))
    ]
    return Session(gateways, ledger=ledger, polling=QUICK_POLLS, retry=QUICK_RETRIES)


@asynccontextmanager
async def client_on(emulator: Emulator, **settings: Any) -> AsyncIterator["openai.AsyncOpenAI"]:
    async with served(emulator, session=session_on(emulator), **settings) as (url, _), client_of(url) as client:
        yield client


async def test_request_is_bought_by_the_account_that_still_has_credits() -> None:
    async with emulated(api_keys=frozenset({TWO})) as emulator:
        async with client_on(emulator) as client:
            answer = await client.images.generate(prompt="a fox", response_format="url")
            edited = await client.images.edit(prompt="a hare", image=("fox.png", make_image()), response_format="url")
        assert answer.data
        assert edited.data
        assert emulator.stats().creates_accepted == 2


async def test_retry_with_the_key_of_a_request_buys_nothing_more() -> None:
    async with emulated(api_keys=frozenset({ONE, TWO})) as emulator:
        async with client_on(emulator) as client:
            for _ in range(2):
                await client.images.generate(prompt="a fox", extra_headers={"Idempotency-Key": "order-1"})
            listed = [(model.id, model.owned_by) async for model in await client.models.list()]
        assert emulator.stats().creates_accepted == 1
    assert listed == [("nano-banana-pro", "apimall")]


def test_token_with_a_budget_over_two_gateways_is_refused() -> None:
    session = Session([ApiMall(api_key=ONE, account="one"), DefApi(api_key=TWO, account="two")])
    with pytest.raises(ConfigurationError, match="accounts of one gateway"):
        make_app(session, tokens=[Token("ann", "0123456789-abcdef", budget=Budget(name="ann", max_credits=5))])
    make_app(session, tokens=[Token("ann", "0123456789-abcdef")])
