"""What a user should know about a file before its rows are bought: each thing once, with its count."""

from collections.abc import Iterator, Sequence

from attrs import define, field

from nanobanana_async.batch.columns import recognised_note, unknown_note
from nanobanana_async.formatting import plural

NAMED = 3
"""Rows that a sentence about several names by their numbers."""


@define
class Notes:
    """What was seen while a file was read."""

    unit: str = "line"
    delimiter: str = ","
    """What separates the cells of the table."""
    hashes: list[int] = field(factory=list)
    """The numbers of the rows whose prompts begin with #."""
    repeated: int = 0
    """Rows without a key that are equal to an earlier one."""
    same_request: int = 0
    """Rows with the prompt and settings of an earlier one, where one of the two has a key."""
    unknown: dict[str, None] = field(factory=dict)
    """Names that are no field, in order."""
    recognised: dict[str, str] = field(factory=dict)
    """Names that are read as a field of another name."""

    def sentences(self) -> Iterator[str]:
        """Yield a sentence about each thing that was seen."""
        what = "column" if self.unit == "row" else "field"
        yield from filter(None, (recognised_note(self.recognised.items(), what), unknown_note([*self.unknown], what)))
        if self.hashes:
            one = len(self.hashes) == 1
            begin = "begins with # and is a prompt" if one else "begin with # and are prompts"
            yield f"{row_numbers_text(self.hashes, self.unit)} {begin}: --comments '#' skips {'it' if one else 'them'}"
        if self.repeated:
            bought = "repeats an earlier one: it is bought as a separate image"
            if self.repeated > 1:
                bought = "repeat an earlier one: they are bought as separate images"
            yield f"{plural(self.repeated, self.unit)} {bought}"
        if self.same_request:
            have = "has" if self.same_request == 1 else "have"
            yield (
                f"{plural(self.same_request, self.unit)} {have} the prompt and settings of an earlier one under another"
                " key: each key is an image of its own"
            )


def row_numbers_text(numbers: Sequence[int], unit: str) -> str:
    """Return the first three numbers of rows, and how many more there are: "rows 2, 3, 5 and 8 more"."""
    shown = [f"{number:,}" for number in numbers[:NAMED]]
    if more := len(numbers) - len(shown):
        return f"{unit}s {', '.join(shown)} and {more:,} more"
    if len(shown) < 2:
        return f"{unit} {''.join(shown)}"
    return f"{unit}s {', '.join(shown[:-1])} and {shown[-1]}"
