"""What a failed create or query means: the tables of both gateways, the gate, the budget, the backoff."""

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
    classify_failure,
    decide_create,
    ends_polling,
    is_outage,
)

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
    "the door was never opened": SessionClosed("closed"),
}
NOT_LET_OUT = ConfigurationError("the aiohttp session you lent is closed")
STATED_TROUBLE: dict[str, NanoBananaError] = {
    "500": GatewayUnavailable("oops", status=500),
    "503": GatewayUnavailable("busy", status=503),
}
NOTHING_USABLE: dict[str, NanoBananaError] = {
    "lost answer": TransportError("reset", possibly_sent=True),
    "garbage": UnexpectedResponse("not JSON", status=200),
    "html from a proxy": UnexpectedResponse("not JSON", status=502),
    "502": GatewayUnavailable("bad gateway", status=502),
    "504": GatewayUnavailable("timeout", status=504),
    "a no in a 200 that nobody understands": GatewayUnavailable("what?", status=200),
    "a status of no reference": GatewayError("teapot", status=418),
}
LIMITED = RateLimited("slow down", status=429)
CONFLICT = IdempotencyConflict("taken", status=409)
EVERYTHING = [
    *REFUSALS.values(),
    *UNSENT.values(),
    NOT_LET_OUT,
    *STATED_TROUBLE.values(),
    *NOTHING_USABLE.values(),
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
    verdict = decide_create(error, attempt(**facts), policy or RetryPolicy())
    return verdict.action, verdict.in_doubt


@pytest.mark.parametrize("keyed", [True, False])
@pytest.mark.parametrize("name", REFUSALS)
def test_a_plain_no_refuses_the_job_on_both_gateways(name: str, keyed: bool) -> None:
    assert decided(REFUSALS[name], keyed=keyed) == (REFUSE, False)
    assert decided(REFUSALS[name], keyed=keyed, sent_before=True, number=99) == (REFUSE, False)


@pytest.mark.parametrize("keyed", [True, False])
@pytest.mark.parametrize("name", UNSENT)
def test_what_was_surely_not_sent_is_sent_again_on_both_gateways(name: str, keyed: bool) -> None:
    assert decided(UNSENT[name], keyed=keyed) == (REPEAT, False)


@pytest.mark.parametrize("keyed", [True, False])
def test_a_429_sends_the_job_back_to_wait_and_costs_no_attempt(keyed: bool) -> None:
    verdict = decide_create(LIMITED, attempt(keyed=keyed, number=99), RetryPolicy())
    assert (verdict.action, verdict.in_doubt, verdict.costs_attempt) == (REQUEUE, False, False)
    assert decide_create(UNSENT["no connection"], attempt(keyed=keyed), RetryPolicy()).costs_attempt


@pytest.mark.parametrize("name", [*STATED_TROUBLE, *NOTHING_USABLE])
def test_doubt_is_repeated_under_a_living_key_and_parked_without_one(name: str) -> None:
    error = {**STATED_TROUBLE, **NOTHING_USABLE}[name]
    assert decided(error) == (REPEAT, True)
    assert decided(error, keyed=False) == (PARK, True)


def test_a_409_means_still_in_work_if_we_sent_the_key_before_and_a_conflict_if_not() -> None:
    assert decided(CONFLICT, sent_before=True) == (REPEAT, True)
    assert decided(CONFLICT, sent_before=False) == (PARK, True)  # it may have been bought: never REFUSED
    assert classify_failure(CONFLICT, attempt(sent_before=True)) is FailureKind.IN_PROGRESS
    assert classify_failure(CONFLICT, attempt(sent_before=False)) is FailureKind.KEY_TAKEN


def test_a_409_of_a_gateway_without_keys_says_nothing_usable() -> None:
    assert decided(CONFLICT, keyed=False) == (PARK, True)


@pytest.mark.parametrize("name", STATED_TROUBLE)
def test_only_stated_trouble_is_sent_again_by_retry_unkeyed_5xx(name: str) -> None:
    bold = RetryPolicy(retry_unkeyed_5xx=True)
    assert decided(STATED_TROUBLE[name], bold, keyed=False) == (REPEAT, False)
    assert decided(STATED_TROUBLE[name], bold, keyed=False, in_doubt=True) == (PARK, True)
    assert decided(STATED_TROUBLE[name], bold) == (REPEAT, True)


@pytest.mark.parametrize("name", NOTHING_USABLE)
def test_a_lost_answer_is_not_sent_again_by_retry_unkeyed_5xx(name: str) -> None:
    assert decided(NOTHING_USABLE[name], RetryPolicy(retry_unkeyed_5xx=True), keyed=False) == (PARK, True)


@pytest.mark.parametrize("name", [*STATED_TROUBLE, *NOTHING_USABLE])
def test_retry_uncertain_sends_again_until_attempts_run_out(name: str) -> None:
    error, bold = {**STATED_TROUBLE, **NOTHING_USABLE}[name], RetryPolicy(retry_uncertain=True)
    assert decided(error, bold, keyed=False) == (REPEAT, True)
    assert decided(error, bold, keyed=False, number=RetryPolicy().max_attempts) == (PARK, True)


@pytest.mark.parametrize("name", UNSENT)
def test_without_doubt_the_end_of_patience_is_the_exception_and_not_uncertainty(name: str) -> None:
    assert decided(UNSENT[name], number=RetryPolicy().max_attempts) == (GIVE_UP, False)
    assert decided(UNSENT[name], waited_s=900.0) == (GIVE_UP, False)
    assert decided(UNSENT[name], number=11, waited_s=899.9) == (REPEAT, False)


def test_a_key_lives_from_its_first_send_for_its_lifetime_and_not_before() -> None:
    lost = NOTHING_USABLE["lost answer"]
    assert decided(lost, key_age_s=1799.9) == (REPEAT, True)
    assert decided(lost, key_age_s=1800.0) == (PARK, True)
    assert decided(lost, key_age_s=-0.1) == (PARK, True)


def test_a_429_in_doubt_waits_on_whatever_the_number_of_attempts_but_not_for_ever() -> None:
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
def test_doubt_is_sticky_it_is_repeated_or_parked_and_never_forgotten(
    error: NanoBananaError, known: Attempt, policy: RetryPolicy
) -> None:
    verdict = decide_create(error, known, policy)
    if known.in_doubt:
        assert verdict.in_doubt
    if verdict.in_doubt:
        assert verdict.action in (REPEAT, PARK)
    else:
        assert verdict.action is not PARK


@given(errors, attempts, policies)
def test_doubt_without_a_living_key_is_parked_unless_the_user_chose_the_risk(
    error: NanoBananaError, known: Attempt, policy: RetryPolicy
) -> None:
    verdict = decide_create(error, known, policy)
    if verdict.in_doubt and not known.key_lives and not (policy.retry_uncertain and not known.keyed):
        assert verdict.action is PARK


@given(errors, attempts, policies)
def test_no_purchase_is_tried_longer_than_max_wait_s_except_in_the_queue_for_a_slot(
    error: NanoBananaError, known: Attempt, policy: RetryPolicy
) -> None:
    verdict = decide_create(error, known, policy)
    if known.waited_s >= policy.max_wait_s:
        assert verdict.action is not REPEAT
    if verdict.action is REPEAT and verdict.costs_attempt:
        assert known.number < policy.max_attempts


@pytest.mark.parametrize("keyed", [True, False])
def test_a_setting_that_must_be_put_right_is_not_waited_for(keyed: bool) -> None:
    assert decided(NOT_LET_OUT, keyed=keyed) == (GIVE_UP, False)
    assert decided(NOT_LET_OUT, keyed=True, in_doubt=True) == (REPEAT, True)  # its key may still tell what was bought


@pytest.mark.parametrize("kind", [AuthenticationError, AccessDenied, ConfigurationError])
def test_a_bad_key_or_setting_ends_the_following_at_once(kind: type[NanoBananaError]) -> None:
    assert ends_polling(kind("no"), 0.0, 1800.0)


def test_a_404_ends_the_following_only_when_no_replica_can_lag_that_long() -> None:
    assert not ends_polling(TaskNotFound("no"), LATE_REPLICA_S - 0.1, 1800.0)
    assert ends_polling(TaskNotFound("no"), LATE_REPLICA_S, 1800.0)


@pytest.mark.parametrize("error", [*NOTHING_USABLE.values(), *STATED_TROUBLE.values(), *UNSENT.values(), LIMITED])
def test_trouble_ends_the_following_only_after_job_s(error: NanoBananaError) -> None:
    assert not ends_polling(error, 1799.9, 1800.0)
    assert ends_polling(error, 1800.0, 1800.0)


def test_an_outage_is_what_speaks_of_the_gateway_or_the_way_to_it() -> None:
    assert all(is_outage(error) for error in STATED_TROUBLE.values())
    assert is_outage(NOTHING_USABLE["lost answer"])
    assert is_outage(NOTHING_USABLE["garbage"])
    assert is_outage(UNSENT["no connection"])
    assert not any(is_outage(error) for error in [*REFUSALS.values(), LIMITED, CONFLICT])


@given(st.integers(1, 10_000), st.floats(0, 1))
def test_backoff_stays_in_the_upper_half_of_a_ceiling_that_doubles(number: int, jitter: float) -> None:
    policy = RetryPolicy(first_backoff_s=0.5, max_backoff_s=30.0)
    ceiling = 30.0 if number > 6 else 0.5 * 2 ** (number - 1)
    assert ceiling / 2 <= policy.backoff_s(number, jitter) <= ceiling
