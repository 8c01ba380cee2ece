"""The commands on jobs in a session with several accounts: each goes to the engine of the job's account."""

from collections import ChainMap
from collections.abc import Hashable, Sequence
from decimal import Decimal

from nanobanana_async.engine.engine import Engine
from nanobanana_async.engine.rare_facts import NO_SOURCES
from nanobanana_async.engine.references import References
from nanobanana_async.engine.routing import Router
from nanobanana_async.engine.tracked_job import TrackedJob
from nanobanana_async.errors import ConfigurationError, TaskNotFound
from nanobanana_async.images.local import LocalImagesByDigest
from nanobanana_async.jobs import JobRecord, Observation
from nanobanana_async.keys import is_generated_key, validate_key
from nanobanana_async.models import ImageRequest, same_request, with_model
from nanobanana_async.policy.budget import Cap, LedgerCap, MemoryCap
from nanobanana_async.policy.named_budget import Budget
from nanobanana_async.policy.prices import Prices


class JointPrices(Prices):
    """The highest price that an account of the session states for a class: what a cap in memory counts with."""

    def __init__(self) -> None:
        super().__init__()
        self.accounts: Sequence[Prices] = ()

    def price_of(self, price_class: str) -> Decimal | None:
        """Return the price of a class; None if no account knows it."""
        return max(
            (each for prices in self.accounts if (each := prices.price_of(price_class)) is not None), default=None
        )


class JointReferences(References):
    """Reads the local images of requests that any account may buy: each gateway must take them."""

    def __init__(self, engines: Sequence[Engine]) -> None:
        self._of_gateways = {engine.gateway.name: engine.references for engine in engines}

    async def digest_images(self, request: ImageRequest) -> tuple[ImageRequest, LocalImagesByDigest]:
        """Return the request with its local images in their stored form, and these images."""
        found = request, NO_SOURCES
        for references in self._of_gateways.values():
            found = await references.digest_images(request)
        return found


def one_gateway_error(cap: str) -> ConfigurationError:
    """Return the error for a cap of credits over the accounts of several gateways."""
    return ConfigurationError(
        f"{cap} needs accounts of one gateway: a credit of another gateway is worth something else"
    )


class RoutedEngine(Engine):
    """An `Engine` over one engine for each account. What concerns no job is the first engine's."""

    def __init__(self, engines: Sequence[Engine], router: Router, prices: JointPrices) -> None:
        first = engines[0]
        self.clock, self.guard, self.store = first.clock, first.guard, first.store
        self.gateway, self.account = first.gateway, first.account
        self.slots, self.poller, self.submitter = first.slots, first.poller, first.submitter
        self.estimates, self.history, self.references = first.estimates, first.history, JointReferences(engines)
        self.claimer, self.scheduler = first.claimer, first.scheduler
        self.members, self.orphans_seen = tuple(engines), first.orphans_seen
        self.tracked = ChainMap(*(engine.scheduler.tracked for engine in engines))
        self.router = router
        self._prices = prices
        prices.accounts = [engine.store.credits.prices for engine in engines]
        self._unsubmitted_requests: dict[str, ImageRequest] = {}
        """Key -> the request of a record that was made and not submitted yet."""

    def home_of(self, job: TrackedJob) -> Engine:
        """Return the engine of the job's account."""
        return self.router.home_of(job.record)

    async def new_record(
        self,
        request: ImageRequest,
        key: str,
        *,
        batch: str | None = None,
        budget: Budget | None = None,
        priority: int = 0,
        group: str | None = None,
        with_callback: bool = True,
    ) -> JobRecord:
        """Return the record of a new job for the account of its key, or for the one that should buy it.

        Raises `InvalidRequest`, before anything is stored, for a request that no account can take.
        """
        key = validate_key(key)
        home = self.router.find_follower(key)
        if home is None and not is_generated_key(key) and (known := await self.store.ledger.find(key)) is not None:
            home = self.router.find_follower(key) or self.router.by_account.get(known.account)
        if budget is not None:
            self._check_one_gateway("a budget")
        home = home or self.router.choose(request, priority)
        record = await home.new_record(
            request, key, batch=batch, budget=budget, priority=priority, group=group, with_callback=with_callback
        )
        self._unsubmitted_requests[key] = request
        return record

    def submit(
        self,
        record: JobRecord,
        *caps: Cap,
        expected_credits: Decimal | None = None,
        retry_failed: frozenset[str] = frozenset(),
        sources: LocalImagesByDigest = NO_SOURCES,
        group: Hashable = None,
    ) -> TrackedJob:
        """Let the account of the record buy the job, or return the job that an account has under its key."""
        asked = self._unsubmitted_requests.pop(record.key, None)
        model = self.router.home_of(record).gateway.model
        if asked is None or record.request is None or not same_request(with_model(asked, model), record.request):
            asked = None  # of another call with this key
        home = self.router.find_follower(record.key) or self.router.home_of(record)
        if home.account != record.account and asked is not None and home.account in self.router.by_account:
            record = self.router.record_for(home, record, asked)
        job = home.submit(
            record,
            *caps,
            expected_credits=expected_credits,
            retry_failed=retry_failed,
            sources=sources,
            group=group,
        )
        self.router.count_arriving(job, home, asked)
        return job

    def attach(self, record: JobRecord, seen: Observation) -> TrackedJob:
        """Raise `ConfigurationError`: it is unknown whose task it is."""
        raise ConfigurationError("the session has several accounts: attach a task in a session with its account alone")

    def make_cap(self, max_credits: Decimal, batch: str | None) -> Cap:
        """Return a cap of credits, which all accounts share."""
        self._check_one_gateway("max_credits")
        return MemoryCap(max_credits, self._prices) if batch is None else LedgerCap(max_credits)

    def _check_one_gateway(self, cap: str) -> None:
        """Raise `ConfigurationError` if the session has accounts of several gateways."""
        if len({engine.gateway.name for engine in self.members}) > 1:
            raise one_gateway_error(cap)

    async def find(self, key: str) -> TrackedJob | None:
        """Return the job with this key, tracked or from the ledger; None if there is none."""
        job = self.tracked.get(key)
        if job is None and (record := await self.store.ledger.find(key)) is not None:
            job = self.tracked.get(key) or self.router.home_of(record).build_tracked_job(record)
        return job

    def build_tracked_job(self, record: JobRecord) -> TrackedJob:
        """Return a `TrackedJob` for a record; it is not followed yet."""
        return self.router.home_of(record).build_tracked_job(record)

    def ensure_followed(self, job: TrackedJob) -> TrackedJob:
        """Follow a job that is not followed (any more). Return the one that is tracked under its key."""
        return self.home_of(job).ensure_followed(job)

    async def reload_and_follow(self, job: TrackedJob) -> TrackedJob:
        """Follow a job. Read it from the ledger first if another process may have resolved or continued it."""
        return await self.home_of(job).reload_and_follow(job)

    def resolve(self, job: TrackedJob, *, task_id: str | None, buy_again: bool) -> TrackedJob:
        """Resolve a job. See `Engine.resolve`."""
        return self.home_of(job).resolve(job, task_id=task_id, buy_again=buy_again)

    async def poll_again_for_images(self, job: TrackedJob) -> None:
        """Poll a job that has succeeded once more for its images."""
        await self.home_of(job).poll_again_for_images(job)

    async def fetch_image_links(self, task_id: str) -> dict[int, str]:
        """Poll a task once more for new links to its images, with the account that the ledger says has it."""
        for engine in self.members:
            known = await self.store.ledger.find_task(engine.account, task_id)
            if known is not None or self.scheduler.closing:  # which `fetch_image_links` says
                return await engine.fetch_image_links(task_id)
        for engine in self.members[:-1]:
            try:
                return await engine.fetch_image_links(task_id)
            except TaskNotFound:
                continue
        return await self.members[-1].fetch_image_links(task_id)

    def request_withdrawal(self, job: TrackedJob) -> bool:
        """Withdraw a job that was not sent yet. Return False if it was sent, or if another owner follows it."""
        return self.home_of(job).request_withdrawal(job)
