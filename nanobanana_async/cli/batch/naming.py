"""How the images of a batch are named: as --names says, or else as the folder of the batch remembers."""

from pathlib import Path

from attrs import evolve

from nanobanana_async.cli.batch.folder import MARKER, FolderOwner
from nanobanana_async.cli.batch.input_file import InputFile
from nanobanana_async.cli.jobs.consent import print_note
from nanobanana_async.images.names import NameTemplate

DEFAULT_NAMES = "default"
"""The value of --names for the names that a batch has without it."""


def template_of(names: str | None) -> NameTemplate | None:
    """Return the template that --names gives; None for the default."""
    return None if names in (None, DEFAULT_NAMES) else NameTemplate("--names", names)


def with_names(
    source: InputFile, names: str | None, owner: FolderOwner, found: FolderOwner | None, folder: Path
) -> tuple[InputFile, FolderOwner]:
    """Return the file with the names of this run, and the owner of the folder that remembers them.

    `found` is the owner of before. If --names differs from what it remembers, a note says so.
    """
    remembered = None if found is None else found.names
    if names is None:
        if remembered is None:
            return source, owner
        template = NameTemplate(f"{folder / MARKER}: names", remembered)
        return evolve(source, options=evolve(source.options, names=template)), evolve(owner, names=remembered)
    wanted = None if names == DEFAULT_NAMES else names
    if found is not None and wanted != remembered:
        print_note(
            f"nanobanana: new images are named by --names {names}, in later runs too; the earlier runs in {folder} had"
            f" --names {remembered or DEFAULT_NAMES}, and their images keep their names"
        )
    return source, evolve(owner, names=wanted)
