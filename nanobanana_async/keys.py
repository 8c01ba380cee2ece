"""Keys of jobs, which are ours, and task ids, which are the gateway's: checked, derived, or generated."""

import hashlib
import hmac
import secrets

from nanobanana_async.errors import InvalidRequest
from nanobanana_async.escaping import as_plain_str
from nanobanana_async.values import as_key_text

MAX_KEY_LENGTH = 255
_PROCESS_SECRET = secrets.token_bytes(16)


def validate_key(key: object) -> str:
    """Return the key if it can be sent in a header (1 to 255 visible ASCII characters), or raise `InvalidRequest`.

    A whole number or a UUID is returned as text.
    """
    text = as_key_text(key)
    if not isinstance(text, str) or not 1 <= len(text) <= MAX_KEY_LENGTH:
        raise InvalidRequest(f"idempotency_key must be text of 1 to {MAX_KEY_LENGTH} characters")
    if not _is_visible_ascii(text):
        raise InvalidRequest("idempotency_key must be visible ASCII without spaces")
    return text


def validate_task_id(task_id: object) -> str:
    """Return the task id if it is printable text, or raise `InvalidRequest`."""
    if not isinstance(task_id, str) or not task_id.strip() or not task_id.isprintable():
        raise InvalidRequest("task_id must be printable text, and not empty")
    return as_plain_str(task_id)


def batch_key_prefix(batch: str) -> str:
    """Return the common prefix of the keys of a named batch; ledgers count its charges under it."""
    named = f"nanobanana_async batch {as_plain_str(batch)}".encode(errors="surrogatepass")
    return f"{hashlib.sha256(named).hexdigest()[:12]}-"


def key_for_task(task_id: str) -> str:
    """Return the key of a job known by its task id alone: readable if the id fits into a key, otherwise a hash."""
    key = f"task-{task_id}"
    if len(key) <= MAX_KEY_LENGTH and _is_visible_ascii(key):
        return key
    return f"task-sha256-{hashlib.sha256(task_id.encode()).hexdigest()}"


def _is_visible_ascii(text: str) -> bool:
    return text.isascii() and text.isprintable() and " " not in text


def generate_key() -> str:
    """Return a random key for a job whose caller gave none; `is_generated_key` recognises it in this process."""
    nonce = secrets.token_hex(8)
    return nonce + _key_mac(nonce)


def is_generated_key(key: str) -> bool:
    """Return whether this process generated the key. A caller's own key, such as a UUID, is not recognised."""
    return len(key) == 32 and key.isascii() and hmac.compare_digest(_key_mac(key[:16]), key[16:])


def _key_mac(nonce: str) -> str:
    return hashlib.blake2b(nonce.encode(), key=_PROCESS_SECRET, digest_size=8).hexdigest()
