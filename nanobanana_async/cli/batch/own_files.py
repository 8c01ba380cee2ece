"""Refuse to read rows or values from the files that the run writes."""

from pathlib import Path

from nanobanana_async.cli.batch.folder import FILES
from nanobanana_async.cli.batch.results import IMAGES
from nanobanana_async.cli.batch.sweeping import SweepOptions, file_of_values
from nanobanana_async.errors import ConfigurationError
from nanobanana_async.images.manifest import NAME as CHECKSUMS
from nanobanana_async.images.saved import NAME as IMAGE_LIST

WRITTEN = (*FILES, f"{IMAGES}/{CHECKSUMS}", f"{IMAGES}/{IMAGE_LIST}")


def refuse_own_results(folder: Path, file: str | None, sweep: SweepOptions | None) -> None:
    """Raise `ConfigurationError` if a file with rows or values of a batch is one of those that its run writes."""
    read = [] if file in (None, "-") else [Path(str(file)).expanduser()]
    if sweep is not None:
        read += [*sweep.vary_files, *filter(None, map(file_of_values, sweep.vary))]
    written = {(folder / name).resolve() for name in WRITTEN}
    for each in read:
        if each.exists() and each.resolve() in written:
            raise ConfigurationError(f"{each} would be overwritten: name another folder with -o")
