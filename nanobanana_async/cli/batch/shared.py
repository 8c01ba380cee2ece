"""`nanobanana batch` with a ledger that hosts share: feed the rows, then buy some of them here."""

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from nanobanana_async import Gateway, IdempotencyConflict, InvalidRequest, LedgerError, Session
from nanobanana_async.batch.rows import Row
from nanobanana_async.cli.batch.folder import LEDGER, MARKER
from nanobanana_async.cli.batch.run_options import RunOptions
from nanobanana_async.cli.batch.work import Work, WorkOptions
from nanobanana_async.commands import command_line
from nanobanana_async.errors import ConfigurationError
from nanobanana_async.formatting import credit_count, plural
from nanobanana_async.images.target import Target
from nanobanana_async.ledger.location import ledger_at
from nanobanana_async.ledger.postgres.url import PostgresUrl
from nanobanana_async.references import local_digests

INTERRUPTED = 130


def check_ledger_options(
    ledger: PostgresUrl | None, output: Target | None, not_shared: Mapping[str, object], *, feed_only: bool
) -> Target:
    """Return the target; raise `ConfigurationError` for options that do not go with the ledger."""
    if ledger is None and feed_only:
        raise ConfigurationError("--feed-only feeds a ledger that hosts share: pass --ledger postgresql://...")
    if output is None and not feed_only:
        raise ConfigurationError("batch needs --output, such as -o spring")
    if ledger is not None and (given := [name for name, value in not_shared.items() if value]):
        raise ConfigurationError(
            f"{given[0]} is for a batch with a ledger in its folder, not for one that hosts share: leave it out, or"
            " leave out --ledger and NANOBANANA_LEDGER"
        )
    if ledger is not None:
        refuse_folder_of_batch(output)
    return Path() if output is None else output


def refuse_folder_of_batch(output: Target | None) -> None:
    """Raise `ConfigurationError` for the folder of a batch with its own ledger: its rows would be bought again."""
    if isinstance(output, Path) and (output / MARKER).exists():
        raise ConfigurationError(
            f"{output} holds a batch whose ledger is {output / LEDGER}: to go on with it, leave out --ledger and"
            " NANOBANANA_LEDGER; for a batch that hosts share name another folder with -o"
        )


async def feed_and_work(options: RunOptions, gateway: Gateway, output: Target | None) -> int:
    """Feed the rows of a file, then work on the batch, unless `output` is None."""
    ledger = options.ledger
    if ledger is None:
        raise ConfigurationError("no ledger that hosts share")
    if len(options.accounts) > 1:
        raise ConfigurationError("a ledger that hosts share takes one account: choose its profile, or no --ledger")
    name = options.file.batch
    _refuse_local_images(options, gateway)
    print(f"feeding {plural(options.total, 'row')} of batch {name} into {ledger}", file=sys.stderr)
    try:
        async with Session(gateway, ledger=ledger_at(ledger), trust_env=True, adopt=None) as session:
            report = await session.feed(
                _rows(options, gateway),
                batch=name,
                max_credits=options.max_credits,
                budget=options.turn.budget,
                priority=options.turn.priority,
                group=options.turn.group,
                expected_credits=options.expected_credits,
                retry_failed=options.retry_failed,
            )
    except (LedgerError, IdempotencyConflict, InvalidRequest) as error:
        raise ConfigurationError(f"{error.message}; nothing was bought here") from None
    cap = "no cap" if report.max_credits is None else f"a cap of {credit_count(report.max_credits)}"
    known = f", {report.known:,} known" if report.known else ""
    again = f" ({report.again:,} of them bought again)" if report.again else ""
    print(f"fed {plural(report.new, 'new row')}{known}{again}; the batch has {cap}", file=sys.stderr)
    if output is None:
        command = command_line("worker", "--ledger", str(ledger), "--batch", name, "-o", "FOLDER")
        print(f"nothing is bought yet: `{command}` buys them, on any number of hosts", file=sys.stderr)
        return 0
    work = WorkOptions(
        ledger=ledger,
        batch=name,
        target=output,
        sidecar=options.sidecar,
        concurrency=options.concurrency,
        max_budget_wait_s=options.max_budget_wait_s,
        unit=options.file.unit,
    )
    return await Work(work, gateway).run(drained=INTERRUPTED)


def _rows(options: RunOptions, gateway: Gateway) -> Iterator[Row]:
    for row in options.file.rows(gateway):
        yield Row(
            index=row.number - 1,
            key=row.key,
            own_key=row.own_key,
            request=row.request,
            metadata=row.metadata,
            name=row.name,
        )


def _refuse_local_images(options: RunOptions, gateway: Gateway) -> None:
    """Raise `ConfigurationError` for the first row with an image that other hosts can't read; nothing is fed yet."""
    file = options.file
    for row in file.rows(gateway):
        if row.request is not None and local_digests(row.request.images):
            raise ConfigurationError(
                f"{file.title}, {file.unit} {row.number}: its reference image is read by this host, and other hosts buy"
                " the row: upload the image and write its link"
            )
