"""`nanobanana jobs attach`: wait for tasks by their ids, and print or save their images; nothing is bought."""

from pathlib import Path
from typing import Annotated

from attrs import frozen
from cyclopts import Parameter
from rich.console import Console

from nanobanana_async import ConcurrencyPolicy
from nanobanana_async.cli.generate import Delivery, attachments, run_jobs
from nanobanana_async.cli.options import BaseUrl, FolderOption, GatewayFinder, GatewayName, Timeout
from nanobanana_async.cli.signals import run_until_signal
from nanobanana_async.jobs import validate_task_id
from nanobanana_async.validators import as_number


@frozen
class AttachCommand:
    """The command `jobs attach`."""

    find_gateway: GatewayFinder

    def attach(
        self,
        task_ids: Annotated[list[str], Parameter(name="TASK_ID", negative=())],
        /,
        *,
        output: Annotated[Path | None, FolderOption] = None,
        gateway: GatewayName = None,
        base_url: BaseUrl = None,
        timeout: Timeout = None,
    ) -> int:
        """Wait for tasks that were bought before, and print their image URLs, or with -o the paths of the saved files.

        Nothing is bought, and no ledger is read or written: `nanobanana jobs resume` continues the jobs of a ledger.

        Parameters
        ----------
        task_ids
            The gateway's ids of the tasks, as `nanobanana generate` names them when it is interrupted.
        output
            Save the images in this folder.
        gateway
            The gateway; by default the one whose API key is set. It must be the account that bought the tasks.
        base_url
            The gateway's URL, if not the usual one.
        timeout
            Seconds to wait for each task.
        """
        unique = list(dict.fromkeys(map(validate_task_id, task_ids)))
        if timeout is not None:
            as_number("--timeout", timeout, above=0, endless=True)
        selected = self.find_gateway(gateway, base_url)
        delivery = Delivery(folder=output, attach_options=attach_options(gateway, base_url))
        jobs = attachments(unique, timeout)
        return run_until_signal(run_jobs(selected, jobs, ConcurrencyPolicy(), delivery, Console(stderr=True)))


def attach_options(gateway: str | None, base_url: str | None) -> list[str]:
    """Return the options with which `jobs attach` reaches the same gateway."""
    options = {"--gateway": gateway, "--base-url": base_url}
    return [part for name, value in options.items() if value is not None for part in (name, value)]
