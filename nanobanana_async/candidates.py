"""A task in a gateway's history that may be a job whose create got no usable answer."""

from datetime import datetime

from attrs import frozen

MOST_CANDIDATES = 20
"""No more tasks are kept for a job: those nearest in time. A person compares them one by one."""


@frozen(kw_only=True)
class Candidate:
    """A task that could be an uncertain job. A person decides: the history shows no prompt, but often an image."""

    task_id: str  # what `session.resolve` takes, if it is the job's
    created_at: datetime
    """By the gateway's clock."""
    image_url: str | None = None  # of the first image, if the history shows one
