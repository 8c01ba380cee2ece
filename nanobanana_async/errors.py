"""All exceptions of the library. `advice` says what the reader can do; the facts are attributes.

NanoBananaError
  ConfigurationError         fix your settings (also a ValueError)
  GatewayError               the gateway answered with an error   .status .code .request_id
    InvalidRequest (400)  AuthenticationError (401)  InsufficientCredits (402)  AccessDenied (403)
    TaskNotFound (404)  IdempotencyConflict (409)  RateLimited (429)  PromptBlocked (451)
    GatewayUnavailable (500, 502, 503, 504)
  TransportError             no usable answer arrived       .possibly_sent
  UnexpectedResponse         an answer that does not match the reference   .status .body
  JobError                   a job did not succeed          .job
    JobFailed  JobUncertain  JobWithdrawn  JobUnfinished (also a TimeoutError)
  SessionClosed              the session was closed meanwhile
  BatchStopped               the batch stopped buying       .cause .done .unbought
  CreditLimitReached         the next job would pass max_credits, or a budget   .budget .left
  LedgerError                the ledger can't be opened or written   .task_id
  DownloadError              an image can't be downloaded   .link_expired
  SaveError                  the folder or store for the images can't be written   .one_image
"""

from collections.abc import Generator
from decimal import Decimal
from typing import Any, Literal, Protocol, Self, TypedDict, TypeVar, Unpack

E = TypeVar("E", bound="NanoBananaError")

LimitKind = Literal["jobs", "rate"]
"""Which limit a 429 reports: too many jobs at once, or too many requests in a time."""
JobFailureKind = Literal["moderation", "capacity", "input", "unknown"]
"""Why a task failed: its content was refused, the gateway or its provider could not do it, its input is unusable."""

MAX_RETRY_AFTER_S = 120.0
"""The longest `Retry-After` that is obeyed. A longer one would let one wrong header stop a session."""


class JobHandle(Protocol):
    """The part of a live `Job` that an error exposes."""

    @property
    def key(self) -> str:
        """Our name for the job."""
        ...

    @property
    def task_id(self) -> str | None:
        """The gateway's name for it."""
        ...

    def __await__(self) -> Generator[Any, None, Any]: ...


class NanoBananaError(Exception):
    """The base class of all exceptions that this library raises.

    `key` is the key of the job concerned, if there is one. `safe_to_repeat` is False if a job may have been bought, or
    may still be: a retry loop that generates it again under another key could then pay twice.
    """

    advice: str = ""  # what the reader can do

    def __init__(self, message: str, *, key: str | None = None, safe_to_repeat: bool = True) -> None:
        super().__init__(message)
        self.message = message  # what happened, without the advice
        self.key = key  # of the job concerned; None if there is none
        self.safe_to_repeat = safe_to_repeat  # False: another purchase could be a second one

    def __str__(self) -> str:
        return f"{self.message} ({self.advice})" if self.advice else self.message

    def __reduce__(self) -> tuple[Any, ...]:
        # The default calls __init__ with the message alone and loses the keyword-only facts.
        return _rebuild, (type(self), self.args, self.__dict__)

    def for_job(self, key: str, *, safe_to_repeat: bool) -> Self:
        """Return a copy for one job and one waiter, so that each waiter gets its own traceback."""
        return _rebuild(type(self), self.args, {**self.__dict__, "key": key, "safe_to_repeat": safe_to_repeat})


def _rebuild(kind: type[E], args: tuple[Any, ...], facts: dict[str, Any]) -> E:
    error = kind.__new__(kind, *args)
    error.args = args  # a TimeoutError is an OSError, which sets them in its __init__
    error.__dict__.update(facts)
    return error


class ConfigurationError(NanoBananaError, ValueError):
    """A setting is wrong: a key is missing, a URL is unsafe, a number is out of range."""


class _GatewayFacts(TypedDict, total=False):
    status: int | None
    code: str | None
    request_id: str | None
    retry_after_s: float | None
    key: str | None
    safe_to_repeat: bool


class GatewayError(NanoBananaError):
    """The gateway answered with an error, or the error was found here before anything was sent (`status` is None)."""

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
        self.status = status  # the HTTP status
        self.code = code  # the gateway's own code
        self.request_id = request_id  # what its support asks for
        self.retry_after_s = retry_after_s  # the wait that it asked for, in seconds

    def __str__(self) -> str:
        facts = [str(self.status)] if self.status is not None else []
        if self.code is not None and self.code != str(self.status):
            facts.append(f"code {self.code}")
        facts += [] if self.request_id is None else [f"request {self.request_id}"]
        sentence = f"{self.message} [{', '.join(facts)}]" if facts else self.message
        return f"{sentence} ({self.advice})" if self.advice else sentence


class InvalidRequest(GatewayError, ValueError):
    """400: the request is invalid. Rules that the reference states are checked locally, before sending."""

    advice = "change the request"


class AuthenticationError(GatewayError):
    """401: the key is missing, wrong or expired."""

    advice = "check the API key; `nanobanana doctor` tries it"


class InsufficientCredits(GatewayError):
    """402: the account has too few credits; the job was not bought."""

    advice = "top up, then repeat"


class AccessDenied(GatewayError):
    """403: the account has no access to this API, or the host is not the gateway."""

    advice = "ask the gateway for API access, and check base_url"


class TaskNotFound(GatewayError):
    """404: the gateway has no such task, or no such endpoint."""

    advice = "check the task id, the account it belongs to, and base_url"


class IdempotencyConflict(GatewayError):
    """409: the key was already used, for another request or for a purchase that this ledger does not know."""

    advice = "another key is another purchase"


class RateLimited(GatewayError):
    """429: too many requests, or too many jobs at once; nothing was bought.

    `kind` is "jobs" or "rate" if stated; `used_up_for_s`: how long a budget of a day is used up (infinite: not stated).
    """

    advice = "wait, then repeat"
    used_up_for_s: float | None = None  # of a budget of a day; infinite: not stated

    def __init__(self, message: str, *, kind: LimitKind | None = None, **facts: Unpack[_GatewayFacts]) -> None:
        super().__init__(message, **facts)
        self.kind: LimitKind | None = kind  # None: not stated


class PromptBlocked(GatewayError):
    """451: content moderation refused the prompt."""

    advice = "change the prompt"


class GatewayUnavailable(GatewayError):
    """500, 502, 503, 504: the gateway, or a service behind it, has an error."""

    advice = "wait, then check the state of the job before you buy it again"


class TransportError(NanoBananaError):
    """No usable answer arrived. `possibly_sent` is False if certainly nothing reached the gateway.

    `lasting` means that only another setting helps: an unknown name, an untrusted certificate, a proxy that refuses.
    """

    def __init__(
        self,
        message: str,
        *,
        possibly_sent: bool,
        lasting: bool = False,
        advice: str = "",
        key: str | None = None,
        safe_to_repeat: bool | None = None,
    ) -> None:
        safe = not possibly_sent if safe_to_repeat is None else safe_to_repeat
        super().__init__(message, key=key, safe_to_repeat=safe)
        self.possibly_sent, self.lasting, self.advice = possibly_sent, lasting, advice


class UnexpectedResponse(NanoBananaError):
    """The answer does not match the gateway's reference; `body` is a short, redacted excerpt of it."""

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
        self.status = status  # the HTTP status
        self.body = body  # a short, redacted excerpt
        self.retry_after_s = retry_after_s  # the wait that the answer asked for, in seconds

    def __str__(self) -> str:
        status = f" [{self.status}]" if self.status is not None else ""
        return f"{self.message}{status}: {self.body}" if self.body else f"{self.message}{status}"


class JobError(NanoBananaError):
    """A job did not succeed; `job` is its live handle, which can be awaited again."""

    def __init__(self, message: str, *, job: JobHandle, safe_to_repeat: bool) -> None:
        super().__init__(message, key=job.key, safe_to_repeat=safe_to_repeat)
        self.job = job  # the live handle, which can be awaited again


class JobFailed(JobError):
    """The gateway reports that the task failed, or it ended without an image. Generating it again is a new purchase.

    `kind` is derived from the gateway's code and words: "moderation", "capacity", "input" or "unknown".
    """

    def __init__(self, message: str, *, job: JobHandle, safe_to_repeat: bool, kind: JobFailureKind = "unknown") -> None:
        super().__init__(message, job=job, safe_to_repeat=safe_to_repeat)
        self.kind: JobFailureKind = kind  # "moderation", "capacity", "input" or "unknown"


class JobUncertain(JobError):
    """The create was sent and no answer shows whether it was accepted: money may be spent."""

    advice = "`reconcile` may find it later; or check the gateway's own list, then resolve it; it is not bought again"


class JobWithdrawn(JobError):
    """The job was withdrawn before anything was sent."""


class JobUnfinished(JobError, TimeoutError):
    """The wait ended before the job did. The message says whether the job continues and what to do next."""


class SessionClosed(NanoBananaError):
    """The session was closed meanwhile; bought jobs stay in the ledger."""

    advice = "open a new session; with the same ledger it finds the jobs"


class BatchStopped(NanoBananaError):
    """The batch stopped buying: `cause` is the reason; `done` rows ended, `unbought` rows were read and not bought."""

    def __init__(self, message: str, *, cause: NanoBananaError, done: int, unbought: int) -> None:
        super().__init__(message)
        self.cause = cause  # why it stopped
        self.done = done  # rows that ended
        self.unbought = unbought  # rows that were read and not bought


class CreditLimitReached(NanoBananaError):
    """The next job would pass `max_credits`, or the `Budget` with the name `budget`, which has `left` credits left."""

    budget: str | None = None  # the name of the budget; None: a `max_credits`
    left: Decimal | None = None  # what the budget has left, in credits; None if it refused another session


class LedgerError(NanoBananaError):
    """The ledger can't be opened or written; `task_id` is set if the gateway had just returned one."""

    def __init__(
        self, message: str, *, task_id: str | None = None, key: str | None = None, safe_to_repeat: bool = True
    ) -> None:
        super().__init__(message, key=key, safe_to_repeat=safe_to_repeat)
        self.task_id = task_id  # of a create that the gateway had just accepted


class DownloadError(NanoBananaError):
    """An image could not be downloaded, or is not a valid image."""

    def __init__(
        self,
        message: str,
        *,
        link_expired: bool = False,
        status: int | None = None,
        key: str | None = None,
        safe_to_repeat: bool = True,
    ) -> None:
        super().__init__(message, key=key, safe_to_repeat=safe_to_repeat)
        self.link_expired = link_expired  # the link no longer works; the gateway may have a new one
        self.status = status  # the HTTP status of an answer that holds no image


class SaveError(NanoBananaError):
    """A folder or store can't be written (`one_image`: not for this image). Bought images can be saved later."""

    one_image = False  # True: the others may be fine
