"""`python -m tests.screenshots` writes the images of README and docs into docs/images."""

import argparse
import asyncio
from pathlib import Path

from tests.screenshots.making import MAKERS, make
from tests.web.servers import ROOT

parser = argparse.ArgumentParser(prog="python -m tests.screenshots", description=__doc__)
parser.add_argument("--only", action="append", choices=MAKERS, help="only what these runs show")
parser.add_argument("--out", type=Path, default=ROOT / "docs/images")
asked = parser.parse_args()
asked.out.mkdir(parents=True, exist_ok=True)
asyncio.run(make(asked.out, tuple(asked.only or MAKERS)))
