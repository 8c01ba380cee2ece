"""What the gallery can be filtered by: metadata and settings that several rows have in common."""

from typing import Any

from attrs import field, frozen

from nanobanana_async.report.row import ReportRow

_SETTING_NAMES = ("aspect_ratio", "resolution", "num_images", "output_format", "model")
_MOST_NAMES, _MOST_VALUES, _LONGEST = 40, 40, 200
_MOST_FILTERS = 8


@frozen
class Filter:
    """A name, and its values in the order in which they come."""

    number: int
    name: str
    distinct_values: list[str] = field(factory=list)
    row_counts: list[int] = field(factory=list)
    """In how many rows each value is."""

    @property
    def is_useful(self) -> bool:
        """Whether it divides the rows, and is not different in each row."""
        return 2 <= len(self.distinct_values) <= _MOST_VALUES and max(self.row_counts) > 1

    def count_value(self, value: str) -> int | None:
        """Count a value, and return its number; None once there are too many."""
        if value not in self.distinct_values:
            if len(self.distinct_values) > _MOST_VALUES:
                return None
            self.distinct_values.append(value)
            self.row_counts.append(0)
        number = self.distinct_values.index(value)
        self.row_counts[number] += 1
        return number


class Filters:
    """Collects names and values while the cards are written. Memory does not grow with the rows."""

    def __init__(self) -> None:
        self._filters: dict[str, Filter] = {}

    def index_row(self, row: ReportRow) -> dict[int, int]:
        """Return the number of the row's value for the number of each name."""
        found: dict[int, int] = {}
        for name, value in _facts(row).items():
            if name not in self._filters and len(self._filters) < _MOST_NAMES:
                self._filters[name] = Filter(len(self._filters), name)
            known = self._filters.get(name)
            if known is not None and (number := known.count_value(value)) is not None:
                found[known.number] = number
        return found

    def useful(self) -> list[Filter]:
        """Return the filters that the page offers."""
        return [each for each in self._filters.values() if each.is_useful][:_MOST_FILTERS]


def _facts(row: ReportRow) -> dict[str, str]:
    metadata = row.metadata if isinstance(row.metadata, dict) else {}
    given: dict[str, Any] = (
        {name: row.settings.get(name) for name in _SETTING_NAMES} | {"account": row.account} | metadata
    )
    ordered = {name: given[name] for name in (*metadata, *_SETTING_NAMES, "account")}
    short = (str, int, float, bool)
    texts = {str(name): str(value) for name, value in ordered.items() if isinstance(value, short)}
    return {name: text for name, text in texts.items() if text.strip() and len(text) <= _LONGEST}
