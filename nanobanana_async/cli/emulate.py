"""`nanobanana emulate`: both gateways on this machine, with the behaviour that its options select."""

from collections.abc import Mapping
from typing import Annotated, Any

from cyclopts import Parameter

from nanobanana_async.cli.listening import check_port, is_listen_error, listen_error
from nanobanana_async.cli.options import Credits, Flag, Seconds
from nanobanana_async.cli.signals import run_until_signal
from nanobanana_async.emulator import ACCOUNTS, EmulatorOptions, LogNormal, serve
from nanobanana_async.emulator.faults import RandomFault, reset
from nanobanana_async.emulator.rates import RateWindow
from nanobanana_async.emulator.settings import AccountName, Idempotency, Progress, RetryAfter
from nanobanana_async.errors import ConfigurationError
from nanobanana_async.validators import as_count, as_number

OK = 0


def emulate(
    *,
    port: Annotated[int, Parameter(env_var="NANOBANANA_EMULATOR_PORT")] = 8080,
    host: Annotated[str, Parameter(env_var="NANOBANANA_EMULATOR_HOST")] = "127.0.0.1",
    account: AccountName | None = None,
    job_limit: int | None = None,
    creates_per_minute: float | None = None,
    requests_per_minute: float | None = None,
    requests_per_day: float | None = None,
    rate_window: RateWindow = "bucket",
    retry_after: RetryAfter = "absent",
    credits: Credits = None,  # noqa: A002 - the option's name
    job_seconds: Seconds = 8.0,
    speed: float = 1.0,
    failure_probability: float = 0.0,
    lose_answers: float = 0.0,
    idempotency: Idempotency = "replay",
    history_delay: Seconds = 0.0,
    progress: Progress = "absent",
    extra_fields: Flag = False,
    check_references: Flag = False,
    data_uris: Flag = False,
    drop_callbacks: float = 0.0,
    seed: int = 0,
) -> int:
    """Emulate both gateways on this machine until Ctrl-C. The emulator accepts any prompt and the API key it prints.

    Of API Mall it has creates, queries, the history of tasks, the balance, uploads (inline, by pre-signed URL, by URL)
    and webhooks; of defapi creates, queries, the balance and callbacks. Webhooks and callbacks reach this machine only.

    Examples:

    nanobanana emulate --account small

    nanobanana emulate --host 0.0.0.0 --port 8080 --job-seconds 2

    nanobanana emulate --lose-answers 0.3 --progress number

    Parameters
    ----------
    port
        The port; 0 selects a free one.
    host
        The address to listen on. 127.0.0.1 is reached from this machine only, 0.0.0.0 by every machine and container
        that reaches this one; a client there needs NANOBANANA_ALLOW_HTTP=1.
    account
        The limits of an account as they are sold: small is 5 jobs at once, 60 requests a minute and 10,000 a day.
        Other options change them.
    job_limit
        The most jobs that run at once; more are refused with 429. Default: no limit.
    creates_per_minute
        The most creates per minute; more are refused with 429. Default: no limit.
    requests_per_minute
        The most requests of all kinds per minute, counted together. Default: no limit.
    requests_per_day
        The most requests of all kinds per day. Default: no limit.
    rate_window
        How requests are counted: by a token bucket, in windows by the clock, or in a sliding window.
    retry_after
        What a 429 states in Retry-After: nothing, seconds, or a date.
    credits
        Credits of the account. Default: unlimited.
    job_seconds
        Median duration of a job.
    speed
        Emulated seconds per second.
    failure_probability
        Probability that a job fails, from 0 to 1.
    lose_answers
        Probability that the answer to a create is lost though the job was bought, from 0 to 1.
    idempotency
        API Mall's answer to a repeated create: the first answer; 409 while the job runs; always 409; or a second
        purchase once the key is forgotten, after a minute.
    history_delay
        Seconds until a task is in API Mall's history.
    progress
        How a running job states its progress: not at all, as a number, or as text such as "45%".
    extra_fields
        Take the fields of other models too, such as seed and quality, which the references of the gateways lack.
    check_references
        Refuse a create with 400 if its reference image names an upload that is not there.
    data_uris
        defapi: return images as data URIs in place of links.
    drop_callbacks
        Probability that a callback, or a delivery of a webhook, is never sent, from 0 to 1.
    seed
        The same seed gives the same durations, failures and images.
    """
    check_port(port)
    limits = {
        "job_limit": None if job_limit is None else as_count("job_limit", job_limit),
        "creates_per_minute": creates_per_minute,
        "requests_per_minute": requests_per_minute,
        "requests_per_day": requests_per_day,
    }
    try:
        options: EmulatorOptions = {
            "credits": credits,
            "duration": LogNormal(median_s=as_number("job_seconds", job_seconds, above=0)),
            "speed": speed,
            "failure_probability": failure_probability,
            "seed": seed,
            "rate_window": rate_window,
            "retry_after": retry_after,
            "random_faults": _lost_answers(lose_answers),
            "idempotency": idempotency,
            "history_delay_s": as_number("history_delay", history_delay),
            "progress": progress,
            "extra_fields": extra_fields,
            "check_references": check_references,
            "data_uris": data_uris,
            "callback_drop_probability": as_number("drop_callbacks", drop_callbacks, most=1),
        }
        return run_until_signal(_serve(port, host, {**options, **_limits(account, limits)}))
    except ValueError as error:  # a setting out of range
        raise ConfigurationError(str(error)) from None


def _limits(account: AccountName | None, limits: Mapping[str, float | None]) -> dict[str, Any]:
    sold = {} if account is None else ACCOUNTS[account]
    return {**sold, **{name: limit for name, limit in limits.items() if limit is not None}}


def _lost_answers(probability: float) -> list[RandomFault]:
    """Return the faults that reset the connection once a create was processed."""
    as_number("lose_answers", probability, most=1)
    lost = reset(processed=True)
    return [RandomFault(probability, lost, endpoint) for endpoint in ("apimall.create", "defapi.create")]


async def _serve(port: int, host: str, options: Mapping[str, Any]) -> int:
    try:
        await serve(port, host=host, **options)
    except OSError as error:
        if not is_listen_error(error):
            raise
        raise listen_error(host, port, error) from None
    return OK
