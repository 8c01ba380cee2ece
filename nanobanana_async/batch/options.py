"""The options of one batch, and the types of its input."""

from collections.abc import AsyncGenerator, AsyncIterable
from decimal import Decimal
from pathlib import Path
from typing import Any

from attrs import Attribute, field, frozen

from nanobanana_async.batch.rows import Requests, RowInput
from nanobanana_async.errors import ConfigurationError
from nanobanana_async.failures import to_failure_kinds
from nanobanana_async.images.names import NameTemplate
from nanobanana_async.validators import switch


def _check_name(_: Any, __: "Attribute[str | None]", name: object) -> None:
    if name is not None and not (isinstance(name, str) and name.strip()):
        raise ConfigurationError(f"batch must be a non-empty name or None, not {name!r}")


@frozen(kw_only=True)
class BatchOptions:
    """The options of one batch; see `Session.generate_many`."""

    name: str | None = field(default=None, validator=_check_name)
    ordered: bool = field(default=False, validator=switch)
    folder: Path | None = None
    names: NameTemplate | None = None
    max_credits: Decimal | None = None
    expected_credits: Decimal | None = None
    retry_failed: frozenset[str] = field(default=frozenset(), converter=to_failure_kinds)
    """The kinds of failures that are bought again."""
    progress: bool = field(default=False, validator=switch)


async def iterate(items: Requests) -> AsyncGenerator[RowInput, None]:
    """Yield the rows of an iterable or async iterable."""
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
    else:
        for item in items:
            yield item
