-- The ledger of nanobanana_async, version 1. Readable with any SQLite tool; written by the library only.
--
-- Times are ISO 8601 in UTC with microseconds, so that text sorts as time does. Money is text: a decimal number is
-- kept as the gateway said it. `request`, `images`, `missing` and `failure` are JSON. API keys never enter: `account`
-- is a fingerprint, or a name after the gateway's. Prompts do enter, they are what was ordered.

CREATE TABLE jobs (
    id               INTEGER PRIMARY KEY,      -- in the order in which jobs were first written down
    key              TEXT    NOT NULL UNIQUE,
    gateway          TEXT    NOT NULL,
    account          TEXT    NOT NULL,
    request          TEXT,                     -- null for a task that was attached by its id alone
    body             BLOB    NOT NULL,         -- the exact bytes that every POST of the job sends
    created_at       TEXT    NOT NULL,
    batch            TEXT,                     -- under what its charges are summed; null: its charges are not kept
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
    missing          TEXT    NOT NULL,         -- places that hold no image, each with the reason
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

-- What was ever spent under a name: a row for each purchase of each job of a named batch, written together with the
-- job's transition. A later purchase of the job adds a row; a purchase that surely was none keeps its row, at 0.
-- Credits are counted here in whole billionths, so that SQLite sums them exactly.
CREATE TABLE charges (
    job         INTEGER NOT NULL,              -- jobs.id
    generation  INTEGER NOT NULL,
    batch       TEXT    NOT NULL,
    account     TEXT    NOT NULL,
    price_class TEXT    NOT NULL,
    credits     INTEGER NOT NULL,              -- set aside, or charged, after refunds
    basis       TEXT    NOT NULL,              -- told, agreed: the price; expected, example: an estimate
    PRIMARY KEY (job, generation)
) STRICT, WITHOUT ROWID;

CREATE INDEX charges_estimates ON charges (batch) WHERE basis IN ('expected', 'example');

CREATE INDEX charges_of_class ON charges (account, price_class) WHERE basis IN ('expected', 'example');

-- The sum of all charges under a name, those of forgotten jobs included: to delete a charge takes nothing off it.
CREATE TABLE spending (
    batch   TEXT PRIMARY KEY,
    credits INTEGER NOT NULL,
    untold  INTEGER NOT NULL DEFAULT 0         -- forgotten jobs of which nobody ever said what they cost
) STRICT, WITHOUT ROWID;

CREATE TRIGGER charge_added AFTER INSERT ON charges BEGIN
    INSERT INTO spending (batch, credits) VALUES (new.batch, new.credits)
        ON CONFLICT (batch) DO UPDATE SET credits = min(credits + excluded.credits, 9000000000000000000);
END;

CREATE TRIGGER charge_changed AFTER UPDATE OF credits ON charges WHEN new.credits <> old.credits BEGIN
    UPDATE spending SET credits = min(credits + new.credits - old.credits, 9000000000000000000)
        WHERE batch = new.batch;
END;

CREATE TRIGGER job_forgotten AFTER DELETE ON jobs WHEN old.batch IS NOT NULL BEGIN
    DELETE FROM charges WHERE job = old.id;
END;

CREATE TRIGGER charge_forgotten AFTER DELETE ON charges WHEN old.basis IN ('expected', 'example') BEGIN
    UPDATE spending SET untold = untold + 1 WHERE batch = old.batch;
END;

-- What jobs of a class cost, as the gateway last said.
CREATE TABLE prices (
    account     TEXT NOT NULL,
    price_class TEXT NOT NULL,
    credits     INTEGER NOT NULL,
    PRIMARY KEY (account, price_class)
) STRICT, WITHOUT ROWID;

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
