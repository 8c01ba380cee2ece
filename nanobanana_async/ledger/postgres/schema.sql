-- The ledger of nanobanana_async on PostgreSQL, version 1. Readable with any tool; written by the library only.
--
-- The library creates the schema and sets search_path, so no name here is qualified. API keys are never stored:
-- `account` is a fingerprint, or the gateway's name and a name that the user chose. Prompts are stored.
-- A text that PostgreSQL can't hold (with a NUL or half of a surrogate pair) is stored as `json:` and its JSON form.

CREATE TABLE meta (
    version    integer NOT NULL,                -- of these tables
    min_client integer NOT NULL                 -- the oldest version of the library's ledger that may open them
);

-- The timelines of the server on which owners wrote: a new one begins when a standby is promoted or a backup restored. The
-- last commits of the one before may be lost, so owners first write again what they know.
CREATE TABLE timelines (
    timeline text        PRIMARY KEY,           -- the server's system identifier and timeline; empty: it does not show it
    since    timestamptz NOT NULL DEFAULT clock_timestamp() -- when the first owner came
);

-- One row for each ledger that is open for writing. Its number is never given again on a timeline, so it fences every write.
CREATE TABLE owners (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    host       text             NOT NULL,
    process    integer          NOT NULL,
    client     text             NOT NULL,       -- the version of the library
    opened_at  timestamptz      NOT NULL DEFAULT clock_timestamp(),
    lease_s    double precision NOT NULL,       -- how long it may be silent
    timeline   text             NOT NULL DEFAULT '', -- when it was opened
    beat       bigint           NOT NULL DEFAULT 0,
    beat_at    timestamptz      NOT NULL DEFAULT clock_timestamp(), -- for people and lists; no owner is buried by it
    buried_by  bigint,                          -- the owner that found it silent; it never comes back
    buried_at  timestamptz,
    refused    integer          NOT NULL DEFAULT 0 -- its writes of jobs that were another owner's by then
) WITH (fillfactor = 50);

CREATE TABLE jobs (
    id               bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, -- the order in which jobs were inserted
    key              text COLLATE "C" NOT NULL UNIQUE,
    gateway          text        NOT NULL,
    account          text        NOT NULL,
    request          json,                      -- json, not jsonb: a gateway's text may hold \u0000 or half a surrogate pair
    body             bytea       NOT NULL,      -- the exact bytes that every POST of the job sends
    created_at       timestamptz NOT NULL,
    batch            text,                      -- the named batch that counts its charges, or null
    budget           text,                      -- the budget that counts them too, or null
    priority         integer     NOT NULL DEFAULT 0, -- higher ones are sent first
    group_name       text,                      -- whose jobs get their turns together: of a user, of a tenant
    slots            integer     NOT NULL DEFAULT 1, -- job slots of the account that it takes
    state            text        NOT NULL,
    revision         integer     NOT NULL,      -- number of writes; each is a compare-and-swap on it
    generation       integer     NOT NULL,      -- number of deliberate purchases
    attempts         integer     NOT NULL,
    first_sent_at    timestamptz,
    in_doubt         boolean     NOT NULL,
    sent_at          timestamptz,
    lost_at          timestamptz,
    conflict_at      timestamptz,
    candidates       json        NOT NULL,
    task_id          text COLLATE "C",
    running_since    timestamptz,
    ended_at         timestamptz,
    images           json        NOT NULL,
    missing          json        NOT NULL,
    credits_used     numeric,
    credits_refunded numeric,
    model            text,
    failure          json,
    owner            bigint,                    -- the current owner, or the last one if ended; null: released
    fed              boolean     NOT NULL DEFAULT false -- a row of a fed batch: as long as it waits, workers draw it
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02, autovacuum_analyze_scale_factor = 0.02);

-- The jobs that wait for an owner and are no rows of a fed batch, in their order. An index that begins with `owner` would have to sort them all.
CREATE INDEX jobs_free ON jobs (account, id) WHERE state = 'pending' AND owner IS NULL AND NOT fed;

-- What holds a slot of the account, or may hold one: never more rows than the account has slots and doubts.
CREATE INDEX jobs_sent ON jobs (account, id) WHERE state IN ('submitting', 'running', 'uncertain');

CREATE INDEX jobs_owned ON jobs (owner) WHERE owner IS NOT NULL AND state IN ('pending', 'submitting', 'running');

CREATE INDEX jobs_task ON jobs (account, task_id) WHERE task_id IS NOT NULL;

-- Two purchases can't share one task, even when two hosts write at once. Attached tasks were never sent.
CREATE UNIQUE INDEX jobs_task_once ON jobs (account, task_id) WHERE task_id IS NOT NULL AND first_sent_at IS NOT NULL;

CREATE INDEX jobs_state ON jobs (state, id);

CREATE INDEX jobs_batch ON jobs (batch) WHERE batch IS NOT NULL;

-- What holds for all rows of a fed batch. Who feeds it locks its row.
CREATE TABLE fed_batches (
    batch            text    PRIMARY KEY,       -- the prefix of its keys, as in jobs: a hash of its name
    name             text    NOT NULL,          -- for people
    gateway          text    NOT NULL,
    account          text    NOT NULL,
    max_credits      numeric,                   -- null: no cap
    expected_credits numeric,
    fed              bigint  NOT NULL DEFAULT 0 -- number of rows
);

-- The rows of fed batches: what an outcome needs beside the job, and which worker has drawn it.
CREATE TABLE fed_rows (
    job       bigint  PRIMARY KEY,              -- an id of jobs; deleted with it
    batch     text    NOT NULL,
    row_index bigint  NOT NULL,
    place     bigint,                           -- among the rows without a key; null: it has a key
    own_key   text,
    digest    text    NOT NULL,                 -- of the request
    metadata  text,                             -- JSON
    name      text    NOT NULL,                 -- of its images
    worker    bigint,                           -- the owner that has drawn it
    delivered integer                           -- the revision of the job whose outcome was taken; -1: images not saved
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02, autovacuum_analyze_scale_factor = 0.02);

-- Rows without a key are distinguished by their order: a second input with other rows at these places is refused.
CREATE UNIQUE INDEX fed_rows_place ON fed_rows (batch, place) WHERE place IS NOT NULL;

-- The rows to draw, in the order of the input.
CREATE INDEX fed_rows_free ON fed_rows (batch, row_index, job) WHERE worker IS NULL AND delivered IS NULL;

-- The rows that workers have in hand: never more than all of them run and queue.
CREATE INDEX fed_rows_drawn ON fed_rows (batch, worker) WHERE worker IS NOT NULL AND delivered IS NULL;

CREATE INDEX fed_rows_unsaved ON fed_rows (batch) WHERE delivered < 0;

-- One row for each purchase of a job and each batch or budget that counts it, written in the transaction of the job's
-- transition. A later purchase of the job adds rows; one that certainly did not happen keeps its rows, with 0 credits.
CREATE TABLE charges (
    job         bigint  NOT NULL,               -- an id of jobs; deleted with it
    generation  integer NOT NULL,
    batch       text    NOT NULL,               -- or `budget DAY NAME`, where DAY is `all` or a day in UTC
    account     text    NOT NULL,
    price_class text    NOT NULL,
    credits     numeric NOT NULL,               -- reserved or charged, after refunds
    basis       text    NOT NULL,               -- reported, agreed: a price; expected, example: an estimate
    cap         numeric,                        -- the cap under which it was reserved; null: none, or the price is known
    PRIMARY KEY (job, generation, batch)
) WITH (fillfactor = 80);

CREATE INDEX charges_estimates ON charges (batch) WHERE basis IN ('expected', 'example');

CREATE INDEX charges_of_class ON charges (account, price_class) WHERE basis IN ('expected', 'example');

-- The sum of the charges of a batch or budget. Deleting a charge does not reduce it, so pruned jobs still count.
CREATE TABLE spending (
    batch    text    PRIMARY KEY,
    credits  numeric NOT NULL DEFAULT 0,
    unpriced integer NOT NULL DEFAULT 0         -- pruned jobs whose price was still an estimate
) WITH (fillfactor = 50);

-- The writer locks the batch's row and compares before it reserves. Should two ever pass that, this refuses the second.
CREATE FUNCTION charge_written() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    change numeric := new.credits;
    total  numeric;
BEGIN
    IF TG_OP = 'UPDATE' THEN
        change := new.credits - old.credits;
        IF change = 0 THEN RETURN NULL; END IF;
    END IF;
    UPDATE spending SET credits = credits + change WHERE batch = new.batch RETURNING credits INTO total;
    IF NOT FOUND THEN
        INSERT INTO spending (batch, credits) VALUES (new.batch, change)
            ON CONFLICT (batch) DO UPDATE SET credits = spending.credits + excluded.credits
            RETURNING credits INTO total;
    END IF;
    IF change > 0 AND total > new.cap THEN
        RAISE check_violation USING MESSAGE = format('batch %s would pass its cap', new.batch);
    END IF;
    RETURN NULL;
END $$;

CREATE TRIGGER charge_written AFTER INSERT OR UPDATE OF credits ON charges
    FOR EACH ROW EXECUTE FUNCTION charge_written();

CREATE FUNCTION charge_pruned() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    UPDATE spending SET unpriced = unpriced + 1 WHERE batch = old.batch;
    RETURN NULL;
END $$;

CREATE TRIGGER charge_pruned AFTER DELETE ON charges
    FOR EACH ROW WHEN (old.basis IN ('expected', 'example')) EXECUTE FUNCTION charge_pruned();

-- The named budgets; the value that was stored last holds for all.
CREATE TABLE budgets (
    name        text COLLATE "C" PRIMARY KEY,
    max_credits numeric NOT NULL,
    per         text                            -- `day`: each day in UTC counts for itself; null: all that was ever spent
);

-- The last price that the gateway reported for each price class; null: estimates were reserved, no price is known.
CREATE TABLE prices (
    account     text NOT NULL,
    price_class text NOT NULL,
    credits     numeric,
    PRIMARY KEY (account, price_class)
);

-- What sessions learned about an account: limits, durations and prices as JSON. The last writer wins.
CREATE TABLE learned (
    account text PRIMARY KEY,
    facts   text NOT NULL
);

-- What all owners learned together about the limits of an account, as JSON of the library (`policy/sharing.py`). Written
-- without a disk flush: should it be lost, the limits are learned again.
CREATE TABLE accounts (
    account text PRIMARY KEY,
    state   text
) WITH (fillfactor = 50);

-- The part of an account's job limit that each owner has. Those of living owners count. Times are seconds since 1970.
CREATE TABLE shares (
    account     text             NOT NULL,
    owner       bigint           NOT NULL,
    granted     integer          NOT NULL,      -- slots that it may take, or has taken
    target      integer          NOT NULL,      -- its fair share: it gives back what it has above it as its jobs end
    held        integer          NOT NULL,      -- slots of its jobs
    in_flight   integer          NOT NULL,      -- slots of its creates that have no answer yet
    queued      integer          NOT NULL,      -- slots that its queued jobs would take
    urgent      integer          NOT NULL DEFAULT 0, -- of these, slots for jobs with a priority above 0
    interactive boolean          NOT NULL,
    reserve     integer          NOT NULL,      -- slots that are kept free for interactive owners
    used        double precision NOT NULL,      -- slot-seconds of late
    spoke_at    double precision NOT NULL,
    hungry_at   double precision,               -- when it last wanted more slots than it had
    reports     bigint           NOT NULL,
    PRIMARY KEY (account, owner)
) WITH (fillfactor = 50);

-- The reference images that an account has uploaded, by the SHA-256 of their content; never the content itself.
CREATE TABLE uploads (
    account     text        NOT NULL,
    digest      text        NOT NULL,
    url         text        NOT NULL,
    size        bigint      NOT NULL,
    uploaded_at timestamptz NOT NULL,
    PRIMARY KEY (account, digest)
);

-- The key that signs callback URLs. A forged callback only triggers a poll, so a leaked key buys nothing.
CREATE TABLE secrets (
    name  text  PRIMARY KEY,
    value bytea NOT NULL
);

-- Callback notices: the process that received a callback leaves one for the job's owner.
CREATE TABLE callback_notices (
    owner   bigint NOT NULL,
    key     text   NOT NULL,
    task_id text,
    PRIMARY KEY (owner, key)
);

-- What `nanobanana hosts` shows, for dashboards too: no prompt, no image, no secret. Seconds by the server's clock.
CREATE VIEW owner_metrics AS
SELECT o.id AS owner, o.host, o.process, o.client,
       extract(epoch FROM clock_timestamp() - o.opened_at)::float8 AS open_s,
       extract(epoch FROM clock_timestamp() - o.beat_at)::float8 AS silent_s,
       o.lease_s, o.refused, s.account, s.granted, s.target, s.held, s.in_flight, s.queued, s.interactive, s.reserve
FROM owners AS o LEFT JOIN shares AS s ON s.owner = o.id
WHERE o.buried_by IS NULL;

CREATE VIEW account_metrics AS
SELECT a.account, (a.state::json #>> '{limiter,job_limit,cap}')::float8 AS job_limit,
       greatest(0, (a.state::json ->> 'gate_until')::float8 - extract(epoch FROM clock_timestamp()))::float8 AS gate_s,
       coalesce(j.waiting, 0) AS waiting, coalesce(j.running, 0) AS running, coalesce(j.orphans, 0) AS orphans,
       coalesce(j.orphan_slots, 0) AS orphan_slots, coalesce(j.uncertain, 0) AS uncertain, j.oldest_uncertain_s
FROM (SELECT account, state FROM accounts
      UNION ALL
      SELECT DISTINCT account, NULL FROM jobs
      WHERE state IN ('pending', 'submitting', 'running', 'uncertain') AND account NOT IN (SELECT account FROM accounts)
     ) AS a
LEFT JOIN (SELECT account,
                  count(*) FILTER (WHERE state = 'pending') AS waiting,
                  count(*) FILTER (WHERE state IN ('submitting', 'running')) AS running,
                  count(*) FILTER (WHERE state IN ('submitting', 'running') AND owner IS NULL) AS orphans,
                  sum(slots) FILTER (WHERE state IN ('submitting', 'running') AND owner IS NULL) AS orphan_slots,
                  count(*) FILTER (WHERE state = 'uncertain') AS uncertain,
                  extract(epoch FROM clock_timestamp() - min(first_sent_at) FILTER (WHERE state = 'uncertain'))::float8
                      AS oldest_uncertain_s
           FROM jobs WHERE state IN ('pending', 'submitting', 'running', 'uncertain') GROUP BY account
          ) AS j ON j.account = a.account;

CREATE VIEW batch_metrics AS
SELECT coalesce(f.batch, s.batch) AS batch, f.name, f.account, f.fed, f.max_credits, coalesce(s.credits, 0) AS credits
FROM fed_batches AS f FULL JOIN (SELECT * FROM spending WHERE batch NOT LIKE 'budget %') AS s ON s.batch = f.batch;

CREATE VIEW ledger_metrics AS
SELECT (SELECT count(*) FROM owners WHERE buried_by IS NOT NULL) AS burials,
       (SELECT extract(epoch FROM clock_timestamp() - max(buried_at))::float8 FROM owners) AS last_burial_s,
       (SELECT n_dead_tup FROM pg_stat_user_tables WHERE relid = 'jobs'::regclass) AS dead_rows,
       (SELECT extract(epoch FROM clock_timestamp() - min(xact_start))::float8 FROM pg_stat_activity
        WHERE datname = current_database() AND xact_start IS NOT NULL) AS oldest_transaction_s;
