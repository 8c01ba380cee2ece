"""`nanobanana worker`: buy rows of a batch that was fed into a ledger that hosts share."""

import asyncio
from pathlib import Path
from typing import Annotated

from attrs import frozen
from cyclopts import Parameter

from nanobanana_async import ConcurrencyPolicy
from nanobanana_async.cli.batch.shared import refuse_folder_of_batch
from nanobanana_async.cli.batch.work import Work, WorkOptions
from nanobanana_async.cli.find_gateway import find_gateway
from nanobanana_async.cli.options import (
    MAX_BUDGET_WAIT_S,
    BaseUrl,
    Credits,
    Flag,
    GatewayFinder,
    GatewayName,
    MaxJobs,
    MaxRequestsPerMinute,
    Seconds,
    TargetOption,
    check_output,
)
from nanobanana_async.cli.shared_ledger import SharedLedgerOption, require_shared_ledger
from nanobanana_async.gateways.contract import Gateway
from nanobanana_async.images.target import Target
from nanobanana_async.policy.prices import parse_credits
from nanobanana_async.validators import as_number


@frozen
class WorkerCommand:
    """The command `worker`."""

    find_gateway: GatewayFinder

    def worker(
        self,
        *,
        batch: Annotated[str, Parameter(metavar="NAME")],
        output: Annotated[Target, TargetOption],
        ledger: SharedLedgerOption = None,
        results: Annotated[Path | None, Parameter(metavar="FILE")] = None,
        sidecar: Flag = False,
        gateway: GatewayName = None,
        base_url: BaseUrl = None,
        max_credits: Credits = None,
        max_jobs: MaxJobs = None,
        max_requests_per_minute: MaxRequestsPerMinute = None,
        max_budget_wait: Seconds = MAX_BUDGET_WAIT_S,
    ) -> int:
        """Buy rows of a batch until none is left; run it on as many hosts as you like.

        `nanobanana batch FILE --ledger postgresql://...` feeds the rows. Each worker draws a few at a time, and takes
        over what a worker had drawn that was killed. It ends when all rows have ended, on all hosts. The cap of the
        batch, and budget, priority and group of its rows, are those that `batch` fed.

        If stdout is no terminal, it gets a JSON object a line for each row that ends here, with the fields of
        `results.jsonl`. A line is written before the row counts as delivered: after a kill another worker may write it
        once more. The first Ctrl-C (or SIGTERM, SIGHUP) draws no more rows and waits for the jobs that run; the second
        one stops at once, and other workers collect what was bought.

        Exit codes: 0 every row that ended here has its images, or a signal ended the drawing; 1 some rows have none; 2
        a wrong option, and nothing was bought; 3 the buying stopped early (credits, API key, a folder or ledger that
        can't be written); 130 stopped at once.

        For example: `nanobanana worker --ledger postgresql://studio@db.example/studio --batch spring -o s3://shop/spring`

        Parameters
        ----------
        batch
            The batch's name.
        output
            The folder for the images, which hosts may share, or an object store, s3://bucket/prefix, gs:// or az://.
        ledger
            The ledger, postgresql://user@host/database.
        results
            A file to which the lines for the rows are appended, instead of standard output. Each worker needs its own.
        sidecar
            Write prompt, settings, key and price of each image into NAME.json beside it.
        gateway
            The gateway; by default the one whose API key is set.
        base_url
            The gateway's URL, if not the usual one.
        max_credits
            What this worker may spend, beside the cap of the batch.
        max_jobs
            The most jobs to run at once here.
        max_requests_per_minute
            The most requests to the gateway in a minute, if you know what the account allows.
        max_budget_wait
            Seconds to wait when the account's daily budget of requests is used up; if that takes longer, it stops.
        """
        max_credits = parse_credits("--max-credits", max_credits)
        shared = require_shared_ledger("worker", ledger)
        refuse_folder_of_batch(output)
        options = WorkOptions(
            ledger=shared,
            batch=batch,
            target=output,
            sidecar=sidecar,
            results=results,
            concurrency=ConcurrencyPolicy(max_jobs=max_jobs, max_requests_per_minute=max_requests_per_minute),
            max_budget_wait_s=as_number("--max-budget-wait", max_budget_wait, endless=True),
            max_credits=max_credits,
        )
        return asyncio.run(_run(options, self.find_gateway(gateway, base_url)))


async def _run(options: WorkOptions, gateway: Gateway) -> int:
    await check_output(options.target)
    return await Work(options, gateway).run()


worker = WorkerCommand(find_gateway).worker
