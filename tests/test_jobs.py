"""The record of a job: transitions, keys, cost, and whether money may be spent."""

from decimal import Decimal
from itertools import product
from typing import Any
from uuid import UUID

import pytest
from attrs.exceptions import FrozenInstanceError
from hypothesis import given
from hypothesis import strategies as st

from nanobanana_async.accounts import account_fingerprint
from nanobanana_async.errors import InvalidRequest, JobFailureKind
from nanobanana_async.failures import Failure
from nanobanana_async.jobs import TERMINAL_STATES, TRANSITIONS, JobState, Observation, has_failed_with
from nanobanana_async.keys import batch_key_prefix, validate_key
from nanobanana_async.models import ImageRequest
from nanobanana_async.values import validate_row_key
from tests.support.records import NOON, record
from tests.support.rows import each_row

PENDING, SUBMITTING, RUNNING, SUCCEEDED, FAILED, REFUSED, UNCERTAIN, WITHDRAWN = JobState

TRANSITION_PAIRS = {
    (PENDING, SUBMITTING),
    (PENDING, WITHDRAWN),
    (SUBMITTING, SUBMITTING),
    (SUBMITTING, RUNNING),
    (SUBMITTING, PENDING),
    (SUBMITTING, REFUSED),
    (SUBMITTING, UNCERTAIN),
    (RUNNING, SUCCEEDED),
    (RUNNING, FAILED),
    (RUNNING, RUNNING),
    (RUNNING, REFUSED),
    (UNCERTAIN, RUNNING),
    (UNCERTAIN, PENDING),
    (UNCERTAIN, REFUSED),
    (UNCERTAIN, UNCERTAIN),
}


def test_transitions_name_every_state() -> None:
    assert set(TRANSITIONS) == set(JobState)
    assert {SUCCEEDED, FAILED, REFUSED, WITHDRAWN} == TERMINAL_STATES


@each_row(("before", "after"), list(product(JobState, JobState)))
def test_only_listed_transitions_are_allowed(before: JobState, after: JobState) -> None:
    job = record(state=before, revision=4)
    if (before, after) in TRANSITION_PAIRS:
        moved = job.transition_to(after, task_id="t-1")
        assert (moved.state, moved.revision, moved.task_id) == (after, 5, "t-1")
        assert (job.state, job.revision, job.task_id) == (before, 4, None)
    else:
        with pytest.raises(RuntimeError, match=f"{before.name} -> {after.name}"):
            job.transition_to(after)


def test_record_is_immutable() -> None:
    with pytest.raises(FrozenInstanceError):
        record().state = RUNNING  # type: ignore[misc]
    assert "body" not in repr(record())


def test_next_generation_has_a_new_wire_key() -> None:
    old = record(
        state=FAILED,
        revision=9,
        attempts=3,
        first_sent_at=NOON,
        task_id="t-1",
        credits_used=Decimal(8),
        failure=Failure(kind="JobFailed", message="m"),
    )
    new = old.next_generation(body=b"{1}", created_at=NOON)
    assert new == record(revision=10, generation=2, body=b"{1}")
    assert (old.wire_key, new.key) == ("order-1", "order-1")
    assert new.wire_key.startswith("g2-")
    newer = ImageRequest("a newer request")
    assert old.next_generation(body=b"", created_at=NOON, request=newer).request == newer
    third = new.next_generation(body=b"{}", created_at=NOON)
    assert len({old.wire_key, new.wire_key, third.wire_key}) == 3


@given(st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=255), st.integers(1, 10**6))
def test_every_wire_key_is_a_valid_header_value(key: str, generation: int) -> None:
    assert validate_key(key) == key
    wire_key = record(key=key, generation=generation).wire_key
    assert validate_key(wire_key) == wire_key


@each_row("key", ["", "x" * 256, "a b", "a\n", "ä", "\x7f", None, 5.5, True, b"k"])
def test_key_invalid_in_a_header_is_refused(key: Any) -> None:
    with pytest.raises(InvalidRequest, match="idempotency_key"):
        validate_key(key)


@pytest.mark.parametrize(
    ("key", "text"), [(5, "5"), (17.0, "17"), (UUID(int=1), "00000000-0000-0000-0000-000000000001"), ("5.0", "5.0")]
)
def test_number_and_uuid_are_keys_as_text(key: Any, text: str) -> None:
    assert (validate_key(key), validate_row_key(key)) == (text, text)


def test_row_key_may_be_any_printable_text() -> None:
    assert validate_row_key("Frühling 1") == "Frühling 1"
    for key in ("", " ", "a\nb", "x" * 256, None, b"k"):
        with pytest.raises(InvalidRequest, match="key must be printable text"):
            validate_row_key(key)


@pytest.mark.parametrize(
    ("used", "refunded", "expected"),
    [
        (None, None, None),
        (None, Decimal(1), None),
        (Decimal(8), None, Decimal(8)),
        (Decimal(8), Decimal(8), Decimal(0)),
    ],
)
def test_credits_are_after_refunds(used: Decimal | None, refunded: Decimal | None, expected: Decimal | None) -> None:
    assert record(credits_used=used, credits_refunded=refunded).credits == expected


@each_row("state", list(JobState))
def test_possibly_bought_from_the_first_send_to_a_refusal(state: JobState) -> None:
    assert record(state=state).possibly_bought is (state in {SUBMITTING, RUNNING, SUCCEEDED, UNCERTAIN})
    assert record(state=state, in_doubt=True).possibly_bought


def test_fingerprint_identifies_the_account_without_the_key() -> None:
    mark = account_fingerprint("apimall", "sk-secret")
    assert mark == account_fingerprint("apimall", "sk-secret")
    assert len({mark, account_fingerprint("defapi", "sk-secret"), account_fingerprint("apimall", "sk-other")}) == 3
    assert "secret" not in mark
    assert len(mark) == 24


def test_observation_hides_images_and_ignores_raw_in_equality() -> None:
    seen = Observation(task_id="t", state=SUCCEEDED, status="completed", images=("https://a.example/1",), raw={"a": 1})
    assert "a.example" not in repr(seen)
    assert seen == Observation(task_id="t", state=SUCCEEDED, status="completed", images=("https://a.example/1",))


def test_key_prefix_is_made_of_the_batch_name_alone() -> None:
    assert batch_key_prefix("spring") == batch_key_prefix("spring") != batch_key_prefix("summer")
    assert validate_key(batch_key_prefix("灯台")).isascii()


@pytest.mark.parametrize(("kind", "retried"), [("capacity", True), ("moderation", False), (None, False)])
def test_failed_job_is_retried_by_its_kind(kind: JobFailureKind | None, retried: bool) -> None:
    failure = None if kind is None else Failure(kind="JobFailed", message="no", failure_kind=kind)
    assert has_failed_with(record(state=FAILED, failure=failure), {"capacity"}) is retried
    assert not has_failed_with(record(state=SUCCEEDED), {"capacity"})
    assert has_failed_with(record(state=FAILED), {"unknown"})
