"""`nanobanana jobs reconcile`: the gateway's history decides about uncertain jobs."""

import asyncio
from typing import Annotated

from attrs import frozen
from cyclopts import Parameter
from rich.console import Console

from nanobanana_async import Gateway, JobState, Session
from nanobanana_async.cli.display import JobsDisplay
from nanobanana_async.cli.find_gateway import find_gateway
from nanobanana_async.cli.jobs.actions import open_read_only, require_ledger
from nanobanana_async.cli.jobs.printer import ResultPrinter
from nanobanana_async.cli.options import DEFAULT_LEDGER, BaseUrl, GatewayFinder, GatewayName, LedgerOption
from nanobanana_async.cli.signals import Interrupted, run_until_signal
from nanobanana_async.commands import jobs_command
from nanobanana_async.engine.doubt import candidate_count_text
from nanobanana_async.formatting import plural
from nanobanana_async.ledger.location import Location


@frozen
class ReconcileCommand:
    """The command `jobs reconcile`."""

    find_gateway: GatewayFinder

    def reconcile(
        self,
        *,
        ledger: LedgerOption = DEFAULT_LEDGER,
        wait: Annotated[bool, Parameter(negative="--no-wait")] = True,
        gateway: GatewayName = None,
        base_url: BaseUrl = None,
    ) -> int:
        """Find out by the gateway's history whether uncertain jobs were bought. Nothing is bought.

        A job gets a task that can only be its own, and is followed to its end; a job that can have no task was not
        bought. `jobs show` lists the tasks that could be another job.

        Examples:

        nanobanana jobs reconcile --ledger spring/jobs.sqlite

        Parameters
        ----------
        ledger
            The ledger: a file, or postgresql://user@host/database.
        wait
            Follow the jobs that were bought to their end and print the URLs of their images.
        gateway
            The gateway; by default the one whose API key is set.
        base_url
            The gateway's URL, if not the usual one.
        """
        require_ledger(ledger)
        selected = self.find_gateway(gateway, base_url)
        return run_until_signal(_reconcile(ledger, selected, wait=wait, console=Console(stderr=True)))


async def _reconcile(path: Location, gateway: Gateway, *, wait: bool, console: Console) -> int:
    """Let the gateway's history decide about uncertain jobs; follow those that were bought, and print the rest."""
    display = JobsDisplay(0, console)
    printer = ResultPrinter(display, path)
    try:
        async with Session(gateway, ledger=path, observers=[display], trust_env=True, adopt=None) as session:
            jobs = await session.reconcile()
            bought = [job for job in jobs if job.state is not JobState.PENDING]
            display.total = len(bought)
            with display:
                for job in jobs:
                    where = "was not bought" if job.state is JobState.PENDING else f"is task {job.task_id}"
                    printer.note(f"job {job.key} {where}")
                if wait:
                    async with asyncio.TaskGroup() as group:
                        for job in bought:
                            group.create_task(printer.follow(job))
    except asyncio.CancelledError:
        again = f"`{jobs_command('reconcile', ledger=path)}` and `{jobs_command('resume', ledger=path)}` continue"
        raise Interrupted(f"interrupted; {again}") from None
    except ExceptionGroup as group:
        raise group.exceptions[0] from None
    async with open_read_only(path) as ledger:
        left = [record async for record in ledger.uncertain(gateway.account)]
    for record in left:
        known = candidate_count_text(record.candidates) if record.candidates else "no task in the history"
        printer.note(f"job {record.key} stays uncertain: {known} could be it")
    if len(bought) < len(jobs):
        unbought = plural(len(jobs) - len(bought), "job")
        printer.note(f"{unbought} not bought: `{jobs_command('resume', '--buy', ledger=path)}` buys them")
    if not (jobs or left):
        printer.note("no uncertain jobs")
    return 1 if left else printer.code


reconcile = ReconcileCommand(find_gateway).reconcile
