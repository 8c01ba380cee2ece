"""Both gateways on loopback: for tests, for trying things out, for counting what a client does.

```python
async with Emulator(job_limit=10) as emulator, Session(emulator.apimall()) as session:
    await session.generate("a lighthouse in fog")
    print(emulator.stats())
```
"""

from nanobanana_async.emulator import faults
from nanobanana_async.emulator.counting import EmulatorStats, JobFacts
from nanobanana_async.emulator.durations import (
    QUICK,
    REALISTIC,
    Bimodal,
    Duration,
    Fixed,
    LogNormal,
)
from nanobanana_async.emulator.faults import Chance, Fault, Script
from nanobanana_async.emulator.handle import Emulator
from nanobanana_async.emulator.serve import serve
from nanobanana_async.emulator.settings import (
    API_KEY,
    UNAPPROVED_KEY,
    EmulatorOptions,
    WorldSettings,
)
from nanobanana_async.emulator.values import Answer, Call, Callback, Delivery, Manner
from nanobanana_async.emulator.world import World

__all__ = [
    "API_KEY",
    "QUICK",
    "REALISTIC",
    "UNAPPROVED_KEY",
    "Answer",
    "Bimodal",
    "Call",
    "Callback",
    "Chance",
    "Delivery",
    "Duration",
    "Emulator",
    "EmulatorOptions",
    "EmulatorStats",
    "Fault",
    "Fixed",
    "JobFacts",
    "LogNormal",
    "Manner",
    "Script",
    "World",
    "WorldSettings",
    "faults",
    "serve",
]
