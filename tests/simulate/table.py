"""Totals of many seeds, as a table."""

from collections import Counter
from collections.abc import Iterable

from tests.simulate.plan import SCENES, Scene
from tests.simulate.seed import Report

COLUMNS = (
    "seeds",
    "jobs",
    "processes",
    "kills",
    "burials",
    "creates",
    "moved",
    "in doubt",
    "repeats",
    "charges",
    "by hand",
    "doubles",
    "lost",
    "resolved",
    "succeeded",
    "failed",
    "refused",
    "uncertain",
    "pending",
    "violations",
)
_NOTE = (
    'In "apimall short" the gateway forgets keys before `key_lifetime_s` is over: there the promise does not hold,\n'
    "and doubles are counted without being violations. `by hand` are deliberate purchases with `buy_again`."
)


class Totals:
    """Sums per scene."""

    def __init__(self) -> None:
        self.sums: dict[Scene, Counter[str]] = {scene: Counter() for scene in sorted(set(SCENES))}
        self.rules: Counter[str] = Counter()

    def add(self, report: Report) -> None:
        """Count a seed."""
        sums = self.sums[report.scene]
        sums.update(report.counts)
        sums["seeds"] += 1
        sums["violations"] += len(report.violations)
        self.rules.update(violation.rule for violation in report.violations)

    def lines(self) -> Iterable[str]:
        """Yield the table."""
        scenes = list(self.sums)
        yield f"{'':<12}" + "".join(f"{scene:>18}" for scene in scenes)
        for column in COLUMNS:
            yield f"{column:<12}" + "".join(f"{self.sums[scene][column]:>18,}" for scene in scenes)
        yield ""
        yield _NOTE
        for rule, count in sorted(self.rules.items()):
            yield f"violated: {rule}: {count}"
