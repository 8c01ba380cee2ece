"""Run many calls of a ledger at once, in few round trips to the server.

A call is a generator that yields requests and gets their rows. All calls go forward together: what they ask for in one
step is sent together and answered together, and rows of the same statement become one statement for all of them. A
flush of 200 transitions so takes as many round trips as one of them.
"""

from collections.abc import Callable, Collection, Generator, Iterable, Mapping, Sequence
from typing import Any, Generic, TypeVar

from attrs import define, field, frozen

from nanobanana_async.errors import LedgerError

T = TypeVar("T")
Row = tuple[Any, ...]
Rows = list[Row]


@frozen
class Statement:
    """A statement of its own."""

    sql: str
    values: Mapping[str, Any] = field(factory=dict)
    returns_rows: bool = True


@frozen
class StatementRow:
    """One row for a statement that works on many: its parameters are arrays, one for each column.

    The first column that it returns is the key, by which each call gets its own row.
    """

    sql: str
    row: Mapping[str, Any]

    @property
    def key(self) -> str:
        """The key of the row."""
        return str(self.row["key"])


SqlRequest = Statement | StatementRow
Work = Generator[Sequence[SqlRequest], list[Rows], T]


@frozen
class Call(Generic[T]):
    """A call of a ledger. Of the calls with a lane in common each begins after the end of the one before."""

    start: Callable[[Any], Work[T]]
    lanes: Collection[str] = ()


@define
class _Started:
    work: Work[Any]
    requests: Sequence[SqlRequest]


Result = tuple[Any, LedgerError | None]


def run_calls(
    calls: Sequence[Call[Any]], table: object, send: Callable[[Sequence[SqlRequest]], list[Rows]]
) -> list[Result]:
    """Run calls to their end; return the value or the error of each. `send` executes requests in their order.

    Only `LedgerError`, and an error of a value that has no form in the database, are a call's own: they are returned.
    """
    results: dict[int, Result] = {}
    waiting, started = list(range(len(calls))), dict[int, _Started]()
    while waiting or started:
        waiting = _start_free(waiting, calls, table, started, results)
        numbers = list(started)
        answers = iter(_send(send, [request for number in numbers for request in started[number].requests]))
        for number in numbers:
            call = started[number]
            rows = [next(answers) for _ in call.requests]
            _advance(number, call.work, rows, started, results)
    return [results[number] for number in range(len(calls))]


def _start_free(
    waiting: Sequence[int],
    calls: Sequence[Call[Any]],
    table: object,
    started: dict[int, _Started],
    results: dict[int, Result],
) -> list[int]:
    """Start the calls whose lanes are free; return those that wait."""
    taken = {lane for number in started for lane in calls[number].lanes}
    blocked: list[int] = []
    for number in waiting:
        lanes = calls[number].lanes
        if taken.isdisjoint(lanes):
            _advance(number, calls[number].start(table), None, started, results)
        else:
            blocked.append(number)
        taken.update(lanes)
    return blocked


def _advance(
    number: int, work: Work[Any], rows: list[Rows] | None, started: dict[int, _Started], results: dict[int, Result]
) -> None:
    try:
        requests = next(work) if rows is None else work.send(rows)
    except StopIteration as end:
        results[number] = end.value, None
    except LedgerError as error:
        results[number] = None, error
    except (ValueError, OverflowError, TypeError) as error:
        results[number] = None, LedgerError(f"the record can't be stored: {type(error).__name__}: {error}")
    else:
        started[number] = _Started(work, requests)
        return
    started.pop(number, None)


def _send(send: Callable[[Sequence[SqlRequest]], list[Rows]], requests: Sequence[SqlRequest]) -> Iterable[Rows]:
    """Return the rows of each request. Single rows of one statement are sent as one, sorted by key, before the rest.

    Sorted: two hosts that lock the same rows then wait for each other in turn, and not crosswise.
    """
    sets: dict[str, list[StatementRow]] = {}
    for request in requests:
        if isinstance(request, StatementRow):
            sets.setdefault(request.sql, []).append(request)
    together = [Statement(sql, _arrays(sorted(rows, key=lambda row: row.key))) for sql, rows in sets.items()]
    alone = [request for request in requests if isinstance(request, Statement)]
    if not together and not alone:
        return []
    answers = send([*together, *alone])
    by_key = {sql: {str(row[0]): row for row in rows} for sql, rows in zip(sets, answers, strict=False)}
    rest = iter(answers[len(together) :])
    return [
        next(rest) if isinstance(request, Statement) else _only(by_key[request.sql].get(request.key))
        for request in requests
    ]


def _arrays(rows: Sequence[StatementRow]) -> dict[str, list[Any]]:
    return {column: [row.row[column] for row in rows] for column in rows[0].row}


def _only(row: Row | None) -> Rows:
    return [] if row is None else [row]
