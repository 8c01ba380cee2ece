"""One row of a batch as it is kept: a line of `results.jsonl`, a card of the gallery."""

import json
import math
from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal, InvalidOperation
from typing import Any, Literal, get_args

from attrs import asdict, field, fields_dict, frozen

from nanobanana_async.escaping import json_line

Status = Literal["succeeded", "failed", "refused", "uncertain", "unfinished", "invalid"]
STATUSES: tuple[Status, ...] = get_args(Status)

MOST_NESTED = 100
"""Far below what Python's encoder and decoder take, however deep the stack is from which they are called."""

_LONGEST_INT = 10**4000  # Python neither writes nor reads longer ones (`sys.set_int_max_str_digits`)


def _status(_: Any, __: Any, status: object) -> None:
    if status not in STATUSES:
        raise ValueError(f"status must be one of {', '.join(STATUSES)}, not {status!r}")


@frozen(kw_only=True)
class ReportRow:
    """What became of one row, as plain facts."""

    index: int
    """The row's place in the input, from 0."""
    key: str
    status: Status = field(validator=_status)
    prompt: str = ""
    settings: Mapping[str, Any] = field(factory=dict)
    """The fields of the request beside the prompt, those that were given, and the model that answered."""
    images: tuple[str, ...] = ()
    """Paths relative to the HTML file, with forward slashes."""
    credits: Decimal | None = None
    """After refunds; None when the gateway did not say."""
    task_id: str | None = None
    error: str | None = None
    error_kind: str | None = None
    """The name of a class of `nanobanana_async.errors`."""
    created_at: datetime | None = None
    sent_at: datetime | None = None
    """Since when it ran, as far as we know (`JobRecord.begun_at`); None when it was never sent."""
    ended_at: datetime | None = None
    slots: int = 1
    """How many job slots it held meanwhile."""
    metadata: Any = None
    """What the row carried along."""

    @property
    def seconds(self) -> float | None:
        """How long the job ran, until its end was seen."""
        if self.sent_at is None or self.ended_at is None:
            return None
        return max(0.0, (self.ended_at - self.sent_at).total_seconds())

    def to_json(self) -> str:
        """Return the row as one line of JSON, without its end; what JSON has no word for becomes text.

        Raises ValueError for what is nested more than 100 deep, or contains itself.
        """
        facts = {name: json_value(value) for name, value in asdict(self, recurse=False).items()}
        # What is escaped besides: ends of lines, what a terminal obeys, a lone surrogate out of a file's name.
        return json_line(json.dumps(facts, ensure_ascii=False, allow_nan=False))

    @classmethod
    def from_json(cls, line: str | bytes) -> "ReportRow":
        """Read such a line back; fields of later versions are passed over. Raises ValueError for anything else."""
        try:
            facts = json.loads(line)
            if not isinstance(facts, dict):
                raise ValueError("it is no JSON object")
            known = {name: value for name, value in facts.items() if name in fields_dict(cls)}
            for name in ("created_at", "sent_at", "ended_at"):
                known[name] = _moment(known.get(name))
            known["images"] = tuple(str(path) for path in known.get("images") or ())
            known["credits"] = _decimal(known.get("credits"))
            return cls(**known)
        except (TypeError, ValueError, InvalidOperation, RecursionError) as error:
            raise ValueError(f"this is no row of results: {error}") from error


def _moment(value: object) -> datetime | None:
    if value is None:
        return None
    moment = datetime.fromisoformat(str(value))
    if moment.tzinfo is None:
        raise ValueError(f"{value} has no time zone")
    return moment


def _decimal(value: object) -> Decimal | None:
    if value is None:
        return None
    number = Decimal(str(value))
    if not number.is_finite():
        raise ValueError(f"credits can't be {value}")
    return number


def json_value(value: Any, depth: int = 0) -> Any:
    """Return a value as JSON can hold it; raise ValueError for what is nested deeper than `MOST_NESTED`."""
    if depth > MOST_NESTED:
        raise ValueError(f"it is nested more than {MOST_NESTED} deep")
    match value:
        case None | bool() | str():
            return value
        case int():
            return value if abs(value) < _LONGEST_INT else hex(value)
        case float():
            return value if math.isfinite(value) else str(value)
        case datetime():
            return value.isoformat()
        case Mapping():
            return {str(name): json_value(inner, depth + 1) for name, inner in value.items()}
        case list() | tuple():
            return [json_value(inner, depth + 1) for inner in value]
        case _:
            return str(value)
