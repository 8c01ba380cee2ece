"""What the retry policy must know about a create of a job."""

from datetime import datetime

from nanobanana_async.engine.store import JobStore
from nanobanana_async.engine.tracked_job import TrackedJob
from nanobanana_async.gateways.contract import Gateway
from nanobanana_async.policy.retry import Attempt


def attempt_of(job: TrackedJob, gateway: Gateway, store: JobStore, now: float, *, sent_before: bool) -> Attempt:
    """Return what is known of the newest create of a job, at this time of the event loop."""
    record = job.record
    waited_s = max(0.0, now - job.first_attempt_at)
    return Attempt(
        keyed=gateway.supports_idempotency_keys,
        sent_before=sent_before,
        in_doubt=record.in_doubt,
        number=record.attempts + 1,
        waited_s=waited_s,
        key_age_s=0.0 if record.first_sent_at is None else _key_age_s(store, record.first_sent_at, waited_s),
        key_lifetime_s=gateway.key_lifetime_s,
    )


def _key_age_s(store: JobStore, first_sent_at: datetime, waited_s: float) -> float:
    """Return the age of a key, at least by the event loop's clock: it may come from a session before this one."""
    age_s = store.age_s(first_sent_at)
    return age_s if age_s < 0 else max(age_s, waited_s)
