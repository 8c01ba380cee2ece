"""Every error code of both references as the answer to a create, over a real socket."""

from typing import Any

import pytest
from attrs import evolve

from nanobanana_async import (
    AccessDenied,
    AuthenticationError,
    GatewayError,
    GatewayUnavailable,
    GenerationResult,
    IdempotencyConflict,
    InsufficientCredits,
    InvalidRequest,
    JobState,
    JobUncertain,
    JobUnfinished,
    PromptBlocked,
    RateLimited,
    TaskNotFound,
)
from nanobanana_async.emulator import UNAPPROVED_KEY, Emulator, EmulatorOptions, Fault, faults
from tests.support.loopback import (
    BOTH,
    CREATE,
    TWO_ATTEMPTS,
    GatewayName,
    RecordingObserver,
    charged,
    emulated,
    gateway_of,
    outcome,
    quick,
)

# status, what is raised, and the words of the reference
FOR_GOOD: list[tuple[int, type[GatewayError], str, str]] = [
    (400, InvalidRequest, "invalid_request", "Invalid request parameters"),
    (401, AuthenticationError, "invalid_api_key", "API key required or invalid API key"),
    (402, InsufficientCredits, "insufficient_credits", "Insufficient credits"),
    (403, AccessDenied, "access_not_approved", "API access not approved"),
    (404, TaskNotFound, "task_not_found", "Task not found"),
    (451, PromptBlocked, "prompt_blocked", "Prompt blocked by content moderation"),
]
CONFLICT = (409, IdempotencyConflict, "idempotency_conflict", "Idempotency-Key conflict")
FOR_NOW: list[tuple[int, type[GatewayError], str, str]] = [
    (429, RateLimited, "rate_limit_exceeded", "Rate limit exceeded"),
    (500, GatewayUnavailable, "internal_error", "Internal server error"),
    (503, GatewayUnavailable, "upstream_unavailable", "Upstream provider is busy or temporarily unavailable"),
]
MANNERS = pytest.mark.parametrize("inside_200", [False, True], ids=["by status", "inside a 200"])


def said(status: int, code: str, message: str) -> Fault:
    """Return a refusal in these words, with a request id in the header for the gateway whose body has none."""
    return evolve(faults.error(status, code=code, message=message), headers={"X-Request-Id": "req-of-the-header"})


def facts(name: GatewayName, status: int, code: str, *, inside_200: bool) -> tuple[int, str, str]:
    """Return status, code and request id as the error must report them."""
    if name == "apimall":
        return 200 if inside_200 else status, code, "req_02" + "1".zfill(24)
    if inside_200:
        return 200, str(status), "req-of-the-header"
    return status, "1", "req-of-the-header"


@MANNERS
@pytest.mark.parametrize(
    ("name", "status", "kind", "code", "message"),
    [("apimall", *CONFLICT), *((name, *words) for name in BOTH for words in FOR_GOOD)],
)
async def test_final_refusal_raises_its_own_exception(
    name: GatewayName, status: int, kind: type[GatewayError], code: str, message: str, inside_200: bool
) -> None:
    async with emulated(refusals_in_200=inside_200) as emulator:
        emulator.queue_faults(CREATE[name], said(status, code, message))
        async with quick(emulator, name) as session:
            with pytest.raises(kind) as caught:
                await session.generate("a fox", idempotency_key="fox-1")
            stats = session.stats()
        assert emulator.stats().creates_received == 1
        assert charged(emulator.stats(), 0)
    error = caught.value
    assert type(error) is kind
    assert message in error.message
    assert message in str(error)
    expected = facts(name, status, code, inside_200=inside_200)
    assert (error.status, error.code, error.request_id) == expected
    conflict = kind is IdempotencyConflict  # another process may have bought with the key
    assert (error.key, error.safe_to_repeat) == ("fox-1", not conflict)
    assert (stats.uncertain if conflict else stats.refused, stats.slots_held) == (1, 0)


@pytest.mark.parametrize("name", BOTH)
async def test_each_waiter_gets_the_refusal(name: GatewayName) -> None:
    async with emulated() as emulator:
        emulator.queue_faults(CREATE[name], said(451, "prompt_blocked", "Prompt blocked"))
        async with quick(emulator, name) as session:
            job = await session.submit("a fox")
            for wait in (job.wait_for_task_id, job.result, job.wait_for_task_id):
                with pytest.raises(PromptBlocked, match="Prompt blocked"):
                    await wait()
            assert job.state is JobState.REFUSED
            assert await job.cancel() is False
        assert emulator.stats().creates_received == 1


@pytest.mark.parametrize("name", BOTH)
async def test_a_refused_job_can_be_bought_again_under_its_key(name: GatewayName) -> None:
    async with emulated() as emulator:
        emulator.queue_faults(CREATE[name], faults.error(402))
        async with quick(emulator, name) as session:
            with pytest.raises(InsufficientCredits):
                await session.generate("a fox", idempotency_key="fox-1")
            result = await session.generate("a fox", idempotency_key="fox-1")
        assert result.key == "fox-1"
        assert charged(emulator.stats(), 1)


# status, error, settings of the emulator, of the gateway, of the request: none of these is a fault, all are the
# gateway's own rules
RULES: list[tuple[type[GatewayError], str, EmulatorOptions, dict[str, Any], str]] = [
    (AuthenticationError, "API key", {}, {"api_key": "wrong"}, "a fox"),
    (AccessDenied, "not approved", {}, {"api_key": UNAPPROVED_KEY}, "a fox"),
    (AccessDenied, "non-gateway host", {"required_host": "gateway.apimall.ai"}, {}, "a fox"),
    (InsufficientCredits, "credits", {"credits": "0.1"}, {}, "a fox"),
    (PromptBlocked, "moderation", {}, {}, "a [blocked] fox"),
]


@MANNERS
@pytest.mark.parametrize(("kind", "words", "world", "gateway", "prompt"), RULES)
async def test_apimall_rules_raise_their_exceptions(
    kind: type[GatewayError], words: str, world: EmulatorOptions, gateway: dict[str, Any], prompt: str, inside_200: bool
) -> None:
    options: EmulatorOptions = {"refusals_in_200": inside_200}
    options.update(world)
    async with emulated(**options) as emulator:
        settings = gateway_of(emulator, "apimall", **gateway)
        async with quick(emulator, gateway=settings) as session:
            with pytest.raises(kind, match=words) as caught:
                await session.generate(prompt)
        if kind is AccessDenied:
            assert emulator.url in str(caught.value)
        assert caught.value.request_id is not None
        assert charged(emulator.stats(), 0)


async def test_invalid_aspect_ratio_is_the_gateways_400() -> None:
    async with emulated() as emulator, quick(emulator) as session:
        with pytest.raises(InvalidRequest, match="aspect_ratio must look like 16:9") as caught:
            await session.generate("a fox", aspect_ratio="1.91:1")
        assert (caught.value.status, caught.value.code) == (400, "invalid_request")


async def test_wrong_base_url_is_a_404_that_names_base_url() -> None:
    async with emulated() as emulator:
        gateway = emulator.apimall(base_url=f"{emulator.url}/api/v1/elsewhere")
        async with quick(emulator, gateway=gateway) as session:
            with pytest.raises(TaskNotFound, match="base_url") as caught:
                await session.generate("a fox")
    assert (caught.value.status, caught.value.safe_to_repeat) == (404, True)


async def test_key_used_by_another_process_is_a_conflict() -> None:
    async with emulated() as emulator:
        async with quick(emulator) as one:
            await one.generate("a fox", idempotency_key="shared")
        async with quick(emulator) as other:
            with pytest.raises(IdempotencyConflict, match="different request") as caught:
                await other.generate("an owl", idempotency_key="shared")
        assert (caught.value.status, caught.value.code) == (409, "idempotency_conflict")
        assert charged(emulator.stats(), 1)


@pytest.mark.slow
@MANNERS
@pytest.mark.parametrize(("status", "kind", "code", "message"), FOR_NOW)
async def test_apimall_recovers_from_a_temporary_refusal(
    status: int, kind: type[GatewayError], code: str, message: str, inside_200: bool
) -> None:
    listener = RecordingObserver()
    async with emulated(refusals_in_200=inside_200) as emulator:
        emulator.queue_faults("apimall.create", said(status, code, message))
        async with quick(emulator, observers=[listener]) as session:
            assert (await session.generate("a fox")).images
        assert charged(emulator.stats(), 1)
    error = listener.refusal()
    assert type(error) is kind
    assert message in error.message
    expected = facts("apimall", status, code, inside_200=inside_200)
    assert (error.status, error.code, error.request_id) == expected
    assert listener.states[-1] is JobState.SUCCEEDED


@pytest.mark.slow
@MANNERS
async def test_defapi_recovers_from_a_429(inside_200: bool) -> None:
    listener = RecordingObserver()
    async with emulated(refusals_in_200=inside_200) as emulator:
        emulator.queue_faults("defapi.create", faults.error(429))
        async with quick(emulator, "defapi", observers=[listener]) as session:
            assert (await session.generate("a fox")).images
        assert charged(emulator.stats(), 1)
    assert isinstance(listener.refusal(), RateLimited)
    assert JobState.UNCERTAIN not in listener.states


@MANNERS
@pytest.mark.parametrize("status", [500, 503])
async def test_apimall_outage_past_all_attempts_is_uncertain(status: int, inside_200: bool) -> None:
    listener = RecordingObserver()
    async with emulated(refusals_in_200=inside_200) as emulator:
        emulator.queue_faults("apimall.create", *[faults.error(status)] * 5)
        async with quick(emulator, retry=TWO_ATTEMPTS, observers=[listener]) as session:
            with pytest.raises(JobUncertain) as caught:
                await session.generate("a fox", idempotency_key="fox-1")
        assert emulator.stats().creates_received == 2
        assert charged(emulator.stats(), 0)
    error, seen = caught.value, listener.errors[-1]
    assert (error.key, error.safe_to_repeat, error.job.task_id) == ("fox-1", False, None)
    assert isinstance(seen, GatewayUnavailable)
    assert seen.request_id is not None
    assert seen.message in error.message


@MANNERS
@pytest.mark.parametrize("status", [500, 503])
async def test_defapi_server_error_is_uncertain_at_once(status: int, inside_200: bool) -> None:
    listener = RecordingObserver()
    async with emulated(refusals_in_200=inside_200) as emulator:
        emulator.queue_faults("defapi.create", said(status, "1", "Internal server error"))
        async with quick(emulator, "defapi", observers=[listener]) as session:
            with pytest.raises(JobUncertain, match="Internal server error"):
                await session.generate("a fox")
        assert emulator.stats().creates_received == 1
    error = listener.refusal()
    assert type(error) is GatewayUnavailable
    assert (error.status, error.code, error.request_id) == facts("defapi", status, "1", inside_200=inside_200)


@pytest.mark.parametrize("status", [500, 503])
async def test_defapi_server_error_is_retried_with_retry_unkeyed_5xx(status: int) -> None:
    retry = evolve(TWO_ATTEMPTS, retry_unkeyed_5xx=True)
    async with emulated() as emulator:
        emulator.queue_faults("defapi.create", faults.error(status))
        async with quick(emulator, "defapi", retry=retry) as session:
            assert (await session.generate("a fox")).images
            emulator.queue_faults("defapi.create", *[faults.error(status)] * 2)
            with pytest.raises(GatewayUnavailable) as caught:
                await session.generate("an owl")
        assert (caught.value.status, caught.value.safe_to_repeat) == (status, True)
        assert charged(emulator.stats(), 1)
        assert emulator.stats().creates_received == 4


@MANNERS
@pytest.mark.parametrize("name", BOTH)
async def test_timeout_while_waiting_for_a_slot_withdraws_the_job(name: GatewayName, inside_200: bool) -> None:
    listener = RecordingObserver()
    async with emulated(job_limit=0, refusals_in_200=inside_200) as emulator:
        async with quick(emulator, name, observers=[listener]) as session:
            with pytest.raises(JobUnfinished) as caught:
                await session.generate("a fox", timeout=0.3)
            assert caught.value.safe_to_repeat is True
            assert isinstance(listener.refusal(), RateLimited)
            assert session.stats().throttled == 1
            assert isinstance(await outcome(session, "an owl", timeout=0.05), JobUnfinished)
        assert charged(emulator.stats(), 0)
    assert listener.states[-1] is JobState.WITHDRAWN


@pytest.mark.slow
async def test_refusal_of_one_job_does_not_affect_others(nanobanana_emulator: Emulator) -> None:
    async with quick(nanobanana_emulator) as session:
        errors = [await outcome(session, prompt) for prompt in ("a [blocked] fox", "an owl")]
    assert [type(error) for error in errors] == [PromptBlocked, GenerationResult]
