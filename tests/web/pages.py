"""The applications of docs/web.md, read from the page."""

import re
from pathlib import Path

from tests.web.servers import ROOT

_APP = re.compile(r"^```python\n# (\w+\.py): [^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def put(name: str, folder: Path) -> Path:
    """Write an application of the page into a folder; return the file."""
    apps = dict(_APP.findall((ROOT / "docs/web.md").read_text("utf-8")))
    file = folder / name
    file.write_text(apps[name], "utf-8")
    return file
