"""What the page says for a row that did not succeed: a plain phrase for its error, and what to do about it."""

from attrs import frozen

PHRASES = {
    "AccessDenied": "no access",
    "AuthenticationError": "API key not accepted",
    "BatchStopped": "the batch stopped",
    "ConfigurationError": "a setting is wrong",
    "CreditLimitReached": "cap of credits reached",
    "DownloadError": "image not downloaded",
    "GatewayError": "by the gateway",
    "GatewayUnavailable": "gateway unavailable",
    "IdempotencyConflict": "key of another purchase",
    "InsufficientCredits": "not enough credits",
    "InvalidRequest": "request not valid",
    "JobError": "the job did not succeed",
    "JobFailed": "",  # the status says it
    "JobUncertain": "perhaps bought",
    "JobUnfinished": "not finished yet",
    "JobWithdrawn": "taken back",
    "LedgerError": "ledger not written",
    "NanoBananaError": "it did not succeed",
    "PromptBlocked": "prompt blocked",
    "RateLimited": "too many requests",
    "SaveError": "image not saved",
    "SessionClosed": "session closed",
    "TaskNotFound": "task not known",
    "TransportError": "no answer from the gateway",
    "UnexpectedResponse": "answer not understood",
}
"""For the name of each class of `nanobanana_async.errors`, which people who only read the page do not know."""


@frozen
class Advice:
    """What to do about a row: a sentence, and the command to type, if there is one."""

    sentence: str
    command: str = ""
