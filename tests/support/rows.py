"""Tables of many small cases as one test each: pytest takes longer to set up and report a test than they take."""

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])


def each_row(names: str | tuple[str, ...], rows: Iterable[Any]) -> Callable[[F], F]:
    """Call a test with each row, as `pytest.mark.parametrize` does, in one test that names all rows that fail.

    For tests without fixtures that a call leaves changed.
    """
    columns = [name.strip() for name in names.split(",")] if isinstance(names, str) else [*names]
    table = [dict(zip(columns, row if len(columns) > 1 else (row,), strict=True)) for row in rows]
    assert table, "a test without rows tests nothing"

    def decorate(test: F) -> F:
        if inspect.iscoroutinefunction(test):

            @functools.wraps(test)
            async def called_async(**others: Any) -> None:
                failed = []
                for row in table:
                    try:
                        await test(**others, **row)
                    except Exception as error:
                        failed.append(_named(error, row))
                _report(failed)

            called: Callable[..., Any] = called_async
        else:

            @functools.wraps(test)
            def called_directly(**others: Any) -> None:
                failed = []
                for row in table:
                    try:
                        test(**others, **row)
                    except Exception as error:
                        failed.append(_named(error, row))
                _report(failed)

            called = called_directly
        signature = inspect.signature(test)
        left = [value for name, value in signature.parameters.items() if name not in columns]
        called.__signature__ = signature.replace(parameters=left)  # type: ignore[attr-defined]
        return called  # type: ignore[return-value]

    return decorate


def _named(error: Exception, row: dict[str, Any]) -> Exception:
    error.add_note(f"row: {row!r}"[:1000])
    return error


def _report(failed: list[Exception]) -> None:
    if len(failed) == 1:
        raise failed[0]
    if failed:
        raise ExceptionGroup("rows failed", failed)
