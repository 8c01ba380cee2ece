"""The whole exception tree. An error answers "what can I do now?"; its facts are attributes.

NanoBananaError
  ConfigurationError         fix your settings (also a ValueError)
  GatewayError               the gateway said no            .status .code .request_id
    InvalidRequest (400)  AuthenticationError (401)  InsufficientCredits (402)  AccessDenied (403)
    TaskNotFound (404)  IdempotencyConflict (409)  RateLimited (429)  PromptBlocked (451)
    GatewayUnavailable (500, 502, 503, 504)
  TransportError             no usable answer               .sent
  UnexpectedResponse             an answer that does not fit    .status .body
  JobError                   one job's own story            .job
    JobFailed  JobUncertain  JobWithdrawn  JobUnfinished (also a TimeoutError)
  SessionClosed              the session was closed while you waited
  BatchStopped               the buying stopped             .cause .done .unbought
  CreditLimitReached         max_credits would be passed
  LedgerError                the ledger can't be opened or written   .task_id
  DownloadError              the image is not what it should be   .gone
  SaveError                  the folder for the images can't be written
"""

from collections.abc import Generator
from typing import Any, ClassVar, Literal, Protocol, Self, TypeVar

E = TypeVar("E", bound="NanoBananaError")

LimitKind = Literal["jobs", "rate"]
"""What a 429 speaks of: the jobs at once, or the rate of requests."""


class JobHandle(Protocol):
    """What a job error gives its reader to go on with: the live `Job`."""

    @property
    def key(self) -> str: ...

    @property
    def task_id(self) -> str | None: ...

    def __await__(self) -> Generator[Any, None, Any]: ...


class NanoBananaError(Exception):
    """Root of everything this library raises on purpose.

    `key` is our key of the job concerned, if there is one. `safe_to_repeat` is False when a job may have been
    bought, or may yet be: a retry loop of your own that generates anew could then pay twice.
    """

    advice: ClassVar[str] = ""

    def __init__(self, message: str, *, key: str | None = None, safe_to_repeat: bool = True) -> None:
        super().__init__(message)
        self.message = message
        self.key = key
        self.safe_to_repeat = safe_to_repeat

    def __str__(self) -> str:
        return f"{self.message} ({self.advice})" if self.advice else self.message

    def __reduce__(self) -> tuple[Any, ...]:
        # The default would call __init__ with the message alone and miss the keyword-only facts.
        return _rebuild, (type(self), self.args, self.__dict__)

    def for_job(self, key: str, *, safe_to_repeat: bool) -> Self:
        """Return a fresh copy that tells which job it is about: each waiter gets a traceback of its own."""
        facts = {**self.__dict__, "key": key, "safe_to_repeat": safe_to_repeat}
        return _rebuild(type(self), self.args, facts)


def _rebuild(kind: type[E], args: tuple[Any, ...], facts: dict[str, Any]) -> E:
    error = kind.__new__(kind, *args)
    error.args = args  # OSError, which a TimeoutError is, leaves them to its __init__
    error.__dict__.update(facts)
    return error


class ConfigurationError(NanoBananaError, ValueError):
    """Fix your settings: a key is missing, a URL is unsafe, a number is out of range."""


class GatewayError(NanoBananaError):
    """The gateway answered, and the answer was no.

    `status` is the HTTP status (None when the rule was checked locally, before anything was sent), `code` the
    gateway's own word or number for it, `request_id` what its support asks for, `retry_after_s` the wait it asked for.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        code: str | None = None,
        request_id: str | None = None,
        retry_after_s: float | None = None,
        key: str | None = None,
        safe_to_repeat: bool = True,
    ) -> None:
        super().__init__(message, key=key, safe_to_repeat=safe_to_repeat)
        self.status = status
        self.code = code
        self.request_id = request_id
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        facts = [str(self.status)] if self.status is not None else []
        if self.code is not None and self.code != str(self.status):
            facts.append(f"code {self.code}")
        if self.request_id is not None:
            facts.append(f"request {self.request_id}")
        sentence = f"{self.message} [{', '.join(facts)}]" if facts else self.message
        return f"{sentence} ({self.advice})" if self.advice else sentence


class InvalidRequest(GatewayError, ValueError):
    """400: the request does not fit; found locally before sending wherever the reference states the rule."""

    advice = "change the request"


class AuthenticationError(GatewayError):
    """401: the key is missing, wrong or expired."""

    advice = "check the API key"


class InsufficientCredits(GatewayError):
    """402: the account is short of credits; the job was not bought."""

    advice = "top up, then repeat"


class AccessDenied(GatewayError):
    """403: the account has no access to this API, or the host is not the gateway."""

    advice = "ask the gateway for API access, and check base_url"


class TaskNotFound(GatewayError):
    """404: the gateway knows no such task, or no such endpoint."""

    advice = "check the task id, the account it belongs to, and base_url"


class IdempotencyConflict(GatewayError):
    """409: this key already stands for another request, or for a purchase that this ledger does not know."""

    advice = "another idempotency_key is another purchase"


class RateLimited(GatewayError):
    """429: too many requests, or too many jobs at once; nothing was bought.

    `kind` is "jobs" or "rate" where the answer said which of the two, else None.
    """

    advice = "wait, then repeat"

    def __init__(
        self,
        message: str,
        *,
        kind: LimitKind | None = None,
        status: int | None = None,
        code: str | None = None,
        request_id: str | None = None,
        retry_after_s: float | None = None,
        key: str | None = None,
        safe_to_repeat: bool = True,
    ) -> None:
        super().__init__(
            message,
            status=status,
            code=code,
            request_id=request_id,
            retry_after_s=retry_after_s,
            key=key,
            safe_to_repeat=safe_to_repeat,
        )
        self.kind: LimitKind | None = kind


class PromptBlocked(GatewayError):
    """451: content moderation refused the prompt."""

    advice = "change the prompt"


class GatewayUnavailable(GatewayError):
    """500, 502, 503, 504: the gateway or what stands behind it is in trouble."""

    advice = "wait, then look the job up before you buy again"


class TransportError(NanoBananaError):
    """No usable answer arrived. `sent` is False when surely nothing reached the gateway, True when it perhaps did."""

    def __init__(
        self, message: str, *, possibly_sent: bool, key: str | None = None, safe_to_repeat: bool | None = None
    ) -> None:
        super().__init__(
            message, key=key, safe_to_repeat=not possibly_sent if safe_to_repeat is None else safe_to_repeat
        )
        self.possibly_sent = possibly_sent


class UnexpectedResponse(NanoBananaError):
    """An answer arrived that does not fit the gateway's reference; `body` is a short, redacted excerpt of it."""

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        body: str = "",
        retry_after_s: float | None = None,
        key: str | None = None,
        safe_to_repeat: bool = False,
    ) -> None:
        super().__init__(message, key=key, safe_to_repeat=safe_to_repeat)
        self.status = status
        self.body = body
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        status = f" [{self.status}]" if self.status is not None else ""
        return f"{self.message}{status}: {self.body}" if self.body else f"{self.message}{status}"


class JobError(NanoBananaError):
    """One job's own story; `job` is its live handle, which can be awaited again."""

    def __init__(self, message: str, *, job: JobHandle, safe_to_repeat: bool) -> None:
        super().__init__(message, key=job.key, safe_to_repeat=safe_to_repeat)
        self.job = job


class JobFailed(JobError):
    """The gateway gave up on the task; buying it again is a new purchase."""


class JobUncertain(JobError):
    """The request was sent and no answer said whether it was accepted: money may be spent."""

    advice = "look at the gateway's own list of tasks, then settle the job; it is never bought again by itself"


class JobWithdrawn(JobError):
    """The job was taken back before anything was sent."""


class JobUnfinished(JobError, TimeoutError):
    """The wait ended before the job did. The message says whether the job continues and what to do next."""


class SessionClosed(NanoBananaError):
    """The session was closed while you waited; what was bought stays in the ledger."""


class BatchStopped(NanoBananaError):
    """The buying stopped: `cause` says why, `done` rows ended, `unbought` were pulled and not bought."""

    def __init__(self, message: str, *, cause: NanoBananaError, done: int, unbought: int) -> None:
        super().__init__(message)
        self.cause = cause
        self.done = done
        self.unbought = unbought


class CreditLimitReached(NanoBananaError):
    """The next purchase would pass `max_credits`."""


class LedgerError(NanoBananaError):
    """The ledger can't be opened or written; `task_id` is set if the gateway had just told us one."""

    def __init__(
        self,
        message: str,
        *,
        task_id: str | None = None,
        key: str | None = None,
        safe_to_repeat: bool = True,
    ) -> None:
        super().__init__(message, key=key, safe_to_repeat=safe_to_repeat)
        self.task_id = task_id


class DownloadError(NanoBananaError):
    """The image is not what it should be, or could not be fetched.

    `gone` means that its link opens nothing any more: the gateway may have a new one.
    """

    def __init__(
        self, message: str, *, link_expired: bool = False, key: str | None = None, safe_to_repeat: bool = True
    ) -> None:
        super().__init__(message, key=key, safe_to_repeat=safe_to_repeat)
        self.link_expired = link_expired


class SaveError(NanoBananaError):
    """A folder can't be written; images of jobs that were bought can be saved later, without a purchase."""


ERROR_BY_STATUS: dict[int, type[GatewayError]] = {
    400: InvalidRequest,
    401: AuthenticationError,
    402: InsufficientCredits,
    403: AccessDenied,
    404: TaskNotFound,
    409: IdempotencyConflict,
    429: RateLimited,
    451: PromptBlocked,
    500: GatewayUnavailable,
    502: GatewayUnavailable,
    503: GatewayUnavailable,
    504: GatewayUnavailable,
}
