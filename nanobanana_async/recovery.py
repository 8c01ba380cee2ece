"""What a session does with the jobs of its ledger, for each of its accounts: attach, resume, resolve, reconcile."""

from collections.abc import Sequence

from nanobanana_async.callers import handle_once_stored
from nanobanana_async.engine.adoption import Adoption
from nanobanana_async.engine.engine import Engine
from nanobanana_async.engine.reconciler import Reconciler
from nanobanana_async.engine.resolver import ManualResolver
from nanobanana_async.engine.tracked_job import TrackedJob
from nanobanana_async.errors import ConfigurationError, SessionClosed
from nanobanana_async.escaping import as_plain_str
from nanobanana_async.events import log
from nanobanana_async.gateways.capabilities import HasHistory
from nanobanana_async.handle import Job
from nanobanana_async.jobs import JobRecord, JobSnapshot
from nanobanana_async.keys import key_for_task, validate_task_id
from nanobanana_async.ledger.sqlite import SqliteLedger
from nanobanana_async.models import ImageRequest
from nanobanana_async.validators import check_kind


async def attach_task(engine: Engine, task_id: str, key: str | None, request: ImageRequest | None) -> Job:
    """Poll a task by its id; see `Session.attach`."""
    task_id = validate_task_id(task_id)
    check_kind("request", request, (ImageRequest, type(None)), "an ImageRequest")
    if request is not None:
        request, _ = await engine.references.digest_images(request)
    for each in engine.members:
        known = await each.store.ledger.find_task(each.account, task_id)
        _check_open(engine)
        if known is not None:
            _check_attach_matches(each, known, key, request)
            if (tracked := await engine.find(known.key)) is not None:
                engine.keep_for_handle(tracked)
                return Job(engine, tracked)
    if len(engine.members) > 1:
        raise ConfigurationError("attach a task that the ledger does not know in a session with its account alone")
    record = engine.new_attached_record(task_id, key_for_task(task_id) if key is None else key, request)
    seen = await ManualResolver(engine).query_before_attach(record)
    return await handle_once_stored(engine, engine.attach(record, seen))


def _check_attach_matches(engine: Engine, known: JobRecord, key: str | None, request: ImageRequest | None) -> None:
    """Raise an error if a task that is a job already is to be attached under another key or request."""
    if key is not None and key != known.key:
        why = f"task {known.task_id} is job {known.key} in this ledger: attach it without a key, or with that one"
        raise ConfigurationError(why, key=known.key)
    if request is not None and known.request is not None:
        wanted = engine.new_attached_record(known.task_id or "", known.key, request)
        engine.claimer.check_same_purchase(known, wanted)


async def resume_jobs(engine: Engine, adoption: Adoption, *, buy: bool) -> list[Job]:
    """Adopt the unfinished jobs without an owner; see `Session.resume`."""
    adopted = await adoption.adopt(buy=buy)
    await _warn_of_absent_accounts(engine)
    return _handles_of(engine, adopted)


async def resolve_job(engine: Engine, job: Job | str, *, task_id: str | None, not_bought: bool, buy_again: bool) -> Job:
    """Resolve a job by hand; see `Session.resolve`."""
    chosen = [task_id is not None, not_bought, buy_again]
    if any(not isinstance(choice, bool) for choice in chosen) or chosen.count(True) != 1:
        raise ConfigurationError("pass exactly one of task_id, not_bought=True, buy_again=True")
    check_kind("job", job, (str, Job, JobSnapshot), "a Job or the key of one")
    key = as_plain_str(job) if isinstance(job, str) else job.key
    home = engine
    if len(engine.members) > 1 and (found := await engine.find(key)) is not None:
        _check_open(engine)
        home = engine.home_of(found)
    tracked = await ManualResolver(home).resolve(key, task_id=task_id, buy_again=buy_again)
    engine.keep_for_handle(tracked)
    return Job(engine, tracked)


async def reconcile_jobs(engine: Engine) -> list[Job]:
    """Find out which UNCERTAIN jobs were bought; see `Session.reconcile`."""
    asked = [each for each in engine.members if isinstance(each.gateway, HasHistory)] or engine.members
    return _handles_of(engine, [job for each in asked for job in await Reconciler(each).reconcile()])


def _check_open(engine: Engine) -> None:
    """Raise `SessionClosed` if the session was closed while a call waited: its ledger may be closed, too."""
    if engine.scheduler.closing:
        raise SessionClosed("the session was closed while you waited")


def _handles_of(engine: Engine, tracked: Sequence[TrackedJob]) -> list[Job]:
    """Return handles of jobs, oldest first. They outlive their callers from then on."""
    for job in tracked:
        engine.keep_for_handle(job)
    if len(engine.members) > 1:
        tracked = sorted(tracked, key=lambda job: job.record.created_at)
    return [Job(engine, job) for job in tracked]


async def _warn_of_absent_accounts(engine: Engine) -> None:
    """Log which accounts have jobs in the ledger and are not in the session: their jobs are left alone."""
    ledger = engine.store.ledger
    if len(engine.members) == 1 or not isinstance(ledger, SqliteLedger):
        return
    _check_open(engine)
    ours = {each.account for each in engine.members}
    for (gateway, account), count in (await ledger.count_by_account()).items():
        if account not in ours:
            what = "its jobs are left alone: open a session with this account to go on with them"
            facts = {"event": "account.absent", "account": account}
            log.warning("account.absent gateway=%s account=%s jobs=%d %s", gateway, account, count, what, extra=facts)
