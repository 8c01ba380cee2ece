"""`nanobanana mcp`: a server through which models buy and edit images, over stdin and stdout."""

import asyncio
import importlib.util
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import anyio
from attrs import frozen

from nanobanana_async import ConcurrencyPolicy, ConfigurationError, Session
from nanobanana_async.cli.find_gateway import find_gateway, find_gateways
from nanobanana_async.cli.options import (
    DEFAULT_LEDGER,
    BaseUrl,
    Credits,
    FolderOption,
    GatewayFinder,
    GatewayName,
    LedgerOption,
    MaxJobs,
    MaxRequestsPerMinute,
    check_output,
    make_ledger_folder,
    repeatable,
)
from nanobanana_async.cli.signals import INTERRUPTED, handle_signals
from nanobanana_async.cli.turns import NO_TURN, TurnOptions
from nanobanana_async.ledger.base import StoredLedger
from nanobanana_async.ledger.location import ledger_at
from nanobanana_async.mcp_server.references import to_allowed_folders
from nanobanana_async.mcp_server.service import Service, ServiceOptions
from nanobanana_async.policy.prices import parse_credits

OK = 0


@frozen
class McpCommand:
    """The command `mcp`."""

    find_gateway: GatewayFinder

    def mcp(
        self,
        *,
        output: Annotated[Path, FolderOption],
        max_credits: Credits = None,
        turn: TurnOptions = NO_TURN,
        allow_folder: Annotated[list[Path] | None, repeatable("FOLDER")] = None,
        batch: str = "mcp",
        expected_credits: Credits = None,
        gateway: GatewayName = None,
        base_url: BaseUrl = None,
        max_jobs: MaxJobs = None,
        max_requests_per_minute: MaxRequestsPerMinute = None,
        ledger: LedgerOption = DEFAULT_LEDGER,
    ) -> int:
        """Serve the tools generate_image, edit_image, get_image and list_images to a client of MCP.

        The client starts this command and speaks with it over stdin and stdout; logs go to stderr. Each job is in the
        ledger before it is bought, under the request_id that the model chose: repeating a call buys nothing twice, also
        after the client gave up, and after a restart. A job that was bought goes on when the server ends.

        For example: `nanobanana mcp -o /home/me/images --max-credits 500`

        Parameters
        ----------
        output
            The folder for the images. They may be used as reference images.
        max_credits
            What may be spent in all, also by earlier and other servers with this ledger and batch name. It, or
            --budget, is required: models call tools in loops.
        allow_folder
            A folder whose files may be used as reference images; can be repeated. Links out of it are refused.
        batch
            The name under which the ledger counts what is spent; another name is another budget, with request_ids of
            its own.
        expected_credits
            What a job costs, as long as the gateway has stated no price.
        gateway
            The gateway; by default the one whose API key is set.
        base_url
            The gateway's URL, if not the usual one.
        max_jobs
            The most jobs to run at once.
        max_requests_per_minute
            The most requests to the gateway in a minute, if you know what the account allows.
        ledger
            The ledger: a file, or postgresql://user@host/database.
        """
        cap = parse_credits("--max-credits", max_credits)
        if cap is None and turn.budget is None:
            raise ConfigurationError(
                "mcp needs --max-credits, what may be spent in all, such as --max-credits 500, or a budget, such as"
                " --budget models=50/day, since models call tools in loops"
            )
        if not batch.strip():
            raise ConfigurationError("--batch must be a name")
        if importlib.util.find_spec("mcp") is None:
            raise ConfigurationError("mcp needs the extra `mcp`: pip install 'nanobanana-async[mcp]'")
        options = ServiceOptions(
            folder=output.absolute(),
            batch=batch,
            max_credits=cap,
            budget=turn.budget,
            expected_credits=parse_credits("--expected-credits", expected_credits),
            priority=turn.priority,
            group=turn.group,
        )
        limits = ConcurrencyPolicy(max_jobs=max_jobs, max_requests_per_minute=max_requests_per_minute)
        store = ledger_at(ledger)
        gateways = find_gateways(self.find_gateway, gateway, base_url)
        session = Session(gateways, ledger=store, concurrency=limits, trust_env=True)
        make_ledger_folder(ledger)
        return asyncio.run(_run(session, store, options, allow_folder or ()))


async def _run(session: Session, ledger: StoredLedger, options: ServiceOptions, allowed: Sequence[Path]) -> int:
    from nanobanana_async.mcp_server.server import ImageServer  # of the extra: `--help` shows this command too

    await check_output(options.folder)
    folders = to_allowed_folders((options.folder, *allowed))
    if sys.stdin.isatty():
        print("nanobanana: a client of MCP should start this command: it speaks the protocol here", file=sys.stderr)
    stop = asyncio.Event()
    with handle_signals(stop.set):
        try:
            async with Service.opened(session, ledger, options) as service, anyio.create_task_group() as group:
                group.start_soon(_exit_on_signal, stop, service)
                await ImageServer(service, folders).serve()
                group.cancel_scope.cancel()
        except BaseExceptionGroup as several:  # of nested task groups; a BrokenPipeError when the client was killed
            error: BaseException = several
            while isinstance(error, BaseExceptionGroup):
                error = error.exceptions[0]
            raise error from None
    return OK


async def _exit_on_signal(stop: asyncio.Event, service: Service) -> None:
    """Close the session and end the process: no cancellation reaches the thread that waits for a line of stdin."""
    await stop.wait()
    await service.aclose()
    sys.stderr.flush()
    os._exit(INTERRUPTED)


mcp = McpCommand(find_gateway).mcp
