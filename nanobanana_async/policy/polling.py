"""How soon the end of a job should be seen."""

from attrs import field, frozen

from nanobanana_async.validators import DAY_S, within


@frozen(kw_only=True)
class PollPolicy:
    """The mean delay between a job's end and the look that sees it: the one knob; the looks follow from it.

    `min_gap_s` and `max_gap_s` bound the time between two polls of one job. All are seconds, at most a day.
    """

    target_delay_s: float = field(default=0.5, validator=within(above=0, most=DAY_S))
    min_gap_s: float = field(default=0.2, validator=within(above=0, most=DAY_S))
    max_gap_s: float = field(default=8.0, validator=within(above=0, most=DAY_S))
