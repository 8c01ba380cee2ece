"""`nanobanana doctor`: check what this machine needs to generate images, and say what to do; nothing is bought."""

import asyncio
import json as json_format
import sys
from collections.abc import AsyncIterator, Sequence
from importlib.util import find_spec

from attrs import asdict, frozen

from nanobanana_async import __version__
from nanobanana_async.cli.doctor.finding import Finding
from nanobanana_async.cli.doctor.gateway_checks import gateway_findings
from nanobanana_async.cli.doctor.ledger_checks import ledger_findings
from nanobanana_async.cli.find_gateway import find_gateway, find_gateways
from nanobanana_async.cli.options import (
    DEFAULT_LEDGER,
    BaseUrl,
    Flag,
    GatewayFinder,
    GatewayName,
    LedgerOption,
    in_cli_words,
)
from nanobanana_async.commands import command_line
from nanobanana_async.errors import ConfigurationError
from nanobanana_async.escaping import one_line
from nanobanana_async.formatting import plural
from nanobanana_async.gateways.contract import Gateway
from nanobanana_async.ledger.location import Location

EXTRAS = {
    "cli": "cyclopts",
    "emulator": "PIL",
    "notebook": "ipywidgets",
    "xlsx": "python_calamine",
    "store": "obstore",
    "postgres": "psycopg",
    "otel": "opentelemetry",
}
"""Extra -> a module that it installs."""


@frozen
class DoctorCommand:
    """The command `doctor`."""

    find_gateway: GatewayFinder

    def doctor(
        self,
        *,
        gateway: GatewayName = None,
        base_url: BaseUrl = None,
        ledger: LedgerOption = DEFAULT_LEDGER,
        json: Flag = False,
    ) -> int:
        """Check installation, settings, network, API key, balance, clock and ledger. Nothing is bought or changed.

        Each line says what to do about it. The exit code is 1 if there is a problem.

        Examples:

        nanobanana doctor

        nanobanana doctor --gateway defapi --json

        Parameters
        ----------
        gateway
            The gateway; by default the one whose API key is set, or each account of the profile.
        base_url
            The gateway's URL, if not the usual one.
        ledger
            The ledger: a file, or postgresql://user@host/database.
        json
            Print a JSON object for each check, one a line.
        """
        return asyncio.run(_examine(self.find_gateway, gateway, base_url, ledger, json=json))


async def _examine(
    finder: GatewayFinder, name: GatewayName, base_url: str | None, ledger: Location, *, json: bool
) -> int:
    problems = 0
    async for finding in _findings(finder, name, base_url, ledger):
        problems += finding.verdict == "problem"
        print(json_format.dumps(asdict(finding)) if json else _line(finding), flush=True)
    if not json:
        print("no problem found" if not problems else plural(problems, "problem"), file=sys.stderr)
    return min(problems, 1)


def _line(finding: Finding) -> str:
    advice = f"; {finding.advice}" if finding.advice else ""
    return f"{finding.verdict:<9}{finding.subject:<14}{one_line(finding.text + advice)}"


async def _findings(
    finder: GatewayFinder, name: GatewayName, base_url: str | None, ledger: Location
) -> AsyncIterator[Finding]:
    yield _installation()
    gateways: Sequence[Gateway] = ()
    try:
        gateways = find_gateways(finder, name, base_url)
    except ConfigurationError as error:
        yield Finding("settings", "problem", in_cli_words(error), f"`{command_line('config')}` shows all settings")
    for gateway in gateways:
        yield Finding("settings", "ok", f"{gateway.name} at {gateway.base_url}, account {gateway.account}")
        async for finding in gateway_findings(gateway):
            yield finding if len(gateways) == 1 else finding.of_account(gateway.account)
    async for finding in ledger_findings(ledger, gateways):
        yield finding


def _installation() -> Finding:
    missing = [extra for extra, module in EXTRAS.items() if find_spec(module) is None]
    python = ".".join(map(str, sys.version_info[:3]))
    text = f"nanobanana_async {__version__} on Python {python}"
    if not missing:
        return Finding("installation", "ok", f"{text}, all extras")
    extras = "extra" if len(missing) == 1 else "extras"
    return Finding("installation", "note", f"{text}, without the {extras} {', '.join(missing)}")


doctor = DoctorCommand(find_gateway).doctor
