"""`nanobanana serve`: OpenAI's images API on this machine, in front of the gateway."""

import asyncio
import os
import socket
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from attrs import frozen
from cyclopts import Parameter

from nanobanana_async import ConcurrencyPolicy, ConfigurationError, Session
from nanobanana_async.cli.find_gateway import find_gateway, find_gateways
from nanobanana_async.cli.listening import check_port, listen_error
from nanobanana_async.cli.options import (
    DEFAULT_LEDGER,
    BaseUrl,
    GatewayFinder,
    GatewayName,
    LedgerOption,
    MaxJobs,
    MaxRequestsPerMinute,
    make_ledger_folder,
    repeatable,
)
from nanobanana_async.cli.settings.private import open_regular
from nanobanana_async.gateways.base import is_loopback
from nanobanana_async.ledger.location import ledger_at
from nanobanana_async.validators import as_file, as_number

TOKENS_VARIABLE = "NANOBANANA_SERVE_TOKENS"
_MAX_TOKENS_BYTES = 1 << 20


@frozen
class ServeCommand:
    """The command `serve`."""

    find_gateway: GatewayFinder

    def serve(
        self,
        *,
        port: int = 8000,
        host: str = "127.0.0.1",
        tokens: Annotated[Path | None, Parameter(metavar="FILE")] = None,
        model: Annotated[list[str] | None, repeatable("MODEL")] = None,
        answer_within: Annotated[float | None, Parameter(metavar="SECONDS")] = None,
        ledger: LedgerOption = DEFAULT_LEDGER,
        gateway: GatewayName = None,
        base_url: BaseUrl = None,
        max_jobs: MaxJobs = None,
        max_requests_per_minute: MaxRequestsPerMinute = None,
    ) -> int:
        """Serve OpenAI's images API until Ctrl-C, for programs that speak it: their base URL is http://HOST:PORT/v1.

        Each image is a job in the ledger, bought once however often a client retries. A client that leaves loses
        nothing: the job goes on, and its retry, or the same Idempotency-Key, gets the images.

        Without tokens only programs on this machine are answered. Tokens are lines NAME:TOKEN in a file, or in
        NANOBANANA_SERVE_TOKENS, separated by spaces, each with a budget and more if you like:
        NAME:TOKEN:500/day:group=team:priority=5. Behind a proxy that ends silent requests, --answer-within 50 answers
        503 before it does; the client's retry then waits for the same job.

        Examples:

        nanobanana serve

        nanobanana serve --host 0.0.0.0 --tokens tokens.txt --ledger postgresql://studio@db.example/studio

        nanobanana serve --model nano-banana-pro --model gpt-image-1=nano-banana-pro

        Parameters
        ----------
        port
            The port; 0 selects a free one.
        host
            The address to listen on. Any other than one of this machine needs tokens.
        tokens
            A file of tokens, which only you can read.
        model
            A model that requests may name, or OTHER=MODEL: another name for it; can be repeated. By default the model
            of the gateway.
        answer_within
            Seconds after which a request whose job still runs is answered 503, to be retried. Default: it waits.
        ledger
            The ledger of the jobs: a file, or postgresql://user@host/database for several servers.
        gateway
            The gateway; by default the one whose API key is set.
        base_url
            The gateway's URL, if not the usual one.
        max_jobs
            The most jobs to run at once.
        max_requests_per_minute
            The most requests to the gateway in a minute, if you know what the account allows.
        """
        # Here, since `nanobanana --help` imports this file, also where the extra `serve` is missing.
        from nanobanana_async.cli.serving import run
        from nanobanana_async.otel.prometheus import PrometheusMetrics
        from nanobanana_async.serve import make_app, parse_tokens

        names = _models(model)
        known = None if (text := _text_of_tokens(tokens)) is None else parse_tokens(text)
        del text  # tracebacks with locals would show it
        if known is None and not is_loopback(host):
            raise ConfigurationError(
                f"--host {host} lets other machines buy images: pass --tokens FILE with lines NAME:TOKEN, or set"
                f" {TOKENS_VARIABLE}"
            )
        check_port(port)
        seconds = None if answer_within is None else as_number("--answer-within", answer_within, above=0)
        metrics = PrometheusMetrics()
        session = Session(
            find_gateways(self.find_gateway, gateway, base_url),
            ledger=ledger_at(ledger),
            concurrency=ConcurrencyPolicy(max_jobs=max_jobs, max_requests_per_minute=max_requests_per_minute),
            observers=[metrics.telemetry],
            trust_env=True,
        )
        app = make_app(session, tokens=known, models=names, answer_within_s=seconds, metrics=metrics)
        make_ledger_folder(ledger)
        return asyncio.run(run(session, app, _listening_socket(host, port), known))


def _models(options: Sequence[str] | None) -> dict[str, str] | None:
    """Return the models of `--model` options by the names that requests give them."""
    if options is None:
        return None
    names = {}
    for option in options:
        name, _, model = option.partition("=")
        if not name.strip() or ("=" in option and not model.strip()):
            raise ConfigurationError(f"--model must be MODEL or OTHER=MODEL, not {option[:60]!r}")
        names[name.strip()] = model.strip() or name.strip()
    return names


def _text_of_tokens(path: Path | None) -> str | None:
    """Return the lines of tokens in a file, or else in the environment; no message shows them."""
    if path is None:
        text = os.environ.get(TOKENS_VARIABLE)
        return None if text is None else "\n".join(text.split())
    file_path = as_file("--tokens", path)
    try:
        with open_regular(file_path) as file:
            if os.name == "posix" and os.fstat(file.fileno()).st_mode & (stat.S_IRWXG | stat.S_IRWXO):
                raise ConfigurationError(
                    f"other users can read the tokens in {file_path}: run `chmod 600` on it, and replace them if others"
                    " use this machine"
                )
            return file.read(_MAX_TOKENS_BYTES).decode("utf-8-sig", errors="replace")
    except OSError as error:
        raise ConfigurationError(f"the tokens in {file_path} can't be read: {error.strerror}") from None


def _listening_socket(host: str, port: int) -> socket.socket:
    """Return a socket that listens, before anything else is opened."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, UnicodeError) as error:
        raise listen_error(host, port, error) from None


serve = ServeCommand(find_gateway).serve
