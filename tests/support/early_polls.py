"""Poll early, as suits jobs that take less than a second."""

from nanobanana_async.policy import poll_schedule

EARLY_POLLS = {"LEAST_GAP_IF_UNKNOWN_S": 0.1, "LEAST_DELAY_S": 0.05, "UNKNOWN_GROWTH": 0.0, "STRAGGLER_GROWTH": 0.0}
"""The constants of `poll_schedule` that say so.

Gaps do not grow: on a busy machine a job is soon old, and the next poll of an old one would come after a minute.
"""

POLL_EARLY = f"from {poll_schedule.__package__} import poll_schedule; vars(poll_schedule).update({EARLY_POLLS})"
"""A line of Python that sets them, for a process that is not forked from this one (see `forked.constants`)."""
