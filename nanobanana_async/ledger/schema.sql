-- The ledger of nanobanana_async, version 2. Readable with any SQLite tool; written by the library only.
--
-- Times are ISO 8601 in UTC with microseconds, so that they sort as text. Money is text: a decimal number exactly as
-- the gateway returned it. `request`, `images`, `missing` and `failure` are JSON. API keys are never stored: `account`
-- is a fingerprint, or the gateway's name and a name that the user chose. Prompts are stored.

CREATE TABLE jobs (
    id               INTEGER PRIMARY KEY,      -- the order in which jobs were inserted
    key              TEXT    NOT NULL UNIQUE,
    gateway          TEXT    NOT NULL,
    account          TEXT    NOT NULL,
    request          TEXT,                     -- null for a task that was attached by its id
    body             BLOB    NOT NULL,         -- the exact bytes that every POST of the job sends
    created_at       TEXT    NOT NULL,
    batch            TEXT,                     -- the named batch that counts its charges, or null
    budget           TEXT,                     -- the budget that counts them too, or null
    priority         INTEGER NOT NULL DEFAULT 0, -- higher ones are sent first
    group_name       TEXT,                     -- whose jobs get their turns together: of a user, of a tenant
    slots            INTEGER NOT NULL DEFAULT 1, -- job slots of the account that it takes
    state            TEXT    NOT NULL,
    revision         INTEGER NOT NULL,         -- number of writes; each is a compare-and-swap on it
    generation       INTEGER NOT NULL,         -- number of deliberate purchases
    attempts         INTEGER NOT NULL,
    first_sent_at    TEXT,
    in_doubt         INTEGER NOT NULL,
    sent_at          TEXT,                     -- when the create left whose answer is awaited or lost
    lost_at          TEXT,                     -- until when it or a repeat may have been processed
    conflict_at      TEXT,                     -- when a repeat last got 409
    candidates       TEXT    NOT NULL,         -- tasks in the gateway's history that could be this job
    task_id          TEXT,
    running_since    TEXT,
    ended_at         TEXT,
    images           TEXT    NOT NULL,
    missing          TEXT    NOT NULL,         -- image positions without an image, each with the reason
    credits_used     TEXT,
    credits_refunded TEXT,
    model            TEXT,
    failure          TEXT,
    owner            TEXT                      -- the current owner, or the last one if ended; null: released
) STRICT;

-- Active and uncertain jobs, found without reading the finished ones, of which there may be a million.
CREATE INDEX jobs_open ON jobs (account, id, state, owner)
    WHERE state IN ('pending', 'submitting', 'running', 'uncertain');

CREATE INDEX jobs_task ON jobs (account, task_id) WHERE task_id IS NOT NULL;

CREATE INDEX jobs_state ON jobs (state);

-- One row for each purchase of a job and each batch or budget that counts it, written in the transaction of the job's
-- transition. A later purchase of the job adds rows; one that certainly did not happen keeps its rows, with 0 credits.
-- Credits are whole billionths here, so that SQLite sums them exactly.
CREATE TABLE charges (
    job         INTEGER NOT NULL,              -- jobs.id
    generation  INTEGER NOT NULL,
    batch       TEXT    NOT NULL,              -- or `budget DAY NAME`, where DAY is `all` or a day in UTC
    account     TEXT    NOT NULL,
    price_class TEXT    NOT NULL,
    credits     INTEGER NOT NULL,              -- reserved or charged, after refunds
    basis       TEXT    NOT NULL,              -- reported, agreed: a price; expected, example: an estimate
    PRIMARY KEY (job, generation, batch)
) STRICT, WITHOUT ROWID;

CREATE INDEX charges_estimates ON charges (batch) WHERE basis IN ('expected', 'example');

CREATE INDEX charges_of_class ON charges (account, price_class) WHERE basis IN ('expected', 'example');

-- The sum of the charges of a batch or budget. Deleting a charge does not reduce it, so pruned jobs still count.
CREATE TABLE spending (
    batch    TEXT PRIMARY KEY,
    credits  INTEGER NOT NULL,
    unpriced INTEGER NOT NULL DEFAULT 0        -- pruned jobs whose price was still an estimate
) STRICT, WITHOUT ROWID;

CREATE TRIGGER charge_added AFTER INSERT ON charges BEGIN
    INSERT INTO spending (batch, credits) VALUES (new.batch, new.credits)
        ON CONFLICT (batch) DO UPDATE SET credits = min(credits + excluded.credits, 9000000000000000000);
END;

CREATE TRIGGER charge_changed AFTER UPDATE OF credits ON charges WHEN new.credits <> old.credits BEGIN
    UPDATE spending SET credits = min(credits + new.credits - old.credits, 9000000000000000000)
        WHERE batch = new.batch;
END;

CREATE TRIGGER job_pruned AFTER DELETE ON jobs WHEN old.batch IS NOT NULL OR old.budget IS NOT NULL BEGIN
    DELETE FROM charges WHERE job = old.id;
END;

CREATE TRIGGER charge_pruned AFTER DELETE ON charges WHEN old.basis IN ('expected', 'example') BEGIN
    UPDATE spending SET unpriced = unpriced + 1 WHERE batch = old.batch;
END;

-- The named budgets; the value that was stored last holds for all.
CREATE TABLE budgets (
    name        TEXT PRIMARY KEY,
    max_credits INTEGER NOT NULL,
    per         TEXT                           -- `day`: each day in UTC counts for itself; null: all that was ever spent
) STRICT, WITHOUT ROWID;

-- The last price that the gateway reported for each price class.
CREATE TABLE prices (
    account     TEXT NOT NULL,
    price_class TEXT NOT NULL,
    credits     INTEGER NOT NULL,
    PRIMARY KEY (account, price_class)
) STRICT, WITHOUT ROWID;

-- What sessions learned about an account: limits, durations and prices as JSON. The last writer wins.
CREATE TABLE learned (
    account TEXT PRIMARY KEY,
    facts   TEXT NOT NULL
) STRICT, WITHOUT ROWID;

-- The reference images that an account has uploaded, by the SHA-256 of their content; never the content itself.
CREATE TABLE uploads (
    account     TEXT    NOT NULL,
    digest      TEXT    NOT NULL,
    url         TEXT    NOT NULL,
    size        INTEGER NOT NULL,
    uploaded_at TEXT    NOT NULL,
    PRIMARY KEY (account, digest)
) STRICT, WITHOUT ROWID;

-- The key that signs callback URLs. A forged callback only triggers a poll, so a leaked key buys nothing.
CREATE TABLE secrets (
    name  TEXT PRIMARY KEY,
    value BLOB NOT NULL
) STRICT;

-- Callback notices: the process that received a callback leaves one for the job's owner.
CREATE TABLE callback_notices (
    owner   TEXT NOT NULL,
    key     TEXT NOT NULL,
    task_id TEXT,
    PRIMARY KEY (owner, key)
) STRICT, WITHOUT ROWID;
