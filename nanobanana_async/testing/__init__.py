"""Test your own code without paying or waiting: virtual time, gateways that need no socket, a network that breaks.

With `run_virtual` the event loop's clock jumps to the next timer whenever every task waits: an hour of polling takes
milliseconds. `FakeTransport` answers a session's requests with a function, `EmulatorTransport` with an emulated
gateway. Pass either as `Session(..., http=transport)`. `FaultProxy` stands between a client and a server on loopback,
and breaks their connections as a network does.
"""

from nanobanana_async.testing.fault_proxy import ConnectionFault, Exchange, FaultProxy, Schedule
from nanobanana_async.testing.transports import AnswerRequest, EmulatorTransport, FakeTransport, Reply
from nanobanana_async.testing.virtual_time import EPOCH, VirtualLoop, run_virtual

__all__ = [
    "EPOCH",
    "AnswerRequest",
    "ConnectionFault",
    "EmulatorTransport",
    "Exchange",
    "FakeTransport",
    "FaultProxy",
    "Reply",
    "Schedule",
    "VirtualLoop",
    "run_virtual",
]
