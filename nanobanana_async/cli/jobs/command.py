"""`nanobanana jobs`: what stands in a ledger, and going on with it, also while other processes work with it."""

import asyncio
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal, get_args

from attrs import frozen
from cyclopts import App, Parameter
from rich.console import Console

from nanobanana_async import ConfigurationError, Gateway, JobState
from nanobanana_async.cli.jobs import actions as jobwork
from nanobanana_async.cli.jobs import format as joblist
from nanobanana_async.escaping import one_line
from nanobanana_async.validators import as_count

LedgerFile = Annotated[Path, Parameter(name="--ledger", env_var="NANOBANANA_LEDGER")]
Name = Literal["apimall", "defapi"]
GatewayName = Annotated[Name | None, Parameter(env_var="NANOBANANA_GATEWAY")]
BaseUrl = Annotated[str | None, Parameter(env_var="NANOBANANA_BASE_URL")]
Yes = Annotated[bool, Parameter(name=["--yes", "-y"], negative=())]
Flag = Annotated[bool, Parameter(negative=())]

GatewayFinder = Callable[[Name | None, str | None], Gateway]
"""Finds the gateway that options and environment name."""

DEFAULT_LEDGER = Path("jobs.sqlite")
MAX_ROWS = 50  # on a terminal; a pipe gets all

OK, FAILED = 0, 1


def job_commands(seller: GatewayFinder) -> App:
    """Return the command group."""
    commands = _Commands(seller)
    group = App(name="jobs", default_command=commands.jobs)
    for command in (commands.show, commands.resume, commands.settle, commands.hand_over, commands.prune):
        group.command(command)
    return group


@frozen
class _Commands:
    seller: GatewayFinder

    @staticmethod
    def jobs(
        *stray: Annotated[str, Parameter(show=False)],
        ledger: LedgerFile = DEFAULT_LEDGER,
        state: Annotated[list[JobState] | None, Parameter(negative=())] = None,
        limit: int | None = None,
        json: Flag = False,
    ) -> int:
        """List the jobs of a ledger, newest first; look at one, go on with them, settle or forget them.

        Through a pipe: tab-separated lines of key, state, age, task id, credits, prompt. The counts go to stderr.

        Parameters
        ----------
        ledger
            The ledger's file.
        state
            Only jobs in this state; may be given several times.
        limit
            No more than this many; left out: 50 on a terminal, else all.
        json
            One JSON object per line, the whole record.
        """
        if stray:
            raise ConfigurationError(f"jobs has no command {stray[0]!r} here: `nanobanana jobs show KEY [OPTIONS]`")
        if limit is not None:
            as_count("--limit", limit)
        return asyncio.run(_list(ledger, state, limit, json=json))

    @staticmethod
    def show(key: str, /, *, ledger: LedgerFile = DEFAULT_LEDGER) -> int:
        """Show everything about one job.

        Parameters
        ----------
        key
            Our key of the job.
        ledger
            The ledger's file.
        """
        print(asyncio.run(_story(ledger, key)))
        return OK

    def resume(
        self,
        *,
        ledger: LedgerFile = DEFAULT_LEDGER,
        buy: Flag = False,
        yes: Yes = False,
        gateway: GatewayName = None,
        base_url: BaseUrl = None,
    ) -> int:
        """Go on with the unfinished jobs that nobody follows, to their end; print key and picture URL of each.

        What was sent is finished; nothing is bought a second time. Ctrl-C leaves them to be resumed again.

        Parameters
        ----------
        ledger
            The ledger's file.
        buy
            Buy the jobs that were written down and never sent, too.
        yes
            Don't ask.
        gateway
            Whose jobs; the one whose API key is set when left out.
        base_url
            Where the gateway is, if not at its usual place.
        """
        jobwork.require_ledger(ledger)
        if buy:
            _require_consent(yes=yes)
        seller = self.seller(gateway, base_url)
        left = asyncio.run(jobwork.left_over(ledger, seller))
        bill = f"{joblist.pluralize(left.unsent, 'unsent job')} will be bought: {left.price}."
        if buy and left.unsent and not _agreed(bill, yes=yes):
            return FAILED
        return asyncio.run(jobwork.resume(ledger, seller, left, buy=buy, console=Console(stderr=True)))

    def settle(
        self,
        key: str,
        task_id: str | None = None,
        /,
        *,
        as_: Annotated[Literal["refused", "buy-again", "task-id"], Parameter(name="--as")],
        ledger: LedgerFile = DEFAULT_LEDGER,
        wait: Annotated[bool, Parameter(negative="--no-wait")] = True,
        yes: Yes = False,
        gateway: GatewayName = None,
        base_url: BaseUrl = None,
    ) -> int:
        """Decide by hand what became of an uncertain job; look at the gateway's own list of tasks first.

        `settle KEY --as refused`: it was not bought. `settle KEY --as task-id ID`: it was bought, under this id, and is
        followed. `settle KEY --as buy-again`: buy it anew; if it was bought after all, that is a second payment. A
        failed job can be bought again so, too. A running job is decided in the same ways if the gateway does not know
        its task.

        Parameters
        ----------
        key
            Our key of the job.
        task_id
            The gateway's id, with `--as task-id`.
        as_
            What became of it.
        ledger
            The ledger's file.
        wait
            Follow the job to its end and print its pictures' URLs.
        yes
            Don't ask.
        gateway
            Whose job; as the ledger says when left out.
        base_url
            Where the gateway is, if not at its usual place.
        """
        if (task_id is not None) != (as_ == "task-id"):
            raise ConfigurationError("the id goes with --as task-id: `settle KEY --as task-id ID`")
        record = asyncio.run(jobwork.to_resolve(ledger, key, again=as_ == "buy-again"))
        known = next((name for name in get_args(Name) if name == record.gateway), None)
        seller = self.seller(gateway or known, base_url)
        if not _agreed(asyncio.run(jobwork.describe_effect(ledger, seller, record, as_, task_id)), yes=yes):
            return FAILED
        decision = jobwork.Decision(key=key, task_id=task_id, buy_again=as_ == "buy-again")
        return asyncio.run(jobwork.resolve(ledger, seller, decision, wait=wait, console=Console(stderr=True)))

    def hand_over(
        self,
        *,
        from_: Annotated[str | None, Parameter(name="--from")] = None,
        to: str | None = None,
        ledger: LedgerFile = DEFAULT_LEDGER,
        yes: Yes = False,
        gateway: GatewayName = None,
        base_url: BaseUrl = None,
    ) -> int:
        """Give all jobs of one account in a ledger to another: its API key was changed, or it has a name now.

        Nothing is bought and nothing is sent. Only for one account at the gateway: another one does not know the tasks.

        Parameters
        ----------
        from_
            The account that has the jobs, its name or its fingerprint; the only other one when left out.
        to
            The account that gets them; that of the API key and NANOBANANA_ACCOUNT when left out.
        ledger
            The ledger's file.
        yes
            Don't ask.
        gateway
            Whose jobs; the one whose API key is set when left out.
        base_url
            Where the gateway is, if not at its usual place.
        """
        jobwork.require_ledger(ledger)
        move = asyncio.run(jobwork.to_hand_over(ledger, self.seller(gateway, base_url), from_, to))
        risk = "Do so only if both are one account at the gateway; else they are found by neither."
        if not _agreed(
            f"{joblist.pluralize(move.count)} of account {move.old} go to account {move.new}. {risk}", yes=yes
        ):
            return FAILED
        count = asyncio.run(jobwork.hand_over(ledger, move))
        _print_note(f"{joblist.pluralize(count)} handed over to account {move.new}")
        return OK

    @staticmethod
    def prune(*, older_than: str, ledger: LedgerFile = DEFAULT_LEDGER, yes: Yes = False) -> int:
        """Forget jobs that ended long ago; uncertain and unfinished ones are never forgotten.

        A job that is forgotten is bought again when its key, or its row of a batch, is asked for again.

        Parameters
        ----------
        older_than
            How long ago they ended, at least: 30d, 12h.
        ledger
            The ledger's file.
        yes
            Don't ask.
        """
        try:
            before = datetime.now(UTC) - joblist.older_than(older_than)
        except ValueError as error:
            raise ConfigurationError(f"--older-than: {error}") from None
        except OverflowError:
            raise ConfigurationError("--older-than: that is before all calendars") from None
        count = asyncio.run(jobwork.prunable(ledger, before))
        ended = f"ended before {before.astimezone():%Y-%m-%d %H:%M}"
        if not count:
            _print_note(f"no job {ended}")
            return OK
        risk = "asked for again under its key, or as a row of its batch, such a job is bought again"
        if not _agreed(f"{joblist.pluralize(count)} that {ended} will be forgotten; {risk}.", yes=yes):
            return FAILED
        _print_note(f"{joblist.pluralize(asyncio.run(jobwork.prune(ledger, before)))} forgotten")
        return OK


async def _list(path: Path, states: list[JobState] | None, limit: int | None, *, json: bool) -> int:
    now, terminal = datetime.now(UTC), sys.stdout.isatty() and not json
    if limit is None and terminal:
        limit = MAX_ROWS
    shown = 0
    async with jobwork.open_read_only(path) as ledger:
        records = ledger.jobs(states, limit)
        if terminal:
            console = Console()
            rows = [record async for record in records]
            shown = len(rows)
            console.print(joblist.table_of(rows, now, console.width))
        else:
            async for record in records:
                shown += 1
                print(joblist.json_of(record) if json else joblist.line_of(record, now))
        counts, abandoned = await ledger.counts(), await ledger.count_unowned()
    sys.stdout.flush()
    _print_note(joblist.summary(counts))
    if shown < (there := sum(counts[state] for state in set(states or JobState))):
        _print_note(f"{shown} of {there} are shown: --limit N shows more")
    for hint in joblist.next_steps(counts, abandoned):
        _print_note(hint)
    return OK


async def _story(path: Path, key: str) -> str:
    async with jobwork.open_read_only(path) as ledger:
        record = await jobwork.find_job(ledger, key)
        return joblist.job_details(record, followed=await ledger.is_owned(key), now=datetime.now(UTC))


def _print_note(sentence: str) -> None:
    console = Console(stderr=True)
    wrapped = console.is_terminal
    console.print(one_line(sentence), markup=False, highlight=False, emoji=False, soft_wrap=not wrapped)


def _require_consent(*, yes: bool) -> None:
    """Refuse to go on where nobody can be asked, and nobody has agreed beforehand."""
    if not (yes or sys.stdin.isatty()):
        raise ConfigurationError("nobody is there to be asked: --yes agrees beforehand")


def _agreed(consequence: str, *, yes: bool) -> bool:
    """Say what is about to happen, and ask, outside of any event loop: there Ctrl-C would not end the question."""
    if yes:
        _print_note(consequence)
        return True
    if not sys.stdin.isatty():
        raise ConfigurationError(f"{one_line(consequence)} Nobody is there to be asked: --yes agrees beforehand")
    print(f"{one_line(consequence)} Go on? [y/N] ", end="", file=sys.stderr, flush=True)
    try:
        answer = sys.stdin.readline()
    except KeyboardInterrupt:
        print(file=sys.stderr)  # what is said next shall not stand behind the question
        raise
    if answer.strip().lower() in ("y", "yes"):
        return True
    _print_note("nothing was done")
    return False
