"""Records as rows: every record is read as it was written."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal

import pytest
from attrs import evolve, fields
from hypothesis import given
from hypothesis import strategies as st

from nanobanana_async.candidates import Candidate
from nanobanana_async.errors import LedgerError
from nanobanana_async.failures import Failure
from nanobanana_async.jobs import JobRecord, JobState
from nanobanana_async.ledger.columns import (
    COLUMNS,
    identity_values,
    progress_values,
    record_of,
    same_identity,
    time_to_text,
)
from nanobanana_async.ledger.file import current_schema
from nanobanana_async.ledger.statements import JobTable, update_statement_for
from nanobanana_async.models import ImageRequest
from tests.support.ledger_contract import NOON, job

KEYS = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=255)
WORDS = st.text(st.characters(exclude_categories=["Cs"]))
PRINTABLE = WORDS.filter(lambda text: text.isprintable() and bool(text.strip()))
TEXTS = st.text(st.characters())  # lone surrogates too
TIMES = st.datetimes(
    min_value=datetime(1900, 1, 1),  # noqa: DTZ001 - the zone is drawn too
    max_value=datetime(2900, 1, 1),  # noqa: DTZ001
    timezones=st.integers(-14 * 60, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes))),
)
MONEY = st.decimals(-(10**18), 10**18)  # what a gateway states is below it
COUNTS = st.integers(0, 2**62)

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(PRINTABLE, inner, max_size=3),
    max_leaves=5,
)

REQUESTS = st.builds(
    ImageRequest,
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1).filter(
        lambda text: bool(text.strip())
    ),
    images=st.lists(st.sampled_from(["https://x.example/a.png", "http://y.example/é?q=1"]), max_size=6),
    num_images=st.integers(1, 6),
    aspect_ratio=st.none() | st.tuples(st.integers(1, 99), st.integers(1, 99)).map(lambda two: f"{two[0]}:{two[1]}"),
    resolution=st.sampled_from([None, "1K", "2K", "4K"]),
    output_format=st.sampled_from([None, "jpeg", "jpg", "png"]),
    model=st.none() | PRINTABLE,
    task_type=st.sampled_from([None, "text-to-image", "image-to-image"]),
    callback_url=st.none() | st.just("https://me.example/callbacks/t0ken"),
    extra=st.dictionaries(PRINTABLE, JSON, max_size=3),
)
FAILURES = st.builds(
    Failure,
    kind=WORDS,
    message=TEXTS,
    status=st.none() | st.integers(100, 599),
    code=st.none() | TEXTS,
    request_id=st.none() | TEXTS,
)
CANDIDATES = st.builds(Candidate, task_id=WORDS, created_at=TIMES, image_url=st.none() | TEXTS)
RECORDS = st.builds(
    JobRecord,
    key=KEYS,
    gateway=WORDS,
    account=WORDS,
    request=st.none() | REQUESTS,
    body=st.binary(),
    created_at=TIMES,
    batch=st.none() | WORDS,
    state=st.sampled_from(JobState),
    revision=COUNTS,
    generation=COUNTS,
    attempts=COUNTS,
    first_sent_at=st.none() | TIMES,
    in_doubt=st.booleans(),
    sent_at=st.none() | TIMES,
    lost_at=st.none() | TIMES,
    conflict_at=st.none() | TIMES,
    candidates=st.lists(CANDIDATES, max_size=3).map(tuple),
    task_id=st.none() | WORDS,
    running_since=st.none() | TIMES,
    ended_at=st.none() | TIMES,
    images=st.lists(TEXTS).map(tuple),
    credits_used=st.none() | MONEY,
    credits_refunded=st.none() | MONEY,
    model=st.none() | WORDS,
    failure=st.none() | FAILURES,
)


@contextmanager
def empty_table() -> Iterator[JobTable]:
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.executescript(current_schema().script)
        yield JobTable(connection, "me", lambda _: True)


@pytest.mark.slow
@given(RECORDS)
def test_any_record_is_stored_and_read(record: JobRecord) -> None:
    with empty_table() as table:
        table.claim(record, (*identity_values(record), *progress_values(record)))
        found = table.find(record.key)
        assert found == record
        assert found is not None
        assert type(found.in_doubt) is bool
        assert found.created_at.tzinfo is UTC


@pytest.mark.slow
@given(RECORDS, RECORDS)
def test_any_record_can_replace_another(before: JobRecord, after: JobRecord) -> None:
    after = evolve(after, key=before.key)
    with empty_table() as table:
        table.claim(before, (*identity_values(before), *progress_values(before)))
        table.advance(before, after, *update_statement_for(before, after))
        assert table.find(before.key) == after


def test_identity_is_written_only_when_it_changed() -> None:
    first = job()
    assert same_identity(first, first.transition_to(JobState.SUBMITTING))
    assert not same_identity(first, evolve(first, body=b"{new}"))


def test_every_field_has_a_column() -> None:
    assert sorted(COLUMNS) == sorted(field.name for field in fields(JobRecord))


def test_times_sort_as_their_text_does() -> None:
    times = [NOON, NOON + timedelta(microseconds=1), NOON + timedelta(seconds=1)]
    assert sorted(time_to_text(time) for time in times) == [time_to_text(time) for time in times]
    assert time_to_text(datetime(2026, 3, 12, 14, tzinfo=timezone(timedelta(hours=2)))) == time_to_text(NOON)


def test_request_is_stored_as_canonical_json() -> None:
    request = ImageRequest("狐", resolution="2K", images=["https://x.example/a.png"])
    assert identity_values(job(request=request))[3] == (
        '{"images":["https://x.example/a.png"],"prompt":"狐","resolution":"2K"}'
    )


def test_unknown_request_fields_are_ignored() -> None:
    row = [*identity_values(job()), *progress_values(job())]
    row[3] = '{"prompt":"a fox","seed":7}'
    assert record_of(tuple(row)) == job()


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("state", "asleep"),
        ("request", "{"),
        ("request", '{"prompt":""}'),
        ("created_at", "noon"),
        ("credits_used", "x"),
    ],
)
def test_unreadable_row_is_named_in_the_error(column: str, value: str) -> None:
    row = [*identity_values(job()), *progress_values(job(credits_used=Decimal(1)))]
    row[COLUMNS.index(column)] = value
    with pytest.raises(LedgerError, match="job order-1 can't be read") as caught:
        record_of(tuple(row))
    assert caught.value.key == "order-1"
    assert not caught.value.safe_to_repeat


def test_unreadable_row_is_not_adopted() -> None:
    with empty_table() as table:
        table.claim(job(), (*identity_values(job()), *progress_values(job())))
        table.connection.execute("UPDATE jobs SET request = '{', owner = NULL")
        with pytest.raises(LedgerError, match="can't be read"):
            table.adopt("order-1")
        assert table.connection.execute("SELECT owner FROM jobs").fetchone() == (None,)
