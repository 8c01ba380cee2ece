"""The stored result of one row of a batch: a line of `results.jsonl` and a card of the gallery."""

import json
import math
from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from typing import Any, Literal, TypeVar, get_args

from attrs import asdict, field, fields_dict, frozen

from nanobanana_async.escaping import json_line
from nanobanana_async.gateways.parsing import parse_decimal
from nanobanana_async.models import json_number
from nanobanana_async.validators import shown

T = TypeVar("T")
Status = Literal["succeeded", "failed", "refused", "uncertain", "unfinished", "invalid"]
STATUSES: tuple[Status, ...] = get_args(Status)

MAX_NESTING = 100
"""Far below the recursion limits of Python's JSON encoder and decoder, for any depth of the calling stack."""

_MAX_INT = 10**4000  # Python neither writes nor reads longer integers (`sys.set_int_max_str_digits`)


_TEXT_OR_NONE = (str, type(None))
_FIELD_TYPES: Mapping[str, tuple[type, ...]] = {
    **dict.fromkeys(("index", "number", "slots"), (int,)),
    **dict.fromkeys(("job_key", "prompt"), (str,)),
    **dict.fromkeys(("key", "task_id", "error", "error_kind", "failure_kind"), _TEXT_OR_NONE),
    "settings": (dict,),
}
"""What the fields of a line must be, where nothing else checks them."""
_FIRST_YEAR, _LAST_YEAR = 1970, 9000  # beyond them a time can't be shown in each time zone


def _check_status(_: Any, __: Any, status: object) -> None:
    if status not in STATUSES:
        raise ValueError(f"status must be one of {', '.join(STATUSES)}, not {status!r}")


@frozen(kw_only=True)
class ReportRow:
    """The result of one row, as plain values."""

    index: int
    """The row's place in the input, from 0."""
    number: int = 0
    """Its line in a text file, its row in a table: what people call it. 0 if it is not known."""
    job_key: str
    """The key of its job; empty if the row was invalid and had no key."""
    key: str | None = None
    """The row's own key, of the input file."""
    status: Status = field(validator=_check_status)
    prompt: str = ""
    settings: Mapping[str, Any] = field(factory=dict)
    """The given fields of the request except the prompt, and the model that was used."""
    images: tuple[str, ...] = ()
    """Paths relative to the HTML file, with forward slashes; URLs of images in an object store."""
    missing: tuple[str, ...] = ()
    """Why images of a succeeded job are missing, one sentence each, such as "image 3: the link is no URL"."""
    credits: Decimal | None = None
    """After refunds; None if the gateway did not report them."""
    task_id: str | None = None
    account: str | None = None
    """The account that bought its job, by its identifier in ledgers."""
    error: str | None = None
    error_kind: str | None = None
    """The name of a class of `nanobanana_async.errors`."""
    changed: tuple[str, ...] = ()
    """The fields of the row that were edited since it was bought: prompt, settings and images are those bought."""
    failure_kind: str | None = None
    """Of a task that failed: moderation, capacity, input or unknown."""
    created_at: datetime | None = None
    sent_at: datetime | None = None
    """The estimated start of the job (`JobRecord.may_run_since`); None if it was never sent."""
    ended_at: datetime | None = None
    slots: int = 1
    """Job slots that the job held."""
    metadata: Any = None
    """The metadata of the row."""

    @property
    def seconds(self) -> float | None:
        """Seconds from sending the job to detecting its end."""
        if self.sent_at is None or self.ended_at is None:
            return None
        return max(0.0, (self.ended_at - self.sent_at).total_seconds())

    def to_json(self) -> str:
        """Return the row as one line of JSON without a newline; values without a JSON type become strings.

        Raises ValueError for values that are nested more than 100 deep or contain themselves.
        """
        facts = {name: json_value(value) for name, value in asdict(self, recurse=False).items()}
        facts["credits"] = None if self.credits is None else json_number(self.credits)
        # json_line also escapes line separators, control characters, and lone surrogates of file names.
        return json_line(json.dumps(facts, ensure_ascii=False, allow_nan=False))

    @classmethod
    def from_json(cls, line: str | bytes) -> "ReportRow":
        """Parse such a line; unknown fields are ignored. Raises ValueError for other content."""
        try:
            facts = json.loads(line)
            if not isinstance(facts, dict):
                raise ValueError("not a JSON object")
            known = {name: value for name, value in facts.items() if name in fields_dict(cls)}
            for name in ("created_at", "sent_at", "ended_at"):
                known[name] = _moment(known.get(name))
            for name in ("images", "missing", "changed"):
                known[name] = values_of(known, name, str)
            known["credits"] = _decimal(known.get("credits"))
            for name, kinds in _FIELD_TYPES.items():
                if not isinstance(known.get(name, kinds[0]()), kinds):
                    raise ValueError(f"{name} is {shown(known[name])}")
            for name in ("settings", "metadata"):  # what can't be written again is not read
                json_value(known.get(name))
            return cls(**known)
        except (TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"not a row of results: {error}") from error


def values_of(facts: Mapping[str, Any], name: str, kind: type[T]) -> tuple[T, ...]:
    """Return a list of texts or numbers among the facts of a line; raise ValueError if it is none."""
    values = facts.get(name) or []
    if not isinstance(values, list) or not all(isinstance(value, kind) for value in values):
        raise ValueError(f"{name} is {shown(values)}")
    return tuple(values)


def _moment(value: object) -> datetime | None:
    if value is None:
        return None
    moment = datetime.fromisoformat(str(value))
    if moment.tzinfo is None:
        raise ValueError(f"{value} has no time zone")
    if not _FIRST_YEAR <= moment.year <= _LAST_YEAR:
        raise ValueError(f"{value} is no time of a job")
    return moment


def _decimal(value: object) -> Decimal | None:
    if value is None:
        return None
    if (amount := parse_decimal(str(value))) is None:
        raise ValueError(f"credits must be a number, not {value}")
    return amount


def json_value(value: Any, depth: int = 0) -> Any:
    """Convert a value to JSON types; raises ValueError if it is nested deeper than `MAX_NESTING`."""
    if depth > MAX_NESTING:
        raise ValueError(f"nested more than {MAX_NESTING} deep")
    match value:
        case None | bool() | str():
            return value
        case int():
            return value if abs(value) < _MAX_INT else hex(value)
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
