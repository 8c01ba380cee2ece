"""Hold all requests back while a budget of hours or of a day is used up, as the gateway states.

One wrong answer must not stop a session for a day: the first such refusal pauses for two minutes at most, like any
other, and only a second one is believed as it is. After the stated time single requests show whether the gateway takes
requests again. So a used-up budget costs the requests that were in flight, and two or three more.
"""

import math

from attrs import define

from nanobanana_async.errors import MAX_RETRY_AFTER_S

MARGIN_S = 2.0
"""Requests go on so much after the stated time: clocks differ, and waits are rounded."""
PROBE_EVERY_S = 60.0
"""The time after which another request leaves if the one that should show the end of the pause has no answer yet."""


@define
class LongPause:
    """The pause of a session while a budget of its account is used up."""

    ends_at: float = -math.inf
    """When the gateway takes requests again, by its own words; minus infinity without a pause."""
    opens_at: float = -math.inf
    """When the next request may leave."""
    confirmed: bool = False
    """Whether the gateway has said so a second time."""
    _began_at: float = -math.inf
    """When its first refusal came."""
    _refused_at: float = -math.inf
    """When the last such refusal came: requests sent before that show nothing new."""

    @property
    def used_up(self) -> bool:
        """Whether the budget is used up."""
        return self.ends_at > -math.inf

    def outlasts(self, now: float, max_wait_s: float) -> bool:
        """Return whether the pause, from its first refusal on, takes longer than a user is ready to wait.

        The second refusal makes that certain. One who waits for less time than it takes until then believes the first.
        """
        waited_s = now - self._began_at
        too_long = self.used_up and self.ends_at - self._began_at > max_wait_s
        return too_long and (self.confirmed or waited_s >= max_wait_s)

    def on_refused(self, now: float, sent_at: float, for_s: float) -> bool:
        """Record a refusal that states how long nothing is taken; return whether it is the first of its pause."""
        if sent_at <= self._refused_at:
            return False
        first = not self.used_up
        self._began_at = now if first else self._began_at
        self.confirmed = not first
        self.ends_at, self._refused_at = now + for_s, now
        self.opens_at = now + (min(for_s, MAX_RETRY_AFTER_S) if first else for_s + MARGIN_S)
        return first

    def on_sent(self, now: float) -> None:
        """Record that a request left: no other does until it is answered, or `PROBE_EVERY_S` have passed."""
        if self.used_up and now >= self.opens_at:
            self.opens_at = now + PROBE_EVERY_S

    def on_answered(self, sent_at: float) -> None:
        """Record that a request was answered, and not with such a refusal: the pause is over."""
        if sent_at > self._refused_at:
            self.ends_at = self.opens_at = -math.inf
            self.confirmed = False
