"""How soon the end of a job should be seen."""

from attrs import field, frozen

from nanobanana_async.checks import positive


@frozen(kw_only=True)
class PollPolicy:
    """The mean delay between a job's end and the look that sees it: the one knob; the looks follow from it.

    `min_gap_s` and `max_gap_s` bound the time between two looks at one job.
    """

    target_delay_s: float = field(default=0.5, validator=positive)
    min_gap_s: float = field(default=0.2, validator=positive)
    max_gap_s: float = field(default=8.0, validator=positive)
