"""The charts of a run, from its rows and its recorder."""

import re
from collections.abc import Iterable
from datetime import timedelta
from decimal import Decimal

import pytest

from nanobanana_async.report import Recorder, ReportRow
from nanobanana_async.report.charts import Chart, charts_of
from nanobanana_async.report.summary import Summary
from nanobanana_async.report.timeline import BusyTimeAxis, levels, sums
from tests.support.reports import START, Clock, limits_changed, made_rows, made_run, row, run_job, without_image
from tests.support.rows import each_row


def summed(rows: Iterable[ReportRow]) -> Summary:
    """Return the summary of some rows."""
    summary = Summary()
    for one in rows:
        summary.add(one)
    return summary


def drawn(rows: Iterable[ReportRow], run: Recorder | None = None) -> dict[str, Chart]:
    """Return the charts by their titles."""
    charts, _ = charts_of(summed(rows), run)
    return {chart.title: chart for chart in charts}


def test_idle_time_is_cut_out() -> None:
    axis = BusyTimeAxis([(0.0, 100.0), (50_000.0, 50_100.0)], 60.0)
    assert axis.busy_s == 200.0
    (cut,) = axis.cuts
    assert cut.seconds == 49_900.0
    assert cut.place == pytest.approx(0.5)
    assert axis.place(100.0) < 0.5 < axis.place(50_000.0)
    assert axis.place(20_000.0) == axis.place(100.0)
    assert (axis.place(-5.0), axis.place(0.0), axis.place(50_100.0), axis.place(9e9)) == (0.0, 0.0, 1.0, 1.0)


def test_a_short_pause_of_a_long_run_is_not_cut() -> None:
    assert BusyTimeAxis([(0.0, 10_000.0), (10_100.0, 20_000.0)], 60.0).cuts == ()


def test_levels_are_the_maximum_of_each_column() -> None:
    axis = BusyTimeAxis([(0.0, 100.0)], 1.0)
    steps = levels([(0.0, 50.0, 1), (25.0, 50.0, 2), (75.0, 75.0001, 4)], axis)
    assert [value for _, value in steps] == [1, 3, 0, 4, 0]
    assert [round(place, 2) for place, _ in steps] == [0.0, 0.25, 0.5, 0.75, 0.75]


def test_sums_are_cumulative_in_any_order() -> None:
    steps = sums([(90.0, 5.0), (10.0, 1.0), (10.0, 1.0)], BusyTimeAxis([(0.0, 100.0)], 1.0))
    assert [value for _, value in steps] == [0.0, 2.0, 7.0]


def test_a_job_detected_the_next_day_leaves_the_night_idle() -> None:
    rows = [row(0), row(1, ended_at=START + timedelta(days=1)), row(2, sent_at=START + timedelta(days=1))]
    charts, axis = charts_of(summed(rows), None)
    assert axis.busy_s < 60
    assert len(charts[0].cuts) == 1


def test_the_time_of_the_recorded_run_is_not_cut() -> None:
    clock = Clock()
    run = Recorder(utcnow=clock)
    run(limits_changed(None))
    clock.pass_s(4000)
    run(limits_changed(3))
    charts, axis = charts_of(summed([row(0), row(3900)]), run)
    assert axis.busy_s == 4000
    assert charts[0].cuts == ()


def test_the_slots_chart_shows_limit_refusals_and_pauses() -> None:
    rows = list(made_rows(120))
    chart = drawn(rows, made_run(rows))["Job slots"]
    assert [kind for kind, _ in chart.legend] == ["held", "limit", "throttled", "paused"]
    layers = dict(chart.layers)
    assert layers["throttled"].count("M") == 4
    assert layers["paused"].count("Z") == 1
    assert chart.note == "limit 20 learned · 4 refusals"
    assert all(re.fullmatch(r"[MHVhZ0-9. -]*", path) for path in layers.values())


@each_row("jobs", range(1, 60))
def test_numbers_of_jobs_have_whole_labels(jobs: int) -> None:
    chart = drawn([row(0) for _ in range(jobs)])["Job slots"]
    assert [tick.label for tick in chart.y_ticks if not tick.label.isdigit()] == []
    assert int(chart.y_ticks[0].label) >= jobs


def test_labels_of_times_leave_room_for_those_of_cuts() -> None:
    rows = [row(0, ended_at=START + timedelta(seconds=31)), row(86_400, ended_at=START + timedelta(seconds=86_431))]
    chart = drawn(rows)["Job slots"]
    assert [(tick.label, tick.near) for tick in chart.x_ticks] == [("0", False), ("15 s", True)]
    whole = drawn([row(0, ended_at=START + timedelta(seconds=60))])["Job slots"]
    assert [(tick.label, tick.near) for tick in whole.x_ticks][-1] == ("1 min", False)


def test_the_credits_chart_has_the_price_of_a_row_and_no_sum() -> None:
    chart = drawn([row(0, credits=Decimal(3)), row(1, credits=Decimal("4.5"))])["Credits"]
    assert chart.headline == "3.75 a row"


def test_without_a_recorder_charts_come_from_rows_only() -> None:
    charts = drawn(made_rows(120))
    assert list(charts) == ["Job slots", "Credits", "Time per job"]
    assert charts["Job slots"].note == ""


def test_a_job_may_hold_several_slots() -> None:
    assert drawn([row(0, slots=4), row(1, slots=2)])["Job slots"].headline == "6 at once"


def test_a_running_job_holds_its_slot() -> None:
    running = without_image(1, "unfinished", sent_at=START, ended_at=None)
    assert drawn([row(0), running])["Job slots"].headline == "2 at once"
    assert drawn([running])["Job slots"].headline == "0 at once"


def test_durations_and_delays_are_histograms() -> None:
    clock = Clock()
    run = Recorder(utcnow=clock)
    for number in range(20):
        run_job(run, clock, str(number), 5.0, 0.01)
    charts = drawn([row(number) for number in range(20)], run)
    assert charts["Time per job"].headline == "8.0 s median"
    assert charts["Detection delay"].headline == "at most 0.0 s median"
    assert dict(charts["Time per job"].layers)["bars"].count("Z") == 1


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [without_image(0, "invalid", "no", sent_at=None, ended_at=None)],
        [row(0, sent_at=None, ended_at=None)],
    ],
)
def test_there_is_no_chart_if_nothing_ran(rows: list[ReportRow]) -> None:
    charts, axis = charts_of(summed(rows), Recorder())
    assert (charts, axis.busy_s) == ([], 0.0)


@each_row("took_s", [0.0, 0.004, 1.0, 3600.0, 1e6])
@each_row("price", ["0", "0.0001", "123456789"])
def test_charts_stay_in_their_box_for_any_values(took_s: float, price: str) -> None:
    rows = [row(0, ended_at=START + timedelta(seconds=took_s), credits=Decimal(price))]
    for chart in drawn(rows).values():
        for tick in (*chart.x_ticks, *chart.y_ticks):
            assert 0 <= tick.at <= 100
        for _, path in chart.layers:
            assert all(-0.1 <= float(number) <= 1000 for number in re.findall(r"-?\d+\.?\d*", path))
