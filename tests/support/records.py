"""Records of jobs for tests that need no session."""

from datetime import UTC, datetime
from typing import Any

from nanobanana_async.jobs import JobRecord
from nanobanana_async.models import ImageRequest

NOON = datetime(2026, 3, 12, 12, tzinfo=UTC)


def record(**facts: Any) -> JobRecord:
    """Return the record of a job that was created at noon, changed by the given fields."""
    usual: dict[str, Any] = {"key": "order-1", "gateway": "apimall", "account": "a", "body": b"{}", "created_at": NOON}
    return JobRecord(**{**usual, "request": ImageRequest("x"), **facts})
