"""Read the balance of the account: one request of its own, in the budget of requests like a poll."""

import asyncio
import random
from decimal import Decimal

import anyio
from anyio.abc import TaskGroup

from nanobanana_async.engine.contained_send import send_contained
from nanobanana_async.engine.engine import Engine
from nanobanana_async.engine.workers import error_of_crash
from nanobanana_async.errors import (
    ConfigurationError,
    GatewayUnavailable,
    NanoBananaError,
    RateLimited,
    SessionClosed,
    TaskNotFound,
)
from nanobanana_async.gateways.capabilities import HasBalance
from nanobanana_async.gateways.contract import Gateway, Transport
from nanobanana_async.policy.retry import RetryPolicy, asked_wait_s, is_outage

MOST_ATTEMPTS = 4
LONGEST_WAIT_S = 15.0
"""How long the request waits for its turn, and between two attempts. The caller gets an error after that."""


class BalanceReader:
    """Reads the balance. Calls at the same time share one request, so that they leave the budget to the jobs."""

    def __init__(
        self, gateway: Gateway, transport: Transport, engine: Engine, retry: RetryPolicy, *, query_s: float
    ) -> None:
        self._gateway = gateway
        self._transport = transport
        self._engine = engine
        self._retry = retry
        self._query_s = query_s
        self._jitter = random.Random()
        self._answer: asyncio.Future[Decimal | NanoBananaError] | None = None

    async def read(self) -> Decimal:
        """Return the credits that the API may spend."""
        if not isinstance(self._gateway, HasBalance):
            raise ConfigurationError(f"the gateway {self._gateway.name} has no balance that a program can read")
        if self._answer is None:
            self._answer = asyncio.get_running_loop().create_future()
            try:
                self._engine.scheduler.start_background_task(self._fetch)
            except SessionClosed:
                self._answer = None
                raise
        balance = await asyncio.shield(self._answer)
        if isinstance(balance, NanoBananaError):
            raise balance.for_job("", safe_to_repeat=True)
        return balance

    async def _fetch(self, _: TaskGroup) -> None:
        """Give all waiters the balance or the error; in the session's task group, so that closing ends the waiting."""
        answer = self._answer
        found: Decimal | NanoBananaError = SessionClosed("the session was closed before the balance was read")
        try:
            found = await self._ask_repeatedly()
        except NanoBananaError as error:
            found = error
        except Exception as failure:  # a bug, which the log shows too
            found = error_of_crash(failure)
            raise
        finally:
            self._answer = None
            if answer is not None and not answer.done():
                answer.set_result(found)

    async def _ask_repeatedly(self) -> Decimal:
        poller = self._engine.poller
        attempt = 1
        while True:
            if not await poller.wait_until_admitted(self._engine.clock() + LONGEST_WAIT_S):
                if poller.outage.error is not None:
                    raise GatewayUnavailable(f"the gateway does not answer: {poller.outage.error.message}")
                raise RateLimited("the account's budget of requests leaves none for the balance now")
            try:
                return await poller.run_admitted_request(self._ask)
            except TaskNotFound as error:
                why = f"{self._gateway.base_url} does not state a balance (404): see the account's page"
                raise ConfigurationError(why) from error
            except NanoBananaError as error:
                passes = is_outage(error) or isinstance(error, RateLimited)
                backoff_s = self._retry.backoff_s(attempt, self._jitter.random())
                wait_s = max(asked_wait_s(error), backoff_s)
                if (
                    not passes
                    or attempt >= MOST_ATTEMPTS
                    or wait_s > LONGEST_WAIT_S
                    or poller.outage.is_hopeless(error)
                ):
                    raise
            attempt += 1
            await anyio.sleep(wait_s)

    async def _ask(self) -> Decimal:
        assert isinstance(self._gateway, HasBalance)
        response = await send_contained(self._transport, self._gateway.build_balance(), timeout_s=self._query_s)
        return self._gateway.read_balance(response)
