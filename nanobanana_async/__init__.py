"""Asyncio client for the Nano Banana Pro image gateways."""

from nanobanana_async._version import __version__
from nanobanana_async.batch.batch import Batch
from nanobanana_async.batch.outcome import Outcome
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
from nanobanana_async.ledger.base import Ledger, OwnershipLost
from nanobanana_async.ledger.memory import MemoryLedger
from nanobanana_async.ledger.postgres.ledger import PostgresLedger
from nanobanana_async.ledger.sqlite import SqliteLedger
from nanobanana_async.models import GeneratedImage, GenerationResult, ImageRequest, Resolution
from nanobanana_async.policy.concurrency import ConcurrencyPolicy
from nanobanana_async.policy.polling import PollPolicy
from nanobanana_async.policy.retry import RetryPolicy
from nanobanana_async.session import Session
from nanobanana_async.stats import SessionStats

__all__ = [
    "AccessDenied",
    "ApiMall",
    "AuthenticationError",
    "Batch",
    "BatchStopped",
    "ConcurrencyPolicy",
    "ConfigurationError",
    "CreditLimitReached",
    "DefApi",
    "DownloadError",
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
    "Outcome",
    "OwnershipLost",
    "PollPolicy",
    "PostgresLedger",
    "PromptBlocked",
    "RateLimited",
    "Resolution",
    "RetryPolicy",
    "SaveError",
    "Session",
    "SessionClosed",
    "SessionStats",
    "SqliteLedger",
    "TaskNotFound",
    "Timeouts",
    "TransportError",
    "UnexpectedResponse",
    "__version__",
]
