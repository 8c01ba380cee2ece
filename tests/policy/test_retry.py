"""What a failed create or poll means, on both gateways, and the backoff."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanobanana_async.errors import (
    AccessDenied,
    AuthenticationError,
    ConfigurationError,
    GatewayError,
    GatewayUnavailable,
    IdempotencyConflict,
    InsufficientCredits,
    InvalidRequest,
    NanoBananaError,
    PromptBlocked,
    RateLimited,
    SessionClosed,
    TaskNotFound,
    TransportError,
    UnexpectedResponse,
)
from nanobanana_async.policy.retry import (
    LATE_REPLICA_S,
    Attempt,
    FailureKind,
    RetryAction,
    RetryPolicy,
    asked_wait_s,
    classify_failure,
    decide_failed_create,
    ends_polling,
    is_outage,
)
from tests.support.rows import each_row

REFUSE, REQUEUE, REPEAT, PARK, GIVE_UP = (
    RetryAction.REFUSE,
    RetryAction.REQUEUE,
    RetryAction.REPEAT,
    RetryAction.PARK,
    RetryAction.GIVE_UP,
)

REFUSALS: dict[str, NanoBananaError] = {
    "400": InvalidRequest("no", status=400),
    "401": AuthenticationError("no", status=401),
    "402": InsufficientCredits("no", status=402),
    "403": AccessDenied("no", status=403),
    "404": TaskNotFound("no", status=404),
    "451": PromptBlocked("no", status=451),
    "402 by its code inside a 200": InsufficientCredits("no", status=200, code="402"),
}
UNSENT: dict[str, NanoBananaError] = {
    "no connection": TransportError("refused", possibly_sent=False),
    "the session was never opened": SessionClosed("closed"),
}
WRONG_SETTING = ConfigurationError("the aiohttp session is closed")
GATEWAY_ERRORS: dict[str, NanoBananaError] = {
    "500": GatewayUnavailable("oops", status=500),
    "503": GatewayUnavailable("busy", status=503),
}
NO_ANSWER: dict[str, NanoBananaError] = {
    "lost answer": TransportError("reset", possibly_sent=True),
    "garbage": UnexpectedResponse("not JSON", status=200),
    "html from a proxy": UnexpectedResponse("not JSON", status=502),
    "502": GatewayUnavailable("bad gateway", status=502),
    "504": GatewayUnavailable("timeout", status=504),
    "unrecognised refusal in a 200": GatewayUnavailable("what?", status=200),
    "unlisted status": GatewayError("teapot", status=418),
}
LIMITED = RateLimited("slow down", status=429)
CONFLICT = IdempotencyConflict("taken", status=409)
EVERYTHING = [
    *REFUSALS.values(),
    *UNSENT.values(),
    WRONG_SETTING,
    *GATEWAY_ERRORS.values(),
    *NO_ANSWER.values(),
    LIMITED,
    CONFLICT,
]


def attempt(**facts: Any) -> Attempt:
    usual: dict[str, Any] = {
        "keyed": True,
        "sent_before": False,
        "in_doubt": False,
        "number": 1,
        "waited_s": 0.0,
        "key_age_s": 0.0,
        "key_lifetime_s": 1800.0,
    }
    return Attempt(**{**usual, **facts})


def decided(error: NanoBananaError, policy: RetryPolicy | None = None, **facts: Any) -> tuple[RetryAction, bool]:
    decision = decide_failed_create(error, attempt(**facts), policy or RetryPolicy())
    return decision.action, decision.in_doubt


@each_row("keyed", [True, False])
@each_row("name", REFUSALS)
def test_refusal_makes_the_job_refused_on_both_gateways(name: str, keyed: bool) -> None:
    assert decided(REFUSALS[name], keyed=keyed) == (REFUSE, False)
    assert decided(REFUSALS[name], keyed=keyed, sent_before=True, number=99) == (REFUSE, False)


@pytest.mark.parametrize("keyed", [True, False])
@pytest.mark.parametrize("name", UNSENT)
def test_unsent_create_is_repeated_on_both_gateways(name: str, keyed: bool) -> None:
    assert decided(UNSENT[name], keyed=keyed) == (REPEAT, False)


@pytest.mark.parametrize("keyed", [True, False])
def test_429_requeues_the_job_and_costs_no_attempt(keyed: bool) -> None:
    decision = decide_failed_create(LIMITED, attempt(keyed=keyed, number=99), RetryPolicy())
    assert (decision.action, decision.in_doubt, decision.costs_attempt) == (REQUEUE, False, False)
    assert decide_failed_create(UNSENT["no connection"], attempt(keyed=keyed), RetryPolicy()).costs_attempt


@each_row("name", [*GATEWAY_ERRORS, *NO_ANSWER])
def test_doubt_is_repeated_with_a_live_key_and_parked_without(name: str) -> None:
    error = {**GATEWAY_ERRORS, **NO_ANSWER}[name]
    assert decided(error) == (REPEAT, True)
    assert decided(error, keyed=False) == (PARK, True)


def test_409_means_in_progress_only_if_the_key_was_sent_before() -> None:
    assert decided(CONFLICT, sent_before=True) == (REPEAT, True)
    assert decided(CONFLICT, sent_before=False) == (PARK, True)  # it may have been bought, so not REFUSED
    assert classify_failure(CONFLICT, attempt(sent_before=True)) is FailureKind.IN_PROGRESS
    assert classify_failure(CONFLICT, attempt(sent_before=False)) is FailureKind.KEY_TAKEN


def test_409_without_an_envelope_parks_a_first_send_and_repeats_a_later_one() -> None:
    bare = UnexpectedResponse("not JSON", status=409)
    assert decided(bare, sent_before=False) == (PARK, True)
    assert classify_failure(bare, attempt(sent_before=False)) is FailureKind.KEY_TAKEN
    assert decided(bare, sent_before=True) == (REPEAT, True)
    assert decided(bare, keyed=False) == (PARK, True)


def test_409_without_keys_is_no_answer() -> None:
    assert decided(CONFLICT, keyed=False) == (PARK, True)


@pytest.mark.parametrize("name", GATEWAY_ERRORS)
def test_retry_unkeyed_5xx_repeats_gateway_errors_only(name: str) -> None:
    risky = RetryPolicy(retry_unkeyed_5xx=True)
    assert decided(GATEWAY_ERRORS[name], risky, keyed=False) == (REPEAT, False)
    assert decided(GATEWAY_ERRORS[name], risky, keyed=False, in_doubt=True) == (PARK, True)
    assert decided(GATEWAY_ERRORS[name], risky) == (REPEAT, True)


@each_row("name", NO_ANSWER)
def test_retry_unkeyed_5xx_does_not_repeat_lost_answers(name: str) -> None:
    assert decided(NO_ANSWER[name], RetryPolicy(retry_unkeyed_5xx=True), keyed=False) == (PARK, True)


@each_row("name", [*GATEWAY_ERRORS, *NO_ANSWER])
def test_retry_uncertain_repeats_until_max_attempts(name: str) -> None:
    error, risky = {**GATEWAY_ERRORS, **NO_ANSWER}[name], RetryPolicy(retry_uncertain=True)
    assert decided(error, risky, keyed=False) == (REPEAT, True)
    assert decided(error, risky, keyed=False, number=RetryPolicy().max_attempts) == (PARK, True)


@pytest.mark.parametrize("name", UNSENT)
def test_exhausted_retries_without_doubt_give_up(name: str) -> None:
    assert decided(UNSENT[name], number=RetryPolicy().max_attempts) == (GIVE_UP, False)
    assert decided(UNSENT[name], outage_s=900.0) == (GIVE_UP, False)


@pytest.mark.parametrize("name", UNSENT)
def test_time_without_an_outage_since_the_first_attempt_does_not_end_a_job_without_doubt(name: str) -> None:
    assert decided(UNSENT[name], waited_s=9000.0, outage_s=899.0) == (REPEAT, False)  # it may have waited for a slot
    assert decided(UNSENT[name], number=11, waited_s=899.9) == (REPEAT, False)


def test_key_lives_for_its_lifetime_from_the_first_send() -> None:
    lost = NO_ANSWER["lost answer"]
    assert decided(lost, key_age_s=1799.9) == (REPEAT, True)
    assert decided(lost, key_age_s=1800.0) == (PARK, True)
    assert decided(lost, key_age_s=-0.1) == (PARK, True)


def test_429_in_doubt_repeats_until_max_wait() -> None:
    assert decided(LIMITED, in_doubt=True, number=99) == (REPEAT, True)
    assert decided(LIMITED, in_doubt=True, waited_s=900.0) == (PARK, True)


errors = st.sampled_from(EVERYTHING)
attempts = st.builds(
    Attempt,
    keyed=st.booleans(),
    sent_before=st.booleans(),
    in_doubt=st.booleans(),
    number=st.integers(1, 40),
    waited_s=st.floats(0, 2000),
    outage_s=st.floats(0, 2000),
    key_age_s=st.floats(-100, 4000),
    key_lifetime_s=st.floats(0, 3600),
)
policies = st.builds(
    RetryPolicy,
    max_attempts=st.integers(1, 30),
    max_wait_s=st.floats(0.1, 2000),
    retry_uncertain=st.booleans(),
    retry_unkeyed_5xx=st.booleans(),
)


@given(errors, attempts, policies)
def test_doubt_is_sticky(error: NanoBananaError, known: Attempt, policy: RetryPolicy) -> None:
    decision = decide_failed_create(error, known, policy)
    if known.in_doubt:
        assert decision.in_doubt
    if decision.in_doubt:
        assert decision.action in (REPEAT, PARK)
    else:
        assert decision.action is not PARK


@given(errors, attempts, policies)
def test_doubt_without_a_live_key_is_parked_by_default(
    error: NanoBananaError, known: Attempt, policy: RetryPolicy
) -> None:
    decision = decide_failed_create(error, known, policy)
    if decision.in_doubt and not known.is_key_alive and not (policy.retry_uncertain and not known.keyed):
        assert decision.action is PARK


@given(errors, attempts, policies)
def test_max_wait_and_max_attempts_end_the_repeats(error: NanoBananaError, known: Attempt, policy: RetryPolicy) -> None:
    decision = decide_failed_create(error, known, policy)
    if (known.waited_s if decision.in_doubt else known.outage_s) >= policy.max_wait_s:
        assert decision.action is not REPEAT
    if decision.action is REPEAT and decision.costs_attempt:
        assert known.number < policy.max_attempts


@pytest.mark.parametrize("keyed", [True, False])
def test_configuration_error_is_not_retried(keyed: bool) -> None:
    assert decided(WRONG_SETTING, keyed=keyed) == (GIVE_UP, False)
    assert decided(WRONG_SETTING, keyed=True, in_doubt=True) == (REPEAT, True)  # the key may still show what was bought


@pytest.mark.parametrize("kind", [AuthenticationError, AccessDenied, ConfigurationError])
def test_bad_key_or_setting_ends_polling_at_once(kind: type[NanoBananaError]) -> None:
    assert ends_polling(kind("no"), 0.0, 1800.0)


def test_404_ends_polling_only_after_the_replica_delay() -> None:
    assert not ends_polling(TaskNotFound("no"), LATE_REPLICA_S - 0.1, 1800.0)
    assert ends_polling(TaskNotFound("no"), LATE_REPLICA_S, 1800.0)


@each_row("error", [*NO_ANSWER.values(), *GATEWAY_ERRORS.values(), *UNSENT.values(), LIMITED])
def test_other_errors_end_polling_after_job_s(error: NanoBananaError) -> None:
    assert not ends_polling(error, 1799.9, 1800.0)
    assert ends_polling(error, 1800.0, 1800.0)


def test_wait_that_the_gateway_asks_for_is_bounded() -> None:
    waits = [RateLimited("no", retry_after_s=after_s) for after_s in (None, 7.0, 9_999.0)]
    assert [asked_wait_s(error) for error in [*waits, TransportError("lost", possibly_sent=True)]] == [0, 7, 120, 0]


def test_outages_are_errors_of_the_gateway_or_network() -> None:
    assert all(is_outage(error) for error in GATEWAY_ERRORS.values())
    assert is_outage(NO_ANSWER["lost answer"])
    assert is_outage(NO_ANSWER["garbage"])
    assert is_outage(UNSENT["no connection"])
    assert not any(is_outage(error) for error in [*REFUSALS.values(), LIMITED, CONFLICT])


@given(st.integers(1, 10_000), st.floats(0, 1))
def test_backoff_stays_in_the_upper_half_of_a_doubling_ceiling(number: int, jitter: float) -> None:
    policy = RetryPolicy(first_backoff_s=0.5, max_backoff_s=30.0)
    ceiling = 30.0 if number > 6 else 0.5 * 2 ** (number - 1)
    assert ceiling / 2 <= policy.backoff_s(number, jitter) <= ceiling
