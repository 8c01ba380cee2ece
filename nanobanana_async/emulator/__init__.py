"""Emulate both gateways on loopback, for tests and for trying things out. It counts what a client does.

```python
async with Emulator(job_limit=10) as emulator, Session(emulator.apimall()) as session:
    await session.generate("a lighthouse in fog")
    print(emulator.stats())
```
"""

from nanobanana_async.emulator import faults
from nanobanana_async.emulator.emulator import Emulator, serve
from nanobanana_async.emulator.faults import Fault, RandomFault, Script
from nanobanana_async.emulator.field_notes import FIELD_NOTES, field_note
from nanobanana_async.emulator.messages import (
    Callback,
    EmulatedRequest,
    EmulatedResponse,
    ResponseSending,
    SendMode,
)
from nanobanana_async.emulator.settings import (
    ACCOUNTS,
    API_KEY,
    QUICK,
    REALISTIC,
    UNAPPROVED_KEY,
    Bimodal,
    Duration,
    EmulatorOptions,
    EmulatorSettings,
    Fixed,
    LogNormal,
)
from nanobanana_async.emulator.simulator import GatewaySimulator
from nanobanana_async.emulator.stats import EmulatorStats, JobFacts

__all__ = [
    "ACCOUNTS",
    "API_KEY",
    "FIELD_NOTES",
    "QUICK",
    "REALISTIC",
    "UNAPPROVED_KEY",
    "Bimodal",
    "Callback",
    "Duration",
    "EmulatedRequest",
    "EmulatedResponse",
    "Emulator",
    "EmulatorOptions",
    "EmulatorSettings",
    "EmulatorStats",
    "Fault",
    "Fixed",
    "GatewaySimulator",
    "JobFacts",
    "LogNormal",
    "RandomFault",
    "ResponseSending",
    "Script",
    "SendMode",
    "faults",
    "field_note",
    "serve",
]
