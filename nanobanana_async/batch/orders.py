"""What a user asked of a batch."""

from collections.abc import AsyncIterable, Iterable
from decimal import Decimal
from pathlib import Path

from attrs import frozen

from nanobanana_async.rows import Item

Requests = Iterable[Item] | AsyncIterable[Item]


@frozen(kw_only=True)
class Orders:
    """The settings of one batch; see `Session.generate_many`."""

    name: str | None = None
    ordered: bool = False
    folder: Path | None = None
    max_credits: Decimal | None = None
    expected_credits: Decimal | None = None
    retry_failed: bool = False
    progress: bool = False
