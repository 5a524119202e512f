-- Everything that one namespace keeps in a database, version 1. {ns} stands for the namespace's prefix.
--
-- All points in time are microseconds since the epoch, all durations microseconds: integers come back exactly, also
-- through SQLite's JSON functions. States are numbers, see encoding.py: 0 fresh, 1 scheduled, 2 ready,
-- 3 running, 4 succeeded, 5 failed, 6 cancelled, 7 blocked.

-- What this is: schema = the version of the tables below, revision_floor = the largest revision of any schedule that was
-- deleted; new ones begin above it.
CREATE TABLE "{ns}.meta" (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;

-- One row a task, from enqueue until it is pruned. The columns that change come first, so that reading them does not
-- step over the body; a body that would make the row wide, and every change of it dear, lives in "body".
CREATE TABLE "{ns}.task" (
    seq         INTEGER PRIMARY KEY,      -- the order of enqueueing
    state       INTEGER NOT NULL,
    delivery    INTEGER NOT NULL DEFAULT 0,
    attempt     INTEGER NOT NULL DEFAULT 0,
    cancel      INTEGER,                  -- 1: asked to stop
    run_at      INTEGER NOT NULL,         -- when it became, or will become, ready: its place in the queue
    expires_at  INTEGER,
    lease_until INTEGER,
    lease       INTEGER,                  -- how long the latest lease was, to tell a clock that was put back
    started_at  INTEGER,
    finished_at INTEGER,
    delete_at   INTEGER,                  -- when its result_ttl is over
    priority    INTEGER NOT NULL,
    created_at  INTEGER NOT NULL,
    ttl         INTEGER,                  -- NULL: it is kept as long as its flow
    queue       TEXT NOT NULL,
    id          TEXT NOT NULL UNIQUE,
    name        TEXT NOT NULL,
    worker      TEXT,
    flow        TEXT,                     -- the flow that it belongs to,
    behind      INTEGER,                  -- the gate of it that must open first,
    feeds       TEXT,                     -- those that count its end: JSON,
    opening_delay REAL,                   -- and in how many seconds after the opening it starts
    line        TEXT,                     -- that it stands in while it is ready, see omniq.limit.line_id; NULL: plain
    limit_key   TEXT,                     -- its key,
    limit_name  TEXT,                     -- its named limit,
    first_at    INTEGER,                  -- and of a debounced one when the first was enqueued whose place it took
    unique_key  TEXT,
    options     TEXT NOT NULL,            -- JSON: what of the order no statement asks for, see encoding.py
    error       TEXT,                     -- JSON
    progress    TEXT,                     -- JSON
    attempt_log TEXT,                     -- not looked into
    body        BLOB,                     -- NULL: it is in the table "body"
    result      BLOB
) STRICT;

-- Each partial index holds only the tasks of its states, so that claiming costs the same whatever else is stored.
CREATE INDEX "{ns}.ready" ON "{ns}.task" (queue, priority DESC, run_at) WHERE state = 2 AND line IS NULL;
CREATE INDEX "{ns}.scheduled" ON "{ns}.task" (queue, run_at) WHERE state = 1;
CREATE INDEX "{ns}.running" ON "{ns}.task" (lease_until) WHERE state = 3;
-- A debounced task has its key until it is started.
CREATE UNIQUE INDEX "{ns}.unique" ON "{ns}.task" (unique_key)
WHERE unique_key IS NOT NULL AND state < 4 AND (first_at IS NULL OR delivery = 0);
CREATE INDEX "{ns}.expiry" ON "{ns}.task" (expires_at) WHERE expires_at IS NOT NULL AND state < 3;
-- Those that no claim looks at: ended, or blocked.
CREATE INDEX "{ns}.apart" ON "{ns}.task" (queue, state) WHERE finished_at IS NOT NULL OR state = 7;
CREATE INDEX "{ns}.member" ON "{ns}.task" (flow, state, behind) WHERE flow IS NOT NULL;
CREATE INDEX "{ns}.retention" ON "{ns}.task" (delete_at) WHERE delete_at IS NOT NULL;
-- Of tasks that have a key or a named limit, in any state. One index, since each that minds the state costs all tasks.
CREATE INDEX "{ns}.lined" ON "{ns}.task" (line, state, priority DESC, run_at) WHERE line IS NOT NULL;

CREATE TABLE "{ns}.body" (seq INTEGER PRIMARY KEY, body BLOB NOT NULL) STRICT;

-- What the gates of flows count is in their bodies, which are JSON, see omniq.storage.rows.
CREATE TABLE "{ns}.flow" (
    id         TEXT PRIMARY KEY,
    unique_key TEXT UNIQUE,               -- of one that has not ended
    ended      INTEGER NOT NULL,
    due        INTEGER,                   -- when there is something to do about it, see transitions.due_at
    body       TEXT NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX "{ns}.flow_due" ON "{ns}.flow" (ended, due) WHERE due IS NOT NULL;
CREATE TABLE "{ns}.gate" (
    flow TEXT NOT NULL, n INTEGER NOT NULL, body TEXT NOT NULL, PRIMARY KEY (flow, n)
) STRICT, WITHOUT ROWID;

CREATE TABLE "{ns}.tag" (tag TEXT NOT NULL, seq INTEGER NOT NULL, PRIMARY KEY (tag, seq)) STRICT, WITHOUT ROWID;
CREATE INDEX "{ns}.tagged" ON "{ns}.tag" (seq);

-- How many tasks each queue has in each state. The row ('', -1) holds the last seq that is counted: tasks behind it,
-- a few hundred at most, are counted when they are asked for, see transaction.py.
CREATE TABLE "{ns}.counter" (
    queue TEXT NOT NULL, state INTEGER NOT NULL, n INTEGER NOT NULL, PRIMARY KEY (queue, state)
) STRICT, WITHOUT ROWID;
INSERT INTO "{ns}.counter" (queue, state, n) VALUES ('', -1, 0);

-- Limits, and the lines that wait at them, as omniq.storage.sql.limits reads and writes them.
CREATE TABLE "{ns}.task_limit" (id TEXT PRIMARY KEY, name TEXT NOT NULL, body TEXT NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE "{ns}.lane" (queue TEXT PRIMARY KEY, body TEXT NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE "{ns}.line" (
    id          TEXT PRIMARY KEY,
    queue       TEXT NOT NULL,
    key_scope   TEXT,
    place       TEXT NOT NULL,
    first_rank  INTEGER NOT NULL,
    second_rank INTEGER NOT NULL,
    body        TEXT NOT NULL             -- JSON
) STRICT, WITHOUT ROWID;
CREATE INDEX "{ns}.line_place" ON "{ns}.line" (queue, place, first_rank, second_rank);
CREATE INDEX "{ns}.line_parked" ON "{ns}.line" (place, queue);
CREATE INDEX "{ns}.line_key" ON "{ns}.line" (key_scope) WHERE key_scope IS NOT NULL;
CREATE TABLE "{ns}.bucket" (id TEXT PRIMARY KEY, at_rest INTEGER NOT NULL) STRICT, WITHOUT ROWID;
CREATE INDEX "{ns}.bucket_rest" ON "{ns}.bucket" (at_rest);

CREATE TABLE "{ns}.paused" (queue TEXT PRIMARY KEY) STRICT, WITHOUT ROWID;

CREATE TABLE "{ns}.worker" (
    id TEXT PRIMARY KEY, seen_at INTEGER NOT NULL, until INTEGER NOT NULL,
    about TEXT                            -- what it tells about itself, not looked into
) STRICT, WITHOUT ROWID;

CREATE TABLE "{ns}.schedule" (
    id       TEXT PRIMARY KEY,
    revision INTEGER NOT NULL,
    next_run INTEGER,
    paused   INTEGER NOT NULL,
    body     TEXT NOT NULL                -- JSON
) STRICT, WITHOUT ROWID;
CREATE INDEX "{ns}.due" ON "{ns}.schedule" (next_run) WHERE next_run IS NOT NULL AND paused = 0;

-- Who is to be woken, by a datagram to a port of this machine that carries the token. Topics: q:QUEUE (a task of it is
-- ready), s: (a schedule is due sooner than before), t:ID (the task has ended).
CREATE TABLE "{ns}.waiter" (
    topic TEXT NOT NULL,
    token INTEGER NOT NULL,
    port  INTEGER NOT NULL,
    until INTEGER NOT NULL,
    PRIMARY KEY (topic, token)
) STRICT, WITHOUT ROWID;
CREATE INDEX "{ns}.token" ON "{ns}.waiter" (token);

INSERT INTO "{ns}.meta" (key, value) VALUES ('schema', '1'), ('revision_floor', '0');
