-- tasks, schedules, workers
-- States are numbers: 0 blocked, 1 scheduled, 2 ready, 3 running, 4 succeeded, 5 failed, 6 cancelled.

CREATE SEQUENCE {order};

-- The order of a producer: written once, never changed, until the task is deleted or pruned. Its key is what makes
-- enqueueing idempotent through a task's whole life.
CREATE TABLE {task} (
    id          uuid PRIMARY KEY,
    seq         bigint NOT NULL,                -- the order of enqueueing
    created_at  timestamptz NOT NULL,
    result_ttl  double precision NOT NULL,      -- seconds
    max_retries integer NOT NULL,
    priority    smallint NOT NULL,
    queue       text COLLATE "C" NOT NULL,
    name        text COLLATE "C" NOT NULL,
    unique_key  text COLLATE "C",
    tags        text[],
    member      text COLLATE "C",               -- JSON: the task's place in its flow
    body        bytea NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0.05, autovacuum_analyze_scale_factor = 0.05);

ALTER TABLE {task} ALTER COLUMN body SET STORAGE EXTERNAL;
CREATE INDEX {seq_index} ON {task} (seq);
CREATE INDEX {tagged_index} ON {task} USING gin (tags) WHERE tags IS NOT NULL;

-- Tasks that have not ended: what claim, finish and heartbeat change, and nothing else.
CREATE TABLE {live} (
    run_at      timestamptz NOT NULL,           -- when it became, or will become, ready: its place in the queue
    lease_until timestamptz,
    started_at  timestamptz,
    expires_at  timestamptz,
    result_ttl  double precision NOT NULL,
    seq         bigint NOT NULL,
    delivery    integer NOT NULL DEFAULT 0,     -- the fencing token
    attempt     integer NOT NULL DEFAULT 0,
    state       smallint NOT NULL,
    priority    smallint NOT NULL,
    cancel      boolean NOT NULL DEFAULT false, -- asked to stop
    id          uuid PRIMARY KEY,
    queue       text COLLATE "C" NOT NULL,
    worker      text COLLATE "C",
    key         text COLLATE "C",               -- of the unique key, cut to a length that an index can hold
    error       text COLLATE "C",               -- JSON
    attempt_log text COLLATE "C",               -- not looked into
    progress    text COLLATE "C",               -- JSON
    flow        uuid,
    behind      bigint                          -- the gate of the flow behind which it stands
) WITH (
    fillfactor = 80,
    -- Rows live for moments here: what they leave behind is to go soon, and at full speed.
    autovacuum_vacuum_scale_factor = 0.01,
    autovacuum_vacuum_threshold = 500,
    autovacuum_vacuum_insert_scale_factor = 0.1,
    autovacuum_vacuum_cost_delay = 0,
    autovacuum_analyze_scale_factor = 0.05,
    autovacuum_analyze_threshold = 1000
);

-- Each partial index holds only the tasks of its states, so that claiming costs the same whatever else is stored.
CREATE INDEX {ready_index} ON {live} (queue, priority DESC, run_at, seq) WHERE state = 2;
CREATE INDEX {scheduled_index} ON {live} (queue, run_at) WHERE state = 1;
CREATE INDEX {running_index} ON {live} (lease_until) WHERE state = 3;
CREATE INDEX {expiry_index} ON {live} (expires_at) WHERE expires_at IS NOT NULL AND state IN (1, 2);
CREATE UNIQUE INDEX {key_index} ON {live} (key) WHERE key IS NOT NULL;
CREATE INDEX {blocked_index} ON {live} (queue, seq) WHERE state = 0;
CREATE INDEX {waiting_index} ON {live} (flow, behind, seq) WHERE flow IS NOT NULL;

-- Tasks that have ended, until their result_ttl is over.
CREATE TABLE {ended} (
    run_at      timestamptz NOT NULL,
    started_at  timestamptz,
    finished_at timestamptz NOT NULL,
    delete_at   timestamptz NOT NULL,
    expires_at  timestamptz,
    seq         bigint NOT NULL,
    delivery    integer NOT NULL,
    attempt     integer NOT NULL,
    state       smallint NOT NULL,
    cancel      boolean NOT NULL,
    id          uuid PRIMARY KEY,
    queue       text COLLATE "C" NOT NULL,
    worker      text COLLATE "C",
    error       text COLLATE "C",
    attempt_log text COLLATE "C",
    progress    text COLLATE "C",
    flow        uuid,
    behind      bigint,
    uncounted   boolean NOT NULL DEFAULT false, -- in the gates of its flow: done under the flow's lock, in a next step
    result      bytea
) WITH (autovacuum_vacuum_scale_factor = 0.05, autovacuum_analyze_scale_factor = 0.05);

ALTER TABLE {ended} ALTER COLUMN result SET STORAGE EXTERNAL;
CREATE INDEX {history_index} ON {ended} (queue, state, seq);
-- Of a flow's tasks for ever: they go with it.
CREATE INDEX {retention_index} ON {ended} (delete_at);
CREATE INDEX {gone_index} ON {ended} (flow, behind, seq) WHERE flow IS NOT NULL;
CREATE INDEX {uncounted_index} ON {ended} (flow) WHERE uncounted;

-- Flows and their gates: JSON, as omniq.storage.rows writes them. Whoever changes one has its flow locked.
CREATE TABLE {flow} (
    id    uuid PRIMARY KEY,
    due   timestamptz,                          -- when there is something to do about it
    ended boolean NOT NULL,
    key   text COLLATE "C",                     -- until it has ended, cut as that of a task
    body  text COLLATE "C" NOT NULL
) WITH (
    fillfactor = 50,
    autovacuum_vacuum_scale_factor = 0.05,
    autovacuum_vacuum_threshold = 200,
    autovacuum_vacuum_cost_delay = 0
);

CREATE INDEX {flow_due_index} ON {flow} (ended, due) WHERE due IS NOT NULL;
CREATE UNIQUE INDEX {flow_key_index} ON {flow} (key) WHERE key IS NOT NULL;

CREATE TABLE {gate} (
    flow uuid NOT NULL,
    n    bigint NOT NULL,
    body text COLLATE "C" NOT NULL,
    PRIMARY KEY (flow, n)
) WITH (
    fillfactor = 50,
    autovacuum_vacuum_scale_factor = 0.05,
    autovacuum_vacuum_threshold = 200,
    autovacuum_vacuum_cost_delay = 0
);

-- How many tasks each queue has in each state. Nobody waits for a counter: a change appends what it adds and takes
-- away to "delta", and from time to time some of that is summed up into "counter".
CREATE TABLE {delta} (
    scheduled integer NOT NULL,
    ready     integer NOT NULL,
    running   integer NOT NULL,
    succeeded integer NOT NULL,
    failed    integer NOT NULL,
    cancelled integer NOT NULL,
    queue     text COLLATE "C" NOT NULL,
    blocked   integer NOT NULL DEFAULT 0
) WITH (autovacuum_vacuum_scale_factor = 0.1, autovacuum_vacuum_threshold = 500, autovacuum_vacuum_cost_delay = 0);

CREATE TABLE {counter} (
    queue     text COLLATE "C" PRIMARY KEY,
    scheduled bigint NOT NULL,
    ready     bigint NOT NULL,
    running   bigint NOT NULL,
    succeeded bigint NOT NULL,
    failed    bigint NOT NULL,
    cancelled bigint NOT NULL,
    blocked   bigint NOT NULL DEFAULT 0
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.1, autovacuum_vacuum_threshold = 200);

CREATE TABLE {paused} (queue text COLLATE "C" PRIMARY KEY);

CREATE TABLE {worker} (
    id      text COLLATE "C" PRIMARY KEY,
    seen_at timestamptz NOT NULL,
    until   timestamptz NOT NULL,
    about   text                                -- what it tells about itself, not looked into
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.1, autovacuum_vacuum_threshold = 200);

CREATE TABLE {schedule} (
    id       text COLLATE "C" PRIMARY KEY,
    revision bigint NOT NULL,
    next_run timestamptz,
    paused   boolean NOT NULL,
    body     text NOT NULL                      -- JSON
);
-- One row: the largest revision of any schedule that was deleted. New ones begin above it.
CREATE TABLE {revision} (floor bigint NOT NULL);
INSERT INTO {revision} VALUES (0);

CREATE INDEX {due_index} ON {schedule} (next_run) WHERE next_run IS NOT NULL AND NOT paused;
