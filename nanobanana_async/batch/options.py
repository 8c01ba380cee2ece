"""The options of one batch, and the types of its input."""

from collections.abc import AsyncGenerator, AsyncIterable, Callable
from decimal import Decimal
from typing import Any

from attrs import Attribute, field, frozen

from nanobanana_async.batch.rows import Requests, RowInput
from nanobanana_async.errors import ConfigurationError
from nanobanana_async.escaping import as_plain_str
from nanobanana_async.events import log
from nanobanana_async.failures import to_failure_kinds
from nanobanana_async.images.names import NameTemplate
from nanobanana_async.images.target import Target
from nanobanana_async.policy.named_budget import Budget
from nanobanana_async.policy.turn_settings import check_group, check_priority
from nanobanana_async.validators import validate_switch

BLOCKED_S = 0.25
"""How long a plain iterator may take for a row until the log says that it stops the event loop."""

_ADVICE = "the event loop stops while the next row is read: pass an async iterator, or a list that is read before"


def _to_name(name: str | None) -> str | None:
    return as_plain_str(name)


def _check_name(_: Any, __: "Attribute[str | None]", name: object) -> None:
    if name is not None and not (isinstance(name, str) and name.strip()):
        raise ConfigurationError(f"batch must be a non-empty name or None, not {name!r}")


@frozen(kw_only=True)
class BatchOptions:
    """The options of one batch; see `Session.generate_many`."""

    name: str | None = field(default=None, converter=_to_name, validator=_check_name)
    ordered: bool = field(default=False, validator=validate_switch)
    target: Target | None = None
    """Where the images are saved."""
    sidecar: bool = field(default=False, validator=validate_switch)
    names: NameTemplate | None = None
    max_credits: Decimal | None = None
    budget: Budget | None = None
    expected_credits: Decimal | None = None
    retry_failed: frozenset[str] = field(default=frozenset(), converter=to_failure_kinds)
    """The kinds of failures that are bought again."""
    max_budget_wait_s: float | None = None
    """The longest wait for a used-up budget of the account; None: as long as it takes."""
    progress: bool = field(default=False, validator=validate_switch)
    priority: int = field(default=0, converter=check_priority)
    group: str | None = field(default=None, converter=check_group)


def check_saved(save_to: object, *, names: object = None, sidecar: object = False) -> None:
    """Raise `ConfigurationError` for options of saved images where none are saved."""
    given = [name for name, is_given in (("names", names is not None), ("sidecar", sidecar is True)) if is_given]
    if save_to is None and given:
        raise ConfigurationError(f"{given[0]} is for images that are saved: pass save_to, the folder or store, with it")


async def iterate(items: Requests, clock: Callable[[], float]) -> AsyncGenerator[RowInput, None]:
    """Yield the rows of an iterable or async iterable. Log once if a plain iterator blocks the event loop."""
    if isinstance(items, AsyncIterable):
        try:
            async for item in items:
                yield item
        finally:
            if isinstance(items, AsyncGenerator):  # now, and not when it is garbage collected
                await items.aclose()
        return
    rows, logged = iter(items), False
    while True:
        begun_at = clock()
        try:
            item = next(rows)
        except StopIteration:
            return
        took_s = clock() - begun_at
        if took_s > BLOCKED_S and not logged:
            logged = True
            log.warning("batch.input_blocks took=%.2fs advice=%s", took_s, repr(_ADVICE))
        yield item
