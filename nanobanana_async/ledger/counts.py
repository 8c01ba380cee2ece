"""Under which names a purchase counts in a ledger: its named batch, and its budget."""

from decimal import Decimal

from nanobanana_async.errors import LedgerError
from nanobanana_async.jobs import JobRecord
from nanobanana_async.policy.named_budget import Budget

Count = tuple[str, Decimal | None, Budget | None]
"""A name under which a ledger counts charges; its cap; and its budget, if it is one."""


def counts_of(job: JobRecord, max_credits: Decimal | None, budget: Budget | None) -> list[Count]:
    """Return how a purchase that is about to be sent counts; `max_credits` is the cap of its batch."""
    counts: list[Count] = [] if job.batch is None else [(job.batch, max_credits, None)]
    if budget is not None:
        counts.append((budget.count_name_at(job.sent_at or job.created_at), budget.max_credits, budget))
    return counts


def no_budget_error(name: str) -> LedgerError:
    """Return the error of a job whose budget was deleted from the ledger."""
    return LedgerError(f"budget {name} is not in the ledger: pass budget=Budget(...) with that name once")
