"""The calls of a `Session` that buy: `generate`, `submit`, `generate_many`; and `feed` and `work`."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence, Sized
from decimal import Decimal
from typing import Any, Never

from nanobanana_async.batch.batch import Batch
from nanobanana_async.batch.feeding import Feeding, FeedReport, ledger_to_feed
from nanobanana_async.batch.inputs import to_requests
from nanobanana_async.batch.options import BatchOptions, check_saved
from nanobanana_async.batch.rows import Requests
from nanobanana_async.batch.runner import BatchRunner
from nanobanana_async.batch.work import WorkRunner
from nanobanana_async.callers import check_names, given_fields, handle_once_stored, result_for_caller
from nanobanana_async.engine.engine import Engine
from nanobanana_async.engine.lifecycle import SessionComponents
from nanobanana_async.engine.tracked_job import TrackedJob
from nanobanana_async.errors import ConfigurationError, JobFailureKind
from nanobanana_async.handle import Job
from nanobanana_async.image_saver import ImageSaver
from nanobanana_async.images.names import NameTemplate
from nanobanana_async.images.target import SaveTarget, as_target
from nanobanana_async.keys import generate_key
from nanobanana_async.ledger.memory import MemoryLedger
from nanobanana_async.models import (
    GenerationResult,
    ImageInput,
    ImageRequest,
    OutputFormat,
    Resolution,
    TaskType,
    to_request,
)
from nanobanana_async.policy.named_budget import Budget, BudgetState
from nanobanana_async.policy.prices import parse_credits
from nanobanana_async.policy.turn_settings import check_group, check_priority
from nanobanana_async.validators import as_timeout, check_kind
from nanobanana_async.values import is_absent, to_mapping


class Purchases(ABC):
    """The base class of `Session` with the calls that buy."""

    _components: SessionComponents

    @abstractmethod
    def _require_engine(self, *, closed_too: bool = False) -> Engine: ...

    async def generate(
        self,
        request: str | Mapping[str, Any] | ImageRequest,
        *,
        idempotency_key: str | None = None,
        timeout: float | None = None,
        budget: Budget | None = None,
        priority: int = 0,
        group: str | None = None,
        images: Sequence[ImageInput] = (),
        num_images: int = 1,
        aspect_ratio: str | None = None,
        resolution: Resolution | None = None,
        output_format: OutputFormat | None = None,
        model: str | None = None,
        task_type: TaskType | None = None,
        callback_url: str | None = None,
        extra: Mapping[str, Any] | None = None,
        **misspelt: Never,
    ) -> GenerationResult:
        """Buy one job and wait for its images.

        The fields from `images` on are those of `ImageRequest`, for a prompt that is given as text. A mapping has them
        itself, and may have a `key`, which is the idempotency key. That key becomes the job's `key`: the same key again
        is the same job and the same payment; another request with that key raises `IdempotencyConflict`. When the
        caller is cancelled, or after `timeout` seconds, a job that was not sent yet is withdrawn; one that was sent
        goes on and can be found by its key. Writing the withdrawal may take up to a second more. `budget` counts the
        job in the ledger, and raises `CreditLimitReached` where the job would pass it; one that is stored already
        keeps its budget. Raises `JobUnfinished` on timeout, which says which of the two is the case, a `GatewayError`
        if the gateway refuses, `JobFailed` if the task failed, `JobUncertain` if it may have been bought.

        Of the jobs that wait for a slot, those of a higher `priority` (-100 to 100) go first, and within a priority
        each `group`, such as a user, gets its fair share (`ConcurrencyPolicy.group_weights`); jobs without a group
        share one. Neither changes what is bought: the same key with another priority is the same job, which gets the
        higher of the two while it waits, and keeps its first group.
        """
        engine = self._require_engine()
        timeout = as_timeout("timeout", timeout)  # an invalid timeout must raise before anything is bought
        fields = given_fields(
            images=images,
            num_images=num_images,
            aspect_ratio=aspect_ratio,
            resolution=resolution,
            output_format=output_format,
            model=model,
            task_type=task_type,
            callback_url=callback_url,
            extra=extra,
            **misspelt,
        )
        tracked = await self._submit_request(request, idempotency_key, fields, budget, priority, group)
        return await result_for_caller(engine, tracked, timeout)

    async def submit(
        self,
        request: str | Mapping[str, Any] | ImageRequest,
        *,
        idempotency_key: str | None = None,
        budget: Budget | None = None,
        priority: int = 0,
        group: str | None = None,
        images: Sequence[ImageInput] = (),
        num_images: int = 1,
        aspect_ratio: str | None = None,
        resolution: Resolution | None = None,
        output_format: OutputFormat | None = None,
        model: str | None = None,
        task_type: TaskType | None = None,
        callback_url: str | None = None,
        extra: Mapping[str, Any] | None = None,
        **misspelt: Never,
    ) -> Job:
        """Store a job and return its handle; the job is bought when a slot is free.

        `await job.wait_for_task_id()` waits for the gateway's task id, `await job` for the images. See `generate` for
        the arguments.
        """
        engine = self._require_engine()
        fields = given_fields(
            images=images,
            num_images=num_images,
            aspect_ratio=aspect_ratio,
            resolution=resolution,
            output_format=output_format,
            model=model,
            task_type=task_type,
            callback_url=callback_url,
            extra=extra,
            **misspelt,
        )
        tracked = await self._submit_request(request, idempotency_key, fields, budget, priority, group)
        return await handle_once_stored(engine, tracked)

    def generate_many(
        self,
        requests: Requests,
        *,
        batch: str | None = None,
        ordered: bool = False,
        save_to: SaveTarget | None = None,
        names: str | None = None,
        sidecar: bool = False,
        max_credits: Decimal | float | None = None,
        budget: Budget | None = None,
        expected_credits: Decimal | float | None = None,
        retry_failed: bool | Collection[JobFailureKind] = False,
        max_budget_wait_s: float | None = None,
        progress: bool = False,
        priority: int = 0,
        group: str | None = None,
        **misspelt: Never,
    ) -> Batch:
        """Buy any number of jobs: `async for outcome in session.generate_many(prompts)`.

        `requests` is an iterable or async iterable, possibly infinite, of prompts, `ImageRequest`s, or mappings with
        its fields and optionally `key` and `metadata`; or a DataFrame with such columns, whose other columns become
        metadata. A plain iterator runs in the event loop: one that waits for a disk or a network should be an async
        iterator. An invalid row is an outcome with an error.

        A batch with a name, `batch`, can be run again: finished rows are returned without a request, running rows are
        polled, and only rows never bought are bought. `retry_failed` buys FAILED rows again: all but those that
        moderation stopped, or the given kinds, as in `{"capacity"}`. A row is identified by its `key`, or by its
        request and how often that occurred before, never by its position. This needs a ledger on disk.

        Outcomes come in the order in which rows end, or with `ordered` in the order of the input. `save_to` saves the
        images in the background, in a folder or in an object store: a path, an obstore store, one with a prefix, or a
        URL such as `s3://bucket/prefix`. `names` is a template of their names, with the fields `{row}` (its number,
        from 1), `{slug}` (of the prompt), `{key}` and `{metadata[NAME]}`; the default is the row's key, or
        `{row:04}-{slug}`. `sidecar` writes prompt, settings, key and price of each image into `NAME.json` beside it.
        `max_credits` caps everything ever spent under the name, `budget` what all calls with that budget spend. Until
        a price is known, jobs are bought one at a time at `expected_credits`, by default the example price of the
        gateway's reference. `max_budget_wait_s` bounds the wait for a used-up daily budget of the account
        (`BatchStopped`), and no other wait. `progress` shows a tqdm bar. `priority` and `group` are those of
        `generate`; without `group` the batch is a group of its own.
        """
        engine = self._require_engine()
        check_names(Purchases.generate_many, misspelt)
        if batch is not None and isinstance(self._components.ledger, MemoryLedger):
            raise ConfigurationError("a named batch needs a ledger on disk: Session(ledger='jobs.sqlite')")
        check_saved(save_to, names=names, sidecar=sidecar)
        options = BatchOptions(
            name=batch,
            ordered=ordered,
            target=None if save_to is None else as_target("save_to", save_to),
            sidecar=sidecar,
            names=None if names is None else NameTemplate("names", names),
            max_credits=parse_credits("max_credits", max_credits),
            budget=self._budget_of(budget, group),
            expected_credits=parse_credits("expected_credits", expected_credits),
            retry_failed=retry_failed,
            max_budget_wait_s=as_timeout("max_budget_wait_s", max_budget_wait_s),
            progress=progress,
            priority=priority,
            group=group,
        )
        requests = to_requests(requests)
        runner = BatchRunner(requests, options, engine, ImageSaver(engine, self._components.downloads))
        return Batch(runner, options, engine, len(requests) if isinstance(requests, Sized) else None)

    async def feed(
        self,
        rows: Requests,
        *,
        batch: str,
        names: str | None = None,
        max_credits: Decimal | float | None = None,
        budget: Budget | None = None,
        expected_credits: Decimal | float | None = None,
        retry_failed: bool | Collection[JobFailureKind] = False,
        priority: int = 0,
        group: str | None = None,
        **misspelt: Never,
    ) -> FeedReport:
        """Store the rows of a batch in a ledger that hosts share, for `work` on any of them. Nothing is bought here.

        `rows` are those of `generate_many`. Feeding the same rows again, or with more at the end, finds the known ones;
        it begins those again that were withdrawn or refused for a passing reason, with `retry_failed` also those that
        failed. Rows without a `key` are distinguished by their order, so one input is all of them; rows with keys may
        be fed in parts, from several hosts. `max_credits` caps all that is ever spent under the name, on all hosts; a
        later feed may change it, and raises it once all rows are stored. `names` is a template of the images' names, as
        in `generate_many`. `budget`, `priority` and `group` hold on each worker, for the rows that are new.

        Raises `InvalidRequest` for a row that can't be bought, or whose reference image only this host can read,
        `IdempotencyConflict` for a key that belongs to another request, and `ConfigurationError` for another input. The
        rows before it are stored then, and the corrected input continues.
        """
        engine = self._require_engine()
        check_names(Purchases.feed, misspelt)
        ledger = ledger_to_feed(self._components.ledger)
        options = BatchOptions(
            name=batch,
            names=None if names is None else NameTemplate("names", names),
            max_credits=parse_credits("max_credits", max_credits),
            budget=self._budget_of(budget, group),
            expected_credits=parse_credits("expected_credits", expected_credits),
            retry_failed=retry_failed,
            priority=priority,
            group=group,
        )
        return await Feeding(engine, ledger, options).feed(rows)

    def work(
        self,
        batch: str,
        *,
        save_to: SaveTarget | None = None,
        sidecar: bool = False,
        max_budget_wait_s: float | None = None,
        progress: bool = False,
        **misspelt: Never,
    ) -> Batch:
        """Buy rows of a fed batch: `async for outcome in session.work("spring", save_to=...)`, on as many hosts.

        Each row is drawn by one worker, a few at a time. It ends when all rows of the batch have ended on all hosts;
        until then it waits, and takes over what a host had drawn that has died or left. An outcome counts as delivered
        when the loop comes back for the next one: of what was not, another worker gets the outcome, without a second
        purchase. Rows that are not bought when it stops are left for others: with `async with session.work(...) as
        outcomes` at once when the loop is left early. Options are those of `generate_many`.
        """
        engine = self._require_engine()
        check_names(Purchases.work, misspelt)
        ledger = ledger_to_feed(self._components.ledger)
        check_saved(save_to, sidecar=sidecar)
        options = BatchOptions(
            name=batch,
            target=None if save_to is None else as_target("save_to", save_to),
            sidecar=sidecar,
            max_budget_wait_s=as_timeout("max_budget_wait_s", max_budget_wait_s),
            progress=progress,
        )
        runner = WorkRunner(ledger, options, engine, ImageSaver(engine, self._components.downloads))
        return Batch(runner, options, engine)

    async def budgets(self) -> Mapping[str, BudgetState]:
        """Return each budget by its name: what was spent, is reserved and is left, and when it counts from 0 again.

        All budgets of the ledger are there, also those that only other processes use.
        """
        store = self._require_engine().store
        for budget in self._components.budgets.values():
            await store.set_budget(budget)
        return {state.name: state for state in await store.ledger.budgets(store.utcnow())}

    def _budget_of(self, budget: Budget | None, group: str | None) -> Budget | None:
        """Return the budget of a call: the one that it names, or that of its group (`Session(budgets=...)`)."""
        check_kind("budget", budget, (Budget, type(None)), 'a Budget, such as Budget(name="alice", max_credits=100)')
        return self._components.budgets.get(check_group(group) or "") if budget is None else budget

    async def _submit_request(
        self,
        request: object,
        key: str | None,
        fields: Mapping[str, Any],
        budget: Budget | None,
        priority: int,
        group: str | None,
    ) -> TrackedJob:
        engine = self._require_engine()
        priority, group = check_priority(priority), check_group(group)
        budget = self._budget_of(budget, group)
        wanted, mapping = to_request(request, fields), to_mapping(request)
        if mapping is not None and not is_absent(own_key := mapping.get("key")):
            if key is not None:
                raise ConfigurationError("the mapping has a key: pass idempotency_key or that, not both")
            key = own_key
        key = generate_key() if key is None else key
        wanted, sources = await engine.references.digest_images(wanted)
        record = await engine.new_record(wanted, key, budget=budget, priority=priority, group=group)
        while (tracked := engine.submit(record, sources=sources)).is_being_withdrawn:
            await tracked.wait_for_change()  # its last caller has left: submit again once the job is withdrawn
        return tracked
