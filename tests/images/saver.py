"""A process that saves images until it is stopped: `python saver.py FOLDER NAME CONTENT_FILE COUNT STEP`."""

import os
import sys
from pathlib import Path

from nanobanana_async.images import files, manifest
from nanobanana_async.images.files import PartialFile


def save(folder: Path, name: str, content: bytes) -> None:
    part = PartialFile(folder)
    part.open()
    part.write(content)
    part.finish(name)
    part.discard()


def dying(step: str) -> None:
    """Kill this process at a step."""

    def die(*_: object) -> None:
        os.kill(os.getpid(), 9)

    match step:
        case "before the name":
            files.rename_exclusive = die  # type: ignore[assignment]
        case "before the flush of the folder":
            files.sync_folder = die  # type: ignore[assignment]
        case "before the manifest line":
            manifest.Manifest.add = die  # type: ignore[method-assign, assignment]
        case _:
            pass


if __name__ == "__main__":
    folder, name, content, count, step = sys.argv[1:]
    dying(step)
    for number in range(int(count)):
        save(Path(folder), name.format(number), Path(content).read_bytes())
