"""Deliberate bugs in the library, which a test harness must detect."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from attrs import frozen

Change = tuple[Any, str, Any]
"""A class or module, the name of an attribute of it, and the attribute's new value."""


@frozen
class Mutation:
    """A named bug; `makes` returns the changes of the library that introduce it."""

    name: str
    makes: Callable[[], list[Change]]

    def applied(self) -> AbstractContextManager[None]:
        """Introduce the bug until the end of the block."""
        return patched(self.makes())


@contextmanager
def patched(changes: Sequence[Change]) -> Iterator[None]:
    """Set attributes of classes and modules until the end of the block."""
    before = [(owner, name, vars(owner)[name]) for owner, name, _ in changes]
    for owner, name, value in changes:
        setattr(owner, name, value)
    try:
        yield
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)
