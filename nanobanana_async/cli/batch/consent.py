"""Ask before a batch buys what its user may not mean; what is refused anyway is refused before the question."""

import asyncio
import sys
from collections.abc import Iterator

from nanobanana_async import ConfigurationError, Gateway
from nanobanana_async.cli.batch.checking import checking
from nanobanana_async.cli.batch.costs import Costs
from nanobanana_async.cli.batch.edited import find_edits
from nanobanana_async.cli.batch.folder import LEDGER, MARKER, BatchFolder, FolderOwner, unwritable_error
from nanobanana_async.cli.batch.input_file import STANDARD_INPUT
from nanobanana_async.cli.batch.notes import Notes, row_numbers_text
from nanobanana_async.cli.batch.results import RESULTS, OldResults
from nanobanana_async.cli.batch.run_options import RunOptions
from nanobanana_async.cli.batch.sweeping import SweepInput
from nanobanana_async.cli.jobs.actions import open_read_only
from nanobanana_async.cli.jobs.consent import confirm
from nanobanana_async.formatting import plain_number, plural
from nanobanana_async.images.files import check_place

ASKED_ABOVE = 100
"""A sweep of more rows is bought only after a question, or with --yes."""


def may_buy(options: RunOptions, gateway: Gateway, notes: Notes, owner: FolderOwner, *, yes: bool) -> bool:
    """Return whether the run may begin; it asks on a terminal.

    Raises `ConfigurationError` if the run can't begin, or without a terminal where an answer is needed. A rehearsal
    asks nothing.
    """
    try:
        check_place(options.folder)
    except OSError as error:
        raise unwritable_error(options.folder, error) from None
    unasked = yes or options.emulated
    questions = list(_questions(options, gateway, notes, yes=unasked))
    if questions and not unasked:
        _refuse_what_is_certain(options, gateway, owner)
    return all(confirm(question, yes=unasked) for question in questions)


def _questions(options: RunOptions, gateway: Gateway, notes: Notes, *, yes: bool) -> Iterator[str]:
    source = options.file
    asks = not yes and source.title != STANDARD_INPUT and sys.stdin.isatty()  # a pipe buys them: it may be no mistake
    if notes.hashes and asks:
        yield f"Images of {row_numbers_text(notes.hashes, source.unit)} will be bought."
    if isinstance(source, SweepInput) and options.total > ASKED_ABOVE:
        costs = Costs(gateway, {}, options.expected_credits)
        for row in checking(source.rows(gateway), "rows priced"):
            if row.request is not None:
                costs.add(row.request)
        price = f"about {plain_number(costs.total)} credits{' (estimate)' if costs.estimated else ''}"
        rows = plural(options.total, "row")
        yield f"This sweep has {rows}, {price}; what was bought before is not bought again."


def _refuse_what_is_certain(options: RunOptions, gateway: Gateway, owner: FolderOwner) -> None:
    """Raise `ConfigurationError` for what would end the run before it buys. A new folder is not created."""
    if not (options.folder / MARKER).exists():
        return
    ledger = options.folder / LEDGER
    with BatchFolder(options.folder, owner):
        if ledger.is_file() and ledger.stat().st_size and not options.buy_changed:
            asyncio.run(_refuse_edits(options, gateway))


async def _refuse_edits(options: RunOptions, gateway: Gateway) -> None:
    async with open_read_only(options.folder / LEDGER) as ledger:
        old = OldResults.read(options.folder / RESULTS)
        if why := (await find_edits(options.file, gateway, ledger, old)).why:
            raise ConfigurationError(why)
