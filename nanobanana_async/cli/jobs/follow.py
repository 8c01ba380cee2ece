"""Resume jobs of a ledger, or resolve one, in a session that follows them to their end."""

import asyncio

from attrs import frozen
from rich.console import Console

from nanobanana_async import Gateway, JobState, Session
from nanobanana_async.cli.display import JobsDisplay
from nanobanana_async.cli.jobs.actions import ResumableJobs
from nanobanana_async.cli.jobs.printer import ResultPrinter
from nanobanana_async.cli.signals import Interrupted
from nanobanana_async.commands import jobs_command
from nanobanana_async.formatting import plural
from nanobanana_async.ledger.location import Location


async def resume(path: Location, gateway: Gateway, unfinished: ResumableJobs, *, buy: bool, console: Console) -> int:
    """Follow unfinished jobs to their end and print each result; return 0, or 1 if a job did not succeed."""
    selected = [record for record in unfinished.records if buy or record.state is not JobState.PENDING]
    display = JobsDisplay(len(selected), console)
    display.records = {record.key: record for record in selected}
    printer = ResultPrinter(display, path)
    try:
        async with Session(gateway, ledger=path, observers=[display], trust_env=True, adopt=None) as session:
            with display:
                jobs = await session.resume(buy=buy)
                keys = {job.key for job in jobs}  # another session may have adopted some
                display.total = len(jobs)
                display.records = {key: record for key, record in display.records.items() if key in keys}
                async with asyncio.TaskGroup() as group:
                    for job in jobs:
                        group.create_task(printer.follow(job))
    except asyncio.CancelledError:
        raise Interrupted(
            f"interrupted; `{jobs_command('resume', ledger=path)}` continues the unfinished jobs"
        ) from None
    except ExceptionGroup as group:
        raise group.exceptions[0] from None
    if not jobs:
        printer.note("no jobs to resume")
    if unfinished.unsent and not buy:
        command = jobs_command("resume", "--buy", ledger=path)
        printer.note(f"{plural(unfinished.unsent, 'job')} never sent: `{command}` buys them")
    if unfinished.other_accounts:
        advice = (
            f"resume them with their API keys, or after a change of key: `{jobs_command('hand-over', ledger=path)}`"
        )
        printer.note(f"{plural(unfinished.other_accounts, 'job')} of other accounts left: {advice}")
    return printer.code


@frozen(kw_only=True)
class Decision:
    """How the user resolves a job: bought as this task, to be bought again, or neither: it was not bought."""

    key: str
    task_id: str | None
    buy_again: bool


async def resolve(path: Location, gateway: Gateway, decision: Decision, *, wait: bool, console: Console) -> int:
    """Resolve a job. Unless it was not bought, follow it to its end, or without `wait` until it is accepted."""
    not_bought = decision.task_id is None and not decision.buy_again
    display = JobsDisplay(1, console)
    printer = ResultPrinter(display, path, one=True)
    try:
        async with Session(gateway, ledger=path, observers=[display], trust_env=True, adopt=None) as session:
            with display:
                job = await session.resolve(
                    decision.key, task_id=decision.task_id, buy_again=decision.buy_again, not_bought=not_bought
                )
                if wait and not not_bought:
                    await printer.follow(job)
                elif not not_bought:
                    await printer.follow_until_accepted(job)
    except asyncio.CancelledError:
        command = jobs_command("show", ledger=path, names=[decision.key])
        raise Interrupted(f"interrupted; `{command}` shows its state") from None
    if not_bought:
        printer.note(f"job {job.key} is {job.state.value}")
    return printer.code
