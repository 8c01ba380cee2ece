"""Seeds in which each process has two accounts in one session: in either order, or one of them is left out."""

import random
from typing import Any

from attrs import evolve

from nanobanana_async import ApiMall, DefApi, PollPolicy, RetryPolicy, Session, SqliteLedger, Timeouts
from nanobanana_async.emulator import GatewaySimulator
from nanobanana_async.emulator.stats import JobFacts
from nanobanana_async.gateways.contract import HttpRequest, HttpResponse
from tests.simulate.disturbances import Disturbance
from tests.simulate.life import Shared
from tests.simulate.network import Network, SentRequest, SimulatedTransport
from tests.simulate.oracle import Oracle
from tests.simulate.plan import Plan, draw_outages, plan_of
from tests.support.machine import Process

ACCOUNTS = (0, 1)


def accounts_plan_of(seed: int) -> Plan:
    """Return the plan of a seed; several accounts share no ledger between hosts."""
    plan = plan_of(seed)
    return evolve(plan, leases=False, keys=2 * plan.keys)


class AccountsNetwork(Network):
    """Carries requests to two accounts, each with its own jobs, limits, credits and outages."""

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        self.account = 0
        """Whose request is being sent."""
        self.account_of: dict[SentRequest, int] = {}
        plans: list[Plan] = []
        for account in ACCOUNTS:
            draw = random.Random(f"{self.plan.seed} account {account}")
            settings = evolve(
                self.plan.world,
                seed=2 * self.plan.seed + account,
                job_limit=draw.choice((None, 1, 2, 4)),
                credits=draw.choice((None, None, 8, 24)),
            )
            plans.append(evolve(self.plan, world=settings, outages=draw_outages(draw, self.plan.active_s)))
        self._plans = plans
        self.worlds = [GatewaySimulator(plan.world) for plan in plans]

    def draw(self, creates: bool, key: str) -> Disturbance:
        """Say what happens to the next request."""
        self.plan = self._plans[self.account]
        return super().draw(creates, key)

    def new_request(self, process: Process, request: HttpRequest, key: str, generation: int) -> SentRequest:
        """Return a request that is about to leave."""
        sent = super().new_request(process, request, key, generation)
        self.account_of[sent] = self.account
        if sent.creates and any(self.account_of[old] != self.account for old in self.of_key(key)):
            self.machine.note(process.name, f"{key} has moved to account {self.account}")
        return sent

    @property
    def moved(self) -> int:
        """How many jobs were sent with both accounts."""
        accounts = {(sent.key, self.account_of[sent]) for sent in self.creates}
        return len(accounts) - len({sent.key for sent in self.creates})

    def _arrive(self, sent: SentRequest, disturbance: Disturbance) -> None:
        self.world = self.worlds[self.account_of[sent]]
        super()._arrive(sent, evolve(disturbance, other_answer=False))  # it would be another account's


class AccountTransport(SimulatedTransport):
    """The transport of one account."""

    def __init__(self, network: AccountsNetwork, account: int, *parts: Any) -> None:
        super().__init__(network, *parts)
        self._accounts, self._account = network, account

    async def send(self, request: HttpRequest, *, timeout_s: float, fresh_connection: bool = False) -> HttpResponse:
        """Send a request with the account."""
        self._accounts.account = self._account  # nothing is awaited before it leaves
        return await super().send(request, timeout_s=timeout_s, fresh_connection=fresh_connection)


class AccountsOracle(Oracle):
    """Watches both accounts."""

    _network: AccountsNetwork

    def charges(self, key: str) -> list[JobFacts]:
        """Return what the accounts charged for a job."""
        bought = [job for world in self._network.worlds for job in world.jobs(self._machine.time())]
        return [job for job in bought if job.prompt.split()[0] == key]


class SharedAccounts(Shared):
    """Everything that the processes of one seed share, with two accounts."""

    network: AccountsNetwork

    def session(self, process: Process, *, last: bool = False) -> Session:
        """Return a session of a process with the accounts that it has."""
        draw = random.Random(f"{self.plan.seed} {process.name} accounts")
        accounts = list(ACCOUNTS) if last or draw.random() < 0.8 else [draw.choice(ACCOUNTS)]
        draw.shuffle(accounts)
        gateways = [self._gateway(process, each) for each in accounts]
        transports = [AccountTransport(self.network, each, process, self.oracle.key_of) for each in accounts]
        several = len(accounts) > 1
        return Session(
            gateways,
            prefer=draw.choice((None, "wait")) if several else None,
            ledger=SqliteLedger(self.disk.path),
            http=transports if several else transports[0],
            retry=RetryPolicy() if last else self.plan.retry,
            timeouts=Timeouts() if last else self.plan.timeouts,
            polling=PollPolicy(target_delay_s=2.0),
            observers=[self.oracle.observer(process)],
        )

    def _gateway(self, process: Process, account: int) -> ApiMall | DefApi:
        key, name = f"sk-{process.name}-{account}-0123456789", f"studio{account}"
        if self.plan.keyed:
            lifetime_s = self.plan.key_lifetime_s
            return ApiMall(api_key=key, account=name, key_lifetime_s=lifetime_s, expected_job_s=5.0)
        return DefApi(api_key=key, account=name, expected_job_s=5.0)

    def world_calms_down(self) -> None:
        """Let the accounts have all they need."""
        for world in self.network.worlds:
            world.set_job_limit(None)
            world.add_credits(100_000)
