-- The ledger of nanobanana_async, version 1. Readable with any SQLite tool; written by the library only.
--
-- Times are ISO 8601 in UTC with microseconds, so that text sorts as time does. Money is text: a decimal number is
-- kept as the gateway said it. `request`, `images` and `failure` are JSON. API keys never enter: `account` is a
-- fingerprint, or a name after the gateway's. Prompts do enter, they are what was ordered.

CREATE TABLE jobs (
    id               INTEGER PRIMARY KEY,      -- in the order in which jobs were first written down
    key              TEXT    NOT NULL UNIQUE,
    gateway          TEXT    NOT NULL,
    account          TEXT    NOT NULL,
    request          TEXT,                     -- null for a task that was attached by its id alone
    body             BLOB    NOT NULL,         -- the exact bytes that every POST of the job sends
    created_at       TEXT    NOT NULL,
    state            TEXT    NOT NULL,
    revision         INTEGER NOT NULL,         -- counts the writes; each is a compare-and-swap on it
    generation       INTEGER NOT NULL,         -- counts deliberate purchases
    attempts         INTEGER NOT NULL,
    first_sent_at    TEXT,
    in_doubt         INTEGER NOT NULL,
    task_id          TEXT,
    running_since    TEXT,
    ended_at         TEXT,
    images           TEXT    NOT NULL,
    credits_used     TEXT,
    credits_refunded TEXT,
    model            TEXT,
    failure          TEXT,
    owner            TEXT                      -- who follows it, or followed it to its end; null: it was let go
) STRICT;

-- What is not over. A ledger may hold a million finished jobs, and they are not looked at to find these.
CREATE INDEX jobs_open ON jobs (account, id, state, owner)
    WHERE state IN ('pending', 'submitting', 'running', 'uncertain');

CREATE INDEX jobs_task ON jobs (account, task_id) WHERE task_id IS NOT NULL;

CREATE INDEX jobs_state ON jobs (state);

-- What callbacks are signed with: whoever reads it can pretend to be the gateway, and is then not believed.
CREATE TABLE secrets (
    name  TEXT PRIMARY KEY,
    value BLOB NOT NULL
) STRICT;

-- Word of a callback, left for the owner who follows the job by whoever received it.
CREATE TABLE nudges (
    owner   TEXT NOT NULL,
    key     TEXT NOT NULL,
    task_id TEXT,
    PRIMARY KEY (owner, key)
) STRICT, WITHOUT ROWID;
