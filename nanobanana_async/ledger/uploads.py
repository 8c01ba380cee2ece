"""The SQL statements on the table `uploads`: which reference images an account has uploaded, and where they are."""

import sqlite3
from datetime import datetime

from nanobanana_async.ledger.base import Upload
from nanobanana_async.ledger.columns import time_to_text

SELECT_UPLOAD = "SELECT url, size, uploaded_at FROM uploads WHERE account = ? AND digest = ?"
UPSERT_UPLOAD = "INSERT OR REPLACE INTO uploads (account, digest, url, size, uploaded_at) VALUES (?, ?, ?, ?, ?)"
COPY_UPLOADS = (
    "INSERT INTO uploads SELECT ?, digest, url, size, uploaded_at FROM uploads WHERE account = ?"
    " ON CONFLICT (account, digest) DO NOTHING"
)


def find_upload(connection: sqlite3.Connection, account: str, digest: str) -> Upload | None:
    """Return the last upload of this content by the account."""
    found = connection.execute(SELECT_UPLOAD, (account, digest)).fetchone()
    if found is None:
        return None
    url, size, uploaded_at = found
    return Upload(digest=digest, url=url, size=size, uploaded_at=datetime.fromisoformat(uploaded_at))


def remember_upload(connection: sqlite3.Connection, account: str, upload: Upload) -> None:
    """Store an upload, in place of an earlier one of the same content."""
    values = (account, upload.digest, upload.url, upload.size, time_to_text(upload.uploaded_at))
    connection.execute(UPSERT_UPLOAD, values)


def copy_uploads(connection: sqlite3.Connection, old: str, new: str) -> None:
    """Let an account know the uploads of another: its API key has changed."""
    connection.execute(COPY_UPLOADS, (new, old))


def prune_uploads(connection: sqlite3.Connection, older_than: datetime) -> None:
    """Forget the uploads that were made before a time."""
    connection.execute("DELETE FROM uploads WHERE uploaded_at < ?", (time_to_text(older_than),))
