"""`nanobanana jobs`: list and show the jobs of a ledger, resume, resolve, hand over and prune them; fetch images."""

import asyncio
import sys
from datetime import UTC, datetime
from typing import Annotated, Literal, get_args

from attrs import frozen
from cyclopts import App, Parameter
from rich.console import Console

from nanobanana_async import ConfigurationError, JobState
from nanobanana_async.cli.find_gateway import find_gateway
from nanobanana_async.cli.jobs import actions
from nanobanana_async.cli.jobs import format as job_format
from nanobanana_async.cli.jobs.consent import confirm, print_note, require_consent
from nanobanana_async.cli.options import (
    DEFAULT_LEDGER,
    BaseUrl,
    Flag,
    GatewayFinder,
    GatewayName,
    LedgerOption,
    Name,
    Yes,
)
from nanobanana_async.cli.signals import run_until_signal
from nanobanana_async.cli.usage import ledger_hint, unknown_command
from nanobanana_async.commands import jobs_command
from nanobanana_async.formatting import local_time, plural
from nanobanana_async.keys import validate_task_id
from nanobanana_async.ledger.location import Location
from nanobanana_async.validators import as_count

MAX_ROWS = 50  # on a terminal; a pipe gets all
OK, FAILED = 0, 1


@frozen
class _Commands:
    find_gateway: GatewayFinder

    @staticmethod
    def jobs(
        *extra: Annotated[str, Parameter(show=False)],
        ledger: LedgerOption = DEFAULT_LEDGER,
        state: Annotated[list[JobState] | None, Parameter(negative=(), metavar="STATE")] = None,
        limit: int | None = None,
        json: Flag = False,
    ) -> int:
        """List the jobs of a ledger, newest first; subcommands show, fetch, resume, reconcile, resolve and more.

        In a pipe: tab-separated lines with key, state, age, task id, credits, prompt. The counts go to stderr.

        Examples:

        nanobanana jobs --state running --limit 20 --ledger spring/jobs.sqlite

        Parameters
        ----------
        ledger
            The ledger: a file, or postgresql://user@host/database.
        state
            Only jobs in this state; can be repeated.
        limit
            The most jobs to list. Default: 50 on a terminal, else all.
        json
            Print one JSON object per line, with the whole record.
        """
        if extra:
            shows = f"`{jobs_command('show', ledger=None, names=extra[:1])}` shows the job with this key"
            raise ConfigurationError(unknown_command("jobs", extra[0], jobs, ledger_hint(extra[0]) or shows))
        if limit is not None:
            as_count("--limit", limit)
        return asyncio.run(_list(ledger, state, limit, json=json))

    @staticmethod
    def show(key: str, /, *, ledger: LedgerOption = DEFAULT_LEDGER) -> int:
        """Show everything about one job.

        For example: `nanobanana jobs show 5f0c3a9e1b2d4c68-1`

        Parameters
        ----------
        key
            The key of the job in the ledger, or the key of a row of a named batch.
        ledger
            The ledger: a file, or postgresql://user@host/database.
        """
        print(asyncio.run(_details(ledger, key)))
        return OK

    def resume(
        self,
        *,
        ledger: LedgerOption = DEFAULT_LEDGER,
        buy: Flag = False,
        yes: Yes = False,
        gateway: GatewayName = None,
        base_url: BaseUrl = None,
    ) -> int:
        """Follow the unfinished jobs that no session follows to their end; print key and image URL of each.

        Nothing is bought a second time. After Ctrl-C the jobs can be resumed again.

        Examples:

        nanobanana jobs resume

        nanobanana jobs resume --buy --yes --ledger spring/jobs.sqlite

        Parameters
        ----------
        ledger
            The ledger: a file, or postgresql://user@host/database.
        buy
            Also buy the jobs that were recorded but never sent.
        yes
            Do not ask for confirmation.
        gateway
            The gateway; by default the one whose API key is set.
        base_url
            The gateway's URL, if not the usual one.
        """
        actions.require_ledger(ledger)
        if buy:
            require_consent(yes=yes)
        selected = self.find_gateway(gateway, base_url)
        unfinished = asyncio.run(actions.find_resumable(ledger, selected))
        cost = f"{plural(unfinished.unsent, 'unsent job')} will be bought: {unfinished.price}."
        if buy and unfinished.unsent and not confirm(cost, yes=yes):
            return FAILED
        from nanobanana_async.cli.jobs.follow import resume  # imports the engine, which a list of jobs does not need

        return run_until_signal(resume(ledger, selected, unfinished, buy=buy, console=Console(stderr=True)))

    def resolve(
        self,
        key: str,
        task_id: str | None = None,
        /,
        *,
        as_: Annotated[Literal["not-bought", "buy-again", "task-id"], Parameter(name="--as")],
        ledger: LedgerOption = DEFAULT_LEDGER,
        wait: Annotated[bool, Parameter(negative="--no-wait")] = True,
        yes: Yes = False,
        gateway: GatewayName = None,
        base_url: BaseUrl = None,
    ) -> int:
        """Resolve an uncertain job by hand; check the gateway's own list of tasks first.

        `resolve KEY --as not-bought`: it was not bought. `resolve KEY --as task-id ID`: it was bought under this id,
        and is followed. `resolve KEY --as buy-again`: buy it again; if it was already bought, this is a second payment.
        `buy-again` also works for a failed job. A running job can be resolved if the gateway does not know its task.

        Examples:

        nanobanana jobs resolve 5f0c3a9e1b2d4c68-1 --as not-bought

        nanobanana jobs resolve 5f0c3a9e1b2d4c68-1 --as task-id img_01HZX

        Parameters
        ----------
        key
            The key of the job in the ledger, or the key of a row of a named batch.
        task_id
            The gateway's id, with `--as task-id`.
        as_
            How to resolve the job.
        ledger
            The ledger: a file, or postgresql://user@host/database.
        wait
            Follow the job to its end and print the URLs of its images.
        yes
            Do not ask for confirmation.
        gateway
            The gateway; by default that of the job in the ledger.
        base_url
            The gateway's URL, if not the usual one.
        """
        if (task_id is not None) != (as_ == "task-id"):
            raise ConfigurationError("--as task-id needs the id, and only it takes one: `resolve KEY --as task-id ID`")
        if task_id is not None:
            validate_task_id(task_id)
        record = asyncio.run(actions.find_resolvable(ledger, key, buy_again=as_ == "buy-again"))
        known = next((name for name in get_args(Name) if name == record.gateway), None)
        selected = self.find_gateway(gateway or known, base_url)
        if not confirm(asyncio.run(actions.describe_effect(ledger, selected, record, as_, task_id)), yes=yes):
            return FAILED
        from nanobanana_async.cli.jobs.follow import Decision, resolve

        decision = Decision(key=record.key, task_id=task_id, buy_again=as_ == "buy-again")
        return run_until_signal(resolve(ledger, selected, decision, wait=wait, console=Console(stderr=True)))

    def hand_over(
        self,
        *,
        from_: Annotated[str | None, Parameter(name="--from")] = None,
        to: str | None = None,
        ledger: LedgerOption = DEFAULT_LEDGER,
        yes: Yes = False,
        gateway: GatewayName = None,
        base_url: BaseUrl = None,
    ) -> int:
        """Give all jobs of one account in a ledger to another, after the account got a new API key or a name.

        Nothing is bought or sent. Both must be the same account at the gateway: another one does not know the tasks.

        Examples:

        nanobanana jobs hand-over --to studio

        Parameters
        ----------
        from_
            The account that has the jobs, by name or fingerprint; by default the only other one.
        to
            The account that gets the jobs; by default that of the API key and NANOBANANA_ACCOUNT.
        ledger
            The ledger: a file, or postgresql://user@host/database.
        yes
            Do not ask for confirmation.
        gateway
            The gateway; by default the one whose API key is set.
        base_url
            The gateway's URL, if not the usual one.
        """
        actions.require_ledger(ledger)
        plan = asyncio.run(actions.plan_hand_over(ledger, self.find_gateway(gateway, base_url), from_, to))
        goes = f"{plural(plan.count, 'job')} of account {plan.old_account} go to account {plan.new_account}."
        if not confirm(f"{goes} Both must be one account at the gateway: another does not find the tasks.", yes=yes):
            return FAILED
        handed_over = asyncio.run(actions.hand_over(ledger, plan))
        print_note(f"{plural(handed_over, 'job')} handed over to account {plan.new_account}")
        return OK

    @staticmethod
    def prune(*, older_than: str, ledger: LedgerOption = DEFAULT_LEDGER, yes: Yes = False) -> int:
        """Delete jobs that ended long ago; uncertain and unfinished jobs are never deleted.

        A deleted job is bought again when its key, or its row of a batch, is requested again.

        Examples:

        nanobanana jobs prune --older-than 90d

        Parameters
        ----------
        older_than
            The least time since their end, such as 30d or 12h.
        ledger
            The ledger: a file, or postgresql://user@host/database.
        yes
            Do not ask for confirmation.
        """
        try:
            before = datetime.now(UTC) - job_format.parse_age(older_than)
        except ValueError as error:
            raise ConfigurationError(f"--older-than: {error}") from None
        except OverflowError:
            raise ConfigurationError("--older-than: too far in the past") from None
        prunable = asyncio.run(actions.count_prunable(ledger, before))
        ended = f"ended before {local_time(before)}"
        if not prunable:
            print_note(f"no job {ended}")
            return OK
        risk = "a deleted job is bought again when its key, or its row of a batch, is requested again"
        if not confirm(f"{plural(prunable, 'job')} that {ended} will be deleted; {risk}.", yes=yes):
            return FAILED
        print_note(f"{plural(asyncio.run(actions.prune(ledger, before)), 'job')} deleted")
        return OK


async def _list(path: Location, states: list[JobState] | None, limit: int | None, *, json: bool) -> int:
    now, terminal = datetime.now(UTC), sys.stdout.isatty() and not json
    if limit is None and terminal:
        limit = MAX_ROWS
    shown = 0
    async with actions.open_read_only(path) as ledger:
        records = ledger.jobs(states, limit)
        if terminal:
            console = Console()
            rows = [record async for record in records]
            shown = len(rows)
            console.print(job_format.page_of(rows, now, console.width), soft_wrap=True, highlight=False)
        else:
            async for record in records:
                shown += 1
                print(job_format.json_of(record) if json else job_format.line_of(record, now))
        counts, unowned = await ledger.count_by_state(), await ledger.count_unowned()
    sys.stdout.flush()
    print_note(job_format.summary(counts))
    if shown < (total := sum(counts[state] for state in set(states or JobState))):
        print_note(f"{shown} of {total} jobs are shown: --limit N shows more")
    for hint in job_format.next_steps(counts, unowned, path):
        print_note(hint)
    return OK


async def _details(path: Location, key: str) -> str:
    from nanobanana_async.cli.jobs.batch_row import batch_name, row_facts  # imports what batches need

    async with actions.open_read_only(path) as ledger:
        record = await actions.find_job(ledger, key)
        followed = await ledger.has_owner(record.key)
    row_key, files = await asyncio.to_thread(row_facts, path, record.key)
    row_key, now = row_key if key == record.key else key, datetime.now(UTC)
    batch = batch_name(path, record.batch)
    return job_format.job_details(record, path, followed=followed, now=now, batch=batch, row_key=row_key, files=files)


_commands = _Commands(find_gateway)
jobs = App(name="jobs", default_command=_commands.jobs)
jobs.command(_commands.show)
jobs.command("nanobanana_async.cli.jobs.fetch:fetch", usage="Usage: nanobanana jobs fetch KEY_OR_TASK_ID... [OPTIONS]")
jobs.command(_commands.resume)
jobs.command("nanobanana_async.cli.jobs.reconcile:reconcile")
for _command in (_commands.resolve, _commands.hand_over, _commands.prune):
    jobs.command(_command)
