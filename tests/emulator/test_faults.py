"""Faults without sockets: which fault applies, what is processed, what is counted."""

import pytest

from nanobanana_async.emulator import RandomFault, Script, SendMode, faults
from tests.emulator.calling import Caller, body_of
from tests.support.rows import each_row


def test_script_sets_the_fault_of_the_nth_request() -> None:
    caller = Caller(script=Script({"apimall.create": [None, faults.error(503), None]}))
    assert [caller.buy(f"{n}").status for n in range(4)] == [200, 503, 200, 200]
    assert caller.buy_defapi().status == 200
    assert caller.stats().faults == {"error 503": 1}


def test_last_step_of_a_script_can_repeat() -> None:
    caller = Caller(script=Script({"apimall.create": [None, faults.error(500)]}, repeat_last=True))
    assert [caller.buy(f"{n}").status for n in range(4)] == [200, 500, 500, 500]


def test_script_for_an_unknown_endpoint_is_refused() -> None:
    with pytest.raises(ValueError, match="not an endpoint"):
        Script({"apimall.crate": []})  # type: ignore[dict-item]


def test_queued_faults_come_before_the_script() -> None:
    caller = Caller(script=Script({"apimall.create": [faults.error(500)] * 2}))
    caller.simulator.queue_faults("apimall.create", faults.error(502), None)
    assert [caller.buy(f"{n}").status for n in range(3)] == [502, 200, 200]


def test_random_faults_are_seeded_and_do_not_change_durations() -> None:
    chance = RandomFault(0.3, faults.error(503, processed=True), "apimall.create")

    def statuses(seed: int) -> list[int]:
        caller = Caller(seed=seed, random_faults=[chance])
        return [caller.buy(f"{n}").status for n in range(200)]

    assert statuses(1) == statuses(1) != statuses(2)
    assert 40 < statuses(1).count(503) < 80


def test_random_fault_without_an_endpoint_applies_to_all() -> None:
    caller = Caller(random_faults=[RandomFault(1.0, faults.html(502))])
    answers = [
        caller.buy(),
        caller.buy_defapi(),
        caller.poll("x"),
        caller.poll_defapi("x"),
        caller.fetch("http://h/cdn/"),
    ]
    assert {(answer.status, answer.headers["Content-Type"]) for answer in answers} == {(502, "text/html")}


@pytest.mark.parametrize("probability", [-0.1, 1.1])
def test_random_fault_needs_a_probability(probability: float) -> None:
    with pytest.raises(ValueError, match="probability"):
        RandomFault(probability, faults.reset())


@each_row("status", [400, 401, 402, 403, 404, 409, 429, 451, 500, 503])
def test_every_status_of_the_reference_comes_in_the_envelope_of_apimall(status: int) -> None:
    caller = Caller()
    caller.simulator.queue_faults("apimall.create", faults.error(status))
    answer = caller.buy(key="k")
    assert answer.status == status
    assert body_of(answer)["error"]["code"] not in ("", "error")
    assert caller.stats().creates_refused == {status: 1}


@pytest.mark.parametrize("status", [400, 401, 404, 500, 503])
def test_every_status_comes_in_the_envelope_of_defapi(status: int) -> None:
    caller = Caller()
    caller.simulator.queue_faults("defapi.query", faults.error(status))
    answer = caller.poll_defapi("ta1")
    assert (answer.status, body_of(answer)["code"] > 0) == (status, True)
    assert caller.stats().creates_refused == {}


def test_a_401_on_a_defapi_query_keeps_the_code_of_its_reference() -> None:
    caller = Caller()
    caller.simulator.queue_faults("defapi.query", faults.error(401))
    assert body_of(caller.poll_defapi("ta1")) == {"code": 401, "message": "Invalid API key"}


def test_error_fault_takes_a_message_or_an_empty_body() -> None:
    caller = Caller()
    custom = faults.error(429, code="slow", message="Slow down", retry_after="3")
    caller.simulator.queue_faults("apimall.create", custom, faults.error(504, envelope=False))
    answer = caller.buy()
    assert body_of(answer)["error"] == {"code": "slow", "message": "Slow down"}
    assert answer.headers["Retry-After"] == "3"
    assert caller.stats().refusals_429 == {"fault": 1}
    answer = caller.buy()
    assert (answer.status, answer.body) == (504, b"")


@each_row(
    "fault",
    [
        faults.reset(processed=True),
        faults.stall(5, processed=True),
        faults.error(500, processed=True),
        faults.html(200, processed=True),
        faults.garbage(processed=True),
        faults.cut(),
        faults.wrong_length(),
        faults.answer(418, body=b"tea", processed=True),
    ],
)
def test_create_with_a_lost_response_is_charged_and_can_be_replayed(fault: faults.Fault) -> None:
    caller = Caller()
    caller.simulator.queue_faults("apimall.create", fault)
    caller.buy(key="k")
    stats = caller.stats()
    assert (stats.creates_accepted, stats.lost_creates, stats.creates_refused) == (1, 1, {})
    assert body_of(caller.buy(key="k"))["success"] is True
    stats = caller.stats()
    assert (stats.creates_accepted, stats.replays, stats.double_charges) == (1, 1, 0)


@each_row(
    "fault",
    [
        faults.reset(),
        faults.stall(5),
        faults.error(502, envelope=False),
        faults.html(),
        faults.garbage(),
        faults.cut(processed=False),
        faults.late(5),
    ],
)
def test_fault_before_processing_changes_no_state(fault: faults.Fault) -> None:
    caller = Caller()
    caller.simulator.queue_faults("apimall.create", fault)
    caller.buy(key="k")
    assert caller.stats().creates_accepted == 0
    caller.buy("another body", key="k")
    stats = caller.stats()
    assert (stats.creates_received, stats.creates_accepted, stats.replays) == (2, 1, 0)


def test_each_fault_sets_its_delivery() -> None:
    caller = Caller()
    wanted = {
        SendMode.RESET: faults.reset(),
        SendMode.CUT: faults.cut(sent_share=0.2),
        SendMode.SHORT: faults.wrong_length(sent_share=0.2),
        SendMode.LATE: faults.late(3.0),
        SendMode.WHOLE: faults.delay(3.0),
    }
    caller.simulator.queue_faults("apimall.create", *wanted.values())
    answers = [caller.buy(f"{n}") for n in range(len(wanted))]
    assert [answer.sending.mode for answer in answers] == list(wanted)
    assert [answer.sending.delay_s for answer in answers] == [0, 0, 0, 3.0, 3.0]
    assert [answer.status for answer in answers] == [0, 200, 200, 0, 200]


def test_end_hidden_by_a_fault_does_not_count_as_seen() -> None:
    caller = Caller()
    task_id = caller.bought()
    caller.now = 10.0
    caller.simulator.queue_faults("apimall.query", faults.cut(), faults.delay(1.0))
    caller.poll(task_id)
    assert caller.stats().seen == 0
    caller.poll(task_id)
    assert caller.stats().seen == 1


def test_cdn_errors_have_no_envelope() -> None:
    caller = Caller()
    caller.simulator.queue_faults("cdn", faults.error(503), faults.cut(processed=False))
    answer = caller.fetch("http://h/cdn/x")
    assert (answer.status, answer.headers["Content-Type"]) == (503, "text/plain")
    assert caller.fetch("http://h/cdn/x").sending.mode is SendMode.CUT
