"""Sum up the rows of a report while they are iterated."""

from array import array
from collections import Counter
from decimal import Decimal

from attrs import frozen

from nanobanana_async.report.row import ReportRow

_FRAMES = 3 / 4, 16 / 9  # limits of the frame, which shows every image completely
_SQUARE = 1.0


@frozen(kw_only=True)
class Credits:
    """What a batch has cost, and what is set aside for jobs that run or are in doubt."""

    spent: Decimal
    reserved: Decimal = Decimal(0)


class Summary:
    """Counts, sums and times of the added rows; a few numbers are kept for each row."""

    def __init__(self) -> None:
        self.rows = 0
        self.statuses: Counter[str] = Counter()
        self.shown: Counter[str] = Counter()
        """Rows in the gallery, by status."""
        self.accounts: Counter[str] = Counter()
        """Rows that succeeded, by the account that bought their jobs."""
        self.images = 0
        self.price_sum: Decimal | None = None
        """Of the credits of the rows; None until a row has a price."""
        self.sent_at = array("d")
        self.ended_at = array("d")
        self.slots = array("d")
        self.paid_at = array("d")
        self.paid = array("d")
        self.still_held: list[tuple[float, int]] = []
        """Start and slots of each unfinished job."""
        self._shapes: Counter[str] = Counter()

    def add(self, row: ReportRow) -> None:
        """Count a row."""
        self.rows += 1
        self.statuses[row.status] += 1
        if row.account is not None:
            self.accounts[row.account] += row.status == "succeeded"
        self.images += len(row.images)
        if row.images:
            self._shapes[str(row.settings.get("aspect_ratio"))] += 1
        sent_at = None if row.sent_at is None else row.sent_at.timestamp()
        ended_at = None if row.ended_at is None else row.ended_at.timestamp()
        if sent_at is not None and ended_at is not None:
            self.sent_at.append(sent_at)
            self.ended_at.append(max(sent_at, ended_at))
            self.slots.append(row.slots)
        elif sent_at is not None and row.status == "unfinished":
            self.still_held.append((sent_at, row.slots))
        if row.credits is not None:
            self.price_sum = (self.price_sum or Decimal(0)) + row.credits
            paid_at = ended_at or sent_at
            if paid_at is not None:
                self.paid_at.append(paid_at)
                self.paid.append(float(row.credits))

    @property
    def credits(self) -> Credits | None:
        """What the rows have cost; None if no price is known."""
        return None if self.price_sum is None else Credits(spent=self.price_sum)

    @property
    def durations_s(self) -> list[float]:
        """Duration of each job that has ended."""
        return [end - start for start, end in zip(self.sent_at, self.ended_at, strict=True)]

    @property
    def frame_ratio(self) -> float:
        """Aspect ratio (width by height) of the frames, from the most common image shape."""
        shapes = Counter({ratio: n for shape, n in self._shapes.items() if (ratio := _ratio(shape)) is not None})
        if not shapes:
            return _SQUARE
        return min(_FRAMES[1], max(_FRAMES[0], shapes.most_common(1)[0][0]))

    def held_spans(self) -> list[tuple[float, float, int]]:
        """Return spans of held slots: start, end, number. Unfinished jobs hold theirs until the last known time."""
        times = zip(self.sent_at, self.ended_at, self.slots, strict=True)
        spans = [(start, end, int(slots)) for start, end, slots in times]
        last = max((*self.ended_at, *(start for start, _ in self.still_held)), default=0.0)
        return spans + [(start, last, slots) for start, slots in self.still_held]


def _ratio(shape: str) -> float | None:
    wide, colon, high = shape.partition(":")
    if not (colon and wide.isdecimal() and high.isdecimal() and len(shape) < 12 and int(wide) and int(high)):
        return None
    return int(wide) / int(high)
