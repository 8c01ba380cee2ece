"""Draw the charts of a run: SVG paths in a 1000 by 100 box, which the page stretches; labels are outside of the box."""

import math
from collections.abc import Callable, Sequence

from attrs import frozen

from nanobanana_async.formatting import duration, number, plural
from nanobanana_async.report.recorder import Recorder
from nanobanana_async.report.summary import Summary
from nanobanana_async.report.timeline import BusyTimeAxis, Step, levels, sums

_WIDTH, _HEIGHT = 1000.0, 100.0
_TIME_STEPS_S = (
    *(0.5, 1, 2, 5, 10, 15, 30),
    *(60 * minutes for minutes in (1, 2, 5, 10, 15, 30)),
    *(3600 * hours for hours in (1, 2, 4, 8, 12)),
)
_DAY_S = 86400.0
_MIN_IDLE_S = 60.0
_IDLE_JOBS = 4  # idle: nothing was sent or ended for this many median job durations
_MAX_TICKS = 5
_MAX_BARS = 28
_CUT_LABEL, _WIDE_CUT_LABEL = 0.08, 0.3  # of the width, beside a cut's label: on a wide and on a narrow screen


@frozen
class Tick:
    """A label at a percentage of the width or height."""

    at: float
    label: str
    near: bool = False
    """Whether the label has no room beside that of a cut where the chart is narrow."""


@frozen(kw_only=True)
class Chart:
    """A chart for the template. Each layer is a CSS class and a path; each legend entry a CSS class and a label."""

    title: str
    headline: str
    note: str
    layers: tuple[tuple[str, str], ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    cuts: tuple[Tick, ...] = ()
    legend: tuple[tuple[str, str], ...] = ()
    wide: bool = False

    @property
    def summary(self) -> str:
        """The accessible description."""
        return ", ".join(part for part in (self.title, self.headline, self.note) if part)


def charts_of(summary: Summary, run: Recorder | None) -> tuple[list[Chart], BusyTimeAxis]:
    """Return the charts that have data, and their axis of time, which knows how long jobs were running."""
    held = summary.held_spans()
    durations_s = sorted(summary.durations_s)
    # Only sends and ends count as activity: a job that no session followed overnight did not run all night.
    spans = [(at, at) for at in (*summary.sent_at, *summary.ended_at, *(start for start, _ in summary.still_held))]
    if run is not None and run.started_at is not None and run.last_at is not None and run.samples:
        start = run.started_at.timestamp()
        spans.append((start, max(start, run.last_at.timestamp())))
    median_s = durations_s[len(durations_s) // 2] if durations_s else 0.0
    axis = BusyTimeAxis(spans, max(_MIN_IDLE_S, _IDLE_JOBS * median_s))
    if axis.empty:
        return [], axis
    charts = [
        _slots_chart(held, run, axis) if held or (run is not None and run.samples) else None,
        _credits_chart(summary, axis),
        _histogram("Time per job", durations_s, "from sent to ended"),
        _histogram("Detection delay", [] if run is None else run.delays_s(), "between the last two polls", "at most "),
    ]
    return [chart for chart in charts if chart is not None], axis


def _slots_chart(held: Sequence[tuple[float, float, int]], run: Recorder | None, axis: BusyTimeAxis) -> Chart:
    steps = levels(held, axis)
    limit, throttled, paused = _limits_over_time(run, axis)
    limits = [value for _, value in limit if value is not None]
    max_held = max((value for _, value in steps), default=0.0)
    top, y_ticks = _axis_top_and_ticks(max(max_held, *limits, 1.0), whole=True)
    y = _scale(top)
    layers = [("paused", _band_path(paused)), ("held", _area_path(steps, y)), ("edge", _line_path(steps, y))]
    legend = [("held", "held")]
    notes = []
    if limits:
        layers.append(("limit", _line_path(limit, y)))
        legend.append(("limit", "learned limit"))
        notes.append(f"limit {number(limits[-1])} learned")
    if throttled:
        marks = "".join(f"M{_n(place * _WIDTH)} {_n(y(_refusal_height(limit, steps, place)))}h0" for place in throttled)
        layers.append(("throttled", marks))
        legend.append(("throttled", "refused (429)"))
    if run is not None:
        notes.append(plural(run.throttled_count, "refusal"))
    if paused:
        legend.append(("paused", "paused"))
    return Chart(
        title="Job slots",
        headline=f"{number(max_held)} at once",
        note=" · ".join(notes),
        layers=tuple(layers),
        x_ticks=_time_ticks(axis),
        y_ticks=y_ticks,
        cuts=tuple(Tick(100 * cut.place, f"{duration(cut.seconds)} later") for cut in axis.cuts),
        legend=tuple(legend),
        wide=True,
    )


def _limits_over_time(
    run: Recorder | None, axis: BusyTimeAxis
) -> tuple[list[tuple[float, float | None]], list[float], list[tuple[float, float]]]:
    """Return the limit over time, where creates were refused with 429, and where creates were paused."""
    if run is None or not run.samples or run.last_at is None:
        return [], [], []
    limit: list[tuple[float, float | None]] = []
    throttled: list[float] = []
    paused: list[tuple[float, float]] = []
    refusals, pause_start = 0, None
    for sample in list(run.samples):
        place = axis.place(sample.at.timestamp())
        if not limit or limit[-1][1] != sample.job_limit:
            limit.append((place, sample.job_limit))
        if sample.throttled > refusals:
            throttled.append(place)
        refusals = sample.throttled
        if pause_start is not None and not sample.creates_paused:
            paused.append((pause_start, place))
        pause_start = None if not sample.creates_paused else place if pause_start is None else pause_start
    end = axis.place(run.last_at.timestamp())
    if pause_start is not None:
        paused.append((pause_start, end))
    return [*limit, (end, None)], throttled, paused


def _refusal_height(limit: Sequence[tuple[float, float | None]], steps: Sequence[Step], place: float) -> float:
    """Return the height of a refusal mark: the limit, or the held slots while the limit was unknown."""
    known = [value for at, value in limit if at <= place]
    if known and known[-1] is not None:
        return known[-1]
    return next((value for at, value in reversed(steps) if at <= place), 0.0)


def _credits_chart(summary: Summary, axis: BusyTimeAxis) -> Chart | None:
    if not summary.price_sum or not len(summary.paid):
        return None
    steps = sums(zip(summary.paid_at, summary.paid, strict=True), axis)
    top, y_ticks = _axis_top_and_ticks(max(value for _, value in steps))
    y = _scale(top)
    return Chart(
        title="Credits",
        headline=f"{number(round(summary.price_sum / len(summary.paid), 2))} a row",
        note="added up as rows end",
        layers=(("spent", _area_path(steps, y)), ("spent-edge", _line_path([*steps, (1.0, None)], y))),
        x_ticks=_time_ticks(axis, 4),
        y_ticks=y_ticks,
    )


def _histogram(title: str, values: Sequence[float], note: str, bound: str = "") -> Chart | None:
    """Return a histogram of sorted values; values above the 99th percentile are in the last bar.

    `bound` says in the headline that the values are limits.
    """
    if not values:
        return None
    median, high = values[len(values) // 2], values[min(len(values) - 1, math.ceil(len(values) * 0.99))]
    width = next((step for step in _bin_widths() if high / step <= _MAX_BARS), _DAY_S)
    bars = min(_MAX_BARS, int(high / width)) + 1
    counts = [0] * bars
    for value in values:
        counts[min(bars - 1, int(value / width))] += 1
    top, y_ticks = _axis_top_and_ticks(max(counts), whole=True)
    y, step = _scale(top), _WIDTH / bars
    path = "".join(
        f"M{_n(bar * step + step * 0.1)} 100V{_n(y(jobs))}H{_n((bar + 1) * step - step * 0.1)}V100Z"
        for bar, jobs in enumerate(counts)
        if jobs
    )
    at = min(median / (width * bars), 1.0) * _WIDTH
    every = max(1, math.ceil(bars / 4))
    ticks = [Tick(100 * bar / bars, _bin_label(bar * width, width)) for bar in range(0, bars, every)]
    return Chart(
        title=title,
        headline=f"{bound}{duration(median)} median",
        note=note,
        layers=(("bars", path), ("median", f"M{_n(at)} 0V100")),
        x_ticks=tuple(ticks),
        y_ticks=y_ticks,
    )


def _bin_widths() -> list[float]:
    short = [round(digit * 10**-exponent, 3) for exponent in (3, 2, 1) for digit in (1, 2, 5)]
    return [*short, *_TIME_STEPS_S]


def _bin_label(value: float, width: float) -> str:
    return f"{value:g} s" if width < 1 or value < 10 else duration(value)


def _time_ticks(axis: BusyTimeAxis, max_ticks: int = _MAX_TICKS) -> tuple[Tick, ...]:
    """Return round times since the start, up to the first cut of idle time."""
    days = (_DAY_S * days for days in range(1, 10_000))
    step = next(step for step in (*_TIME_STEPS_S, *days) if axis.busy_s / step <= max_ticks)
    end = axis.cuts[0].place if axis.cuts else 1.0
    places = [(tick * step / axis.length_s, tick * step) for tick in range(max_ticks + 1)]
    room = end - _CUT_LABEL if axis.cuts else end
    return tuple(
        Tick(100 * place, _bin_label(at, step) if at else "0", near=place > end - _WIDE_CUT_LABEL and bool(axis.cuts))
        for place, at in places
        if place <= room
    )


def _axis_top_and_ticks(value: float, *, whole: bool = False) -> tuple[float, tuple[Tick, ...]]:
    """Return the next round number, and labels for it and its half; `whole`: for jobs, both are whole numbers."""
    if whole and 1 < value <= 10:
        value = 2.0 * math.ceil(value / 2)
    magnitude = 10.0 ** math.floor(math.log10(value)) if value > 0 else 1.0
    top = next(magnitude * digit for digit in (1, 1.2, 1.6, 2, 2.4, 3, 4, 5, 6, 8, 10) if magnitude * digit >= value)
    if top < 2:
        return max(top, value), (Tick(0.0, number(round(top, 3))),)
    return top, (Tick(0.0, number(round(top, 3))), Tick(50.0, number(round(top / 2, 3))))


def _scale(top: float) -> Callable[[float], float]:
    return lambda value: _HEIGHT * (1 - value / top)


def _line_path(steps: Sequence[tuple[float, float | None]], y: Callable[[float], float]) -> str:
    """Return a path of steps; None interrupts the line."""
    path, down = [], False
    for place, value in steps:
        x = _n(place * _WIDTH)
        if down:
            path.append(f"H{x}")
        if value is not None:
            path.append(f"{'V' if down else f'M{x} '}{_n(y(value))}")
        down = value is not None
    if down:
        path.append(f"H{_n(_WIDTH)}")
    return "".join(path)


def _area_path(steps: Sequence[Step], y: Callable[[float], float]) -> str:
    if not steps:
        return ""
    parts = [f"H{_n(place * _WIDTH)}V{_n(y(value))}" for place, value in steps]
    return f"M{_n(steps[0][0] * _WIDTH)} 100{''.join(parts)}H1000V100Z"


def _band_path(spans: Sequence[tuple[float, float]]) -> str:
    return "".join(
        f"M{_n(start * _WIDTH)} 0H{_n(max(end * _WIDTH, start * _WIDTH + 1))}V100H{_n(start * _WIDTH)}Z"
        for start, end in spans
    )


def _n(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
