"""What API Mall's lists say about further pages. Its relatives name some fields differently."""

from collections.abc import Mapping, Sequence
from typing import Any

from nanobanana_async.gateways.parsing import parse_optional_task_id

_PAGE_SIZES = ("limit", "page_size", "pageSize", "per_page")
_PAGE_COUNTS = ("total_pages", "totalPages", "pages")
_CURSORS = ("next_cursor", "nextCursor")
_MORE = ("has_more", "hasMore", "has_next", "hasNext")


def states_further_pages(facts: Mapping[str, Any], count: int) -> bool | None:
    """Return whether a list with so many items on this page has further pages; None if it does not say."""
    stated = _stated(facts)
    more, pages, page = first_present(stated, _MORE), first_present(stated, _PAGE_COUNTS), stated.get("page")
    if isinstance(more, bool):
        return more
    if isinstance(pages, int) and isinstance(page, int):
        return page < pages
    size = first_present(stated, _PAGE_SIZES)
    return count >= max(size, 1) if isinstance(size, int) else None


def next_cursor(facts: Mapping[str, Any]) -> str | None:
    """Return the text by which the next page of a list is asked for; None if the list has no cursors."""
    return parse_optional_task_id(
        first_present(_stated(facts), _CURSORS)
    )  # printable, bounded, and without the API key


def _stated(facts: Mapping[str, Any]) -> Mapping[str, Any]:
    pagination = facts.get("pagination")
    return {**facts, **pagination} if isinstance(pagination, Mapping) else facts


def first_present(fields: Mapping[str, Any], names: Sequence[str]) -> Any:
    """Return the first of these fields that is there."""
    return next((fields[name] for name in names if fields.get(name) is not None), None)
