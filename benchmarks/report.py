"""How results are shown: tables for people, JSON for programs, a sign beside each target."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from attrs import asdict, field, frozen

Cell = str | float | int | None


@frozen(kw_only=True)
class Check:
    """A measured value beside its target."""

    what: str
    value: float
    target: float
    at_least: bool = False
    worst: float | None = None
    """Of the seeds; the value is their median."""

    @property
    def ok(self) -> bool:
        """Whether the target is met."""
        return self.value >= self.target if self.at_least else self.value <= self.target


@frozen(kw_only=True)
class Table:
    """Rows under a title; notes stand below."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    notes: Sequence[str] = ()


@frozen(kw_only=True)
class Section:
    """What one part of the benchmark found."""

    name: str
    tables: Sequence[Table] = ()
    checks: Sequence[Check] = ()
    plots: Sequence[str] = field(factory=tuple)


def shown(cell: Cell) -> str:
    """Write a cell as a person reads it."""
    match cell:
        case None:
            return "-"
        case bool() | str() | int():
            return str(cell)
        case float() if cell == 0 or abs(cell) >= 100:
            return f"{cell:.0f}"
        case float() if abs(cell) >= 10:
            return f"{cell:.1f}"
        case float():
            return f"{cell:.3f}".rstrip("0").rstrip(".") or "0"


def _lines(columns: Sequence[str], rows: Iterable[Sequence[Cell]]) -> list[str]:
    cells = [list(columns), *([shown(cell) for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(columns))]
    lines = [
        "  ".join(
            cell.ljust(width) if not column else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in cells
    ]
    return [lines[0], "-" * len(lines[0]), *lines[1:]]


def print_section(section: Section) -> None:
    """Print the tables, then the targets."""
    print(f"\n== {section.name}")
    for table in section.tables:
        print("\n" + "\n".join([table.title, *_lines(table.columns, table.rows), *table.notes]))
    if section.checks:
        rows = [
            (
                check.what,
                check.value,
                f"{'>=' if check.at_least else '<='} {shown(check.target)}",
                check.worst,
                "✓" if check.ok else "✗",
            )
            for check in section.checks
        ]
        print("\n" + "\n".join(_lines(("target", "measured", "wanted", "worst", ""), rows)))
    for plot in section.plots:
        print(f"plot: {plot}")


def write_section(section: Section, out: Path) -> None:
    """Write the same as JSON."""
    out.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = asdict(section)
    result["checks"] = [{**asdict(check), "ok": check.ok} for check in section.checks]
    (out / f"{section.name}.json").write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
