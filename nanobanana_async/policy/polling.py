"""The setting for how soon the end of a job is noticed."""

from attrs import field, frozen
from attrs.validators import optional

from nanobanana_async.errors import ConfigurationError
from nanobanana_async.misspelt import by_name
from nanobanana_async.validators import DAY_S, within


@by_name
@frozen(kw_only=True)
class PollPolicy:
    """How often jobs are polled.

    `target_delay_s` is the wanted mean delay between the end of a job and the poll that notices it; the poll times
    follow from it and from the learned durations. None means 4 % of the mean duration, at least 0.5 s: six to eight
    polls a job, whether it takes ten seconds or three minutes. It is 8 % until as many jobs have ended as run, and
    until durations are known there is at most one poll in 3 s (both references ask for polls every few seconds).
    `min_gap_s` and `max_gap_s` bound the time between two polls of one job; the gap grows up to `max_gap_s` only for
    jobs that are older than nearly all others. All are seconds, at most a day.
    """

    target_delay_s: float | None = field(default=None, validator=optional(within(above=0, most=DAY_S)))  # None: 4 %
    min_gap_s: float = field(default=0.2, validator=within(above=0, most=DAY_S))  # between two polls of one job
    max_gap_s: float = field(default=60.0, validator=within(above=0, most=DAY_S))  # between two polls of one job

    def __attrs_post_init__(self) -> None:
        if self.min_gap_s > self.max_gap_s:
            raise ConfigurationError(f"min_gap_s is {self.min_gap_s:g}, more than max_gap_s, {self.max_gap_s:g}")
