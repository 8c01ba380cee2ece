"""Asyncio client for the Nano Banana Pro image gateways.

A name of the root is imported when it is first used: the command line and other programs start without the rest.
"""

import sys
from typing import TYPE_CHECKING

from nanobanana_async._version import __version__

if TYPE_CHECKING:
    from nanobanana_async.batch.batch import Batch
    from nanobanana_async.batch.feeding import FeedReport
    from nanobanana_async.batch.outcome import Outcome
    from nanobanana_async.batch.sweeps import sweep
    from nanobanana_async.config import Timeouts
    from nanobanana_async.errors import (
        AccessDenied,
        AuthenticationError,
        BatchStopped,
        ConfigurationError,
        CreditLimitReached,
        DownloadError,
        GatewayError,
        GatewayUnavailable,
        IdempotencyConflict,
        InsufficientCredits,
        InvalidRequest,
        JobError,
        JobFailed,
        JobUncertain,
        JobUnfinished,
        JobWithdrawn,
        LedgerError,
        NanoBananaError,
        PromptBlocked,
        RateLimited,
        SaveError,
        SessionClosed,
        TaskNotFound,
        TransportError,
        UnexpectedResponse,
    )
    from nanobanana_async.gateways.apimall import ApiMall
    from nanobanana_async.gateways.contract import Gateway
    from nanobanana_async.gateways.defapi import DefApi
    from nanobanana_async.handle import Job
    from nanobanana_async.jobs import JobState
    from nanobanana_async.ledger.base import Ledger, NotOurs
    from nanobanana_async.ledger.memory import MemoryLedger
    from nanobanana_async.ledger.postgres.ledger import PostgresLedger
    from nanobanana_async.ledger.sqlite import SqliteLedger
    from nanobanana_async.models import GeneratedImage, GenerationResult, ImageRequest, Resolution
    from nanobanana_async.policy.concurrency import ConcurrencyPolicy
    from nanobanana_async.policy.named_budget import Budget, BudgetState
    from nanobanana_async.policy.polling import PollPolicy
    from nanobanana_async.policy.retry import RetryPolicy
    from nanobanana_async.session import Session
    from nanobanana_async.session_portal import SessionPortal, portal
    from nanobanana_async.stats import SessionStats
else:
    _NAMES_OF_MODULES = {
        "batch.batch": ("Batch",),
        "batch.feeding": ("FeedReport",),
        "batch.outcome": ("Outcome",),
        "batch.sweeps": ("sweep",),
        "config": ("Timeouts",),
        "errors": (
            "AccessDenied",
            "AuthenticationError",
            "BatchStopped",
            "ConfigurationError",
            "CreditLimitReached",
            "DownloadError",
            "GatewayError",
            "GatewayUnavailable",
            "IdempotencyConflict",
            "InsufficientCredits",
            "InvalidRequest",
            "JobError",
            "JobFailed",
            "JobUncertain",
            "JobUnfinished",
            "JobWithdrawn",
            "LedgerError",
            "NanoBananaError",
            "PromptBlocked",
            "RateLimited",
            "SaveError",
            "SessionClosed",
            "TaskNotFound",
            "TransportError",
            "UnexpectedResponse",
        ),
        "gateways.apimall": ("ApiMall",),
        "gateways.contract": ("Gateway",),
        "gateways.defapi": ("DefApi",),
        "handle": ("Job",),
        "jobs": ("JobState",),
        "ledger.base": ("Ledger", "NotOurs"),
        "ledger.memory": ("MemoryLedger",),
        "ledger.postgres.ledger": ("PostgresLedger",),
        "ledger.sqlite": ("SqliteLedger",),
        "models": (
            "GeneratedImage",
            "GenerationResult",
            "ImageRequest",
            "Resolution",
        ),
        "policy.concurrency": ("ConcurrencyPolicy",),
        "policy.named_budget": ("Budget", "BudgetState"),
        "policy.polling": ("PollPolicy",),
        "policy.retry": ("RetryPolicy",),
        "session": ("Session",),
        "session_portal": ("SessionPortal", "portal"),
        "stats": ("SessionStats",),
    }
    _MODULES = {name: module for module, names in _NAMES_OF_MODULES.items() for name in names}

    def __getattr__(name):
        """Import a public name, or a module of the package, when it is first used."""
        from importlib import import_module

        path = f"{__name__}.{_MODULES.get(name, name)}"
        try:
            found = import_module(path) if name in _MODULES or not name.startswith("_") else None
        except ModuleNotFoundError as missing:
            if missing.name != path:
                raise
            found = None
        if found is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}", name=name, obj=sys.modules[__name__])
        globals()[name] = value = getattr(found, name) if name in _MODULES else found
        return value

    def __dir__():
        return sorted({*globals(), *__all__} - {"TYPE_CHECKING"})


__all__ = [
    "AccessDenied",
    "ApiMall",
    "AuthenticationError",
    "Batch",
    "BatchStopped",
    "Budget",
    "BudgetState",
    "ConcurrencyPolicy",
    "ConfigurationError",
    "CreditLimitReached",
    "DefApi",
    "DownloadError",
    "FeedReport",
    "Gateway",
    "GatewayError",
    "GatewayUnavailable",
    "GeneratedImage",
    "GenerationResult",
    "IdempotencyConflict",
    "ImageRequest",
    "InsufficientCredits",
    "InvalidRequest",
    "Job",
    "JobError",
    "JobFailed",
    "JobState",
    "JobUncertain",
    "JobUnfinished",
    "JobWithdrawn",
    "Ledger",
    "LedgerError",
    "MemoryLedger",
    "NanoBananaError",
    "NotOurs",
    "Outcome",
    "PollPolicy",
    "PostgresLedger",
    "PromptBlocked",
    "RateLimited",
    "Resolution",
    "RetryPolicy",
    "SaveError",
    "Session",
    "SessionClosed",
    "SessionPortal",
    "SessionStats",
    "SqliteLedger",
    "TaskNotFound",
    "Timeouts",
    "TransportError",
    "UnexpectedResponse",
    "__version__",
    "portal",
    "sweep",
]
