"""Check a whole file before anything is bought: its bad rows, and prompts that look like comments."""

from rich.console import Console

from nanobanana_async import Gateway
from nanobanana_async.cli.batch.checking import checking
from nanobanana_async.cli.batch.input_file import InputFile
from nanobanana_async.cli.batch.notes import Notes, row_numbers_text
from nanobanana_async.escaping import one_line
from nanobanana_async.formatting import plural

MAX_ERRORS = 5  # bad rows that are printed one by one


def count_valid_rows(source: InputFile, gateway: Gateway, notes: Notes) -> int | None:
    """Return the number of rows; print the errors and return None if a row is bad or there are none."""
    console, total = Console(stderr=True), 0
    bad: list[int] = []
    errors: list[str] = []
    for row in checking(source.rows(gateway, notes), "rows checked"):
        total += 1
        if row.error is not None:
            bad.append(row.number)
            if len(bad) <= MAX_ERRORS:
                errors.append(f"{source.title}, {source.unit} {row.number}: {row.error}")
    if left := bad[MAX_ERRORS:]:
        errors.append(f"{plural(len(left), 'more bad row')}: {row_numbers_text(left, source.unit)}")
    noted = filter(None, (source.note, *(f"{source.title}: {note}" for note in notes.sentences())))
    for sentence in (*noted, *errors):  # the notes may explain the errors, which a user reads first: they come last
        _print_error(console, sentence)
    if not total:
        _print_error(console, f"{source.title} is empty: it has no rows")
    elif bad:
        _print_error(console, f"nothing was bought: correct {plural(len(bad), 'row')} of {total} first")
    return None if bad or not total else total


def _print_error(console: Console, sentence: str) -> None:
    console.print(f"nanobanana: {one_line(sentence)}", markup=False, highlight=False, emoji=False, soft_wrap=True)
