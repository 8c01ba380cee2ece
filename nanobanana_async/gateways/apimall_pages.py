"""What API Mall's lists say about further pages. Its relatives name some fields differently."""

from collections.abc import Mapping, Sequence
from typing import Any

_PAGE_SIZES = ("limit", "page_size", "pageSize", "per_page")
_PAGE_COUNTS = ("total_pages", "totalPages", "pages")
_MORE = ("has_more", "hasMore", "has_next", "hasNext")


def says_more(facts: Mapping[str, Any], count: int) -> bool | None:
    """Return whether a list with so many items on this page has further pages; None if it does not say."""
    pagination = facts.get("pagination")
    stated = {**facts, **pagination} if isinstance(pagination, Mapping) else facts
    more, pages, page = first(stated, _MORE), first(stated, _PAGE_COUNTS), stated.get("page")
    if isinstance(more, bool):
        return more
    if isinstance(pages, int) and isinstance(page, int):
        return page < pages
    size = first(stated, _PAGE_SIZES)
    return count >= max(size, 1) if isinstance(size, int) else None


def first(fields: Mapping[str, Any], names: Sequence[str]) -> Any:
    """Return the first of these fields that is there."""
    return next((fields[name] for name in names if fields.get(name) is not None), None)
