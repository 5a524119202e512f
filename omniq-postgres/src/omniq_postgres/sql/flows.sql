-- A flow is changed by one transaction at a time, which has locked it by flows.lock: everything here but flows.left and
-- what only reads is run in such a one, see omniq_postgres.flow_tx. Ends of tasks need no lock: a statement that ends a
-- task marks it as uncounted, and flows.take, run under the lock, gives each of those once.

-- name: begin
BEGIN

-- name: patience
-- As behind a proxy no connection has it by itself: a client that stands still holds the flow for no longer.
SET LOCAL idle_in_transaction_session_timeout = {idle_in_transaction}

-- name: read_only
BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY

-- name: commit
COMMIT

-- name: rollback
ROLLBACK

-- name: lock
SELECT 'flow', id::text FROM {flow} WHERE id = ANY ($1::uuid[]) ORDER BY id FOR UPDATE

-- name: bodies
-- A statement of its own, so that it sees what was committed before the lock was had.
SELECT 'body', id::text, body FROM {flow} WHERE id = ANY ($1::uuid[])

-- name: take
-- The ends of tasks that are not counted yet, and now will be.
WITH s AS MATERIALIZED (
    UPDATE {ended} SET uncounted = false
    WHERE flow = ANY ($1::uuid[]) AND uncounted
    RETURNING id, flow, state, seq, error, started_at
)
SELECT 'end', s.id::text, s.flow::text, s.state, t.member,
       CASE WHEN s.state <> 4 THEN t.name END, CASE WHEN s.state <> 4 THEN s.error END,
       CASE WHEN s.state <> 4 THEN s.started_at END
FROM s CROSS JOIN LATERAL (SELECT member, name FROM {task} WHERE {task}.id = s.id LIMIT 1) AS t
ORDER BY s.seq

-- name: uncounted
SELECT EXISTS (SELECT FROM {ended} WHERE flow = ANY ($1::uuid[]) AND uncounted)

-- name: left
-- Flows with ends that are not counted: the client that was to do it has died, or is at it.
SELECT DISTINCT flow::text FROM {ended} WHERE uncounted AND flow IS NOT NULL LIMIT 100

-- name: left_of
-- The flows of those of some tasks whose end is not counted.
SELECT DISTINCT flow::text FROM {ended} WHERE id = ANY ($1::uuid[]) AND uncounted AND flow IS NOT NULL

-- name: gates
SELECT flow::text, n, body FROM {gate} WHERE flow = $1::uuid AND n = ANY ($2::bigint[])
UNION ALL
(SELECT flow::text, n, body FROM {gate} WHERE flow = $1::uuid AND n > $3 ORDER BY n LIMIT $4)

-- name: first_gates
-- Some gates of some flows; fewer than asked for are all of them.
SELECT 'gate', flow::text, n, body FROM {gate} WHERE flow = ANY ($1::uuid[]) LIMIT $2

-- name: all_gates
SELECT flow::text, n, body FROM {gate} WHERE flow = ANY ($1::uuid[])

-- name: add_gates
INSERT INTO {gate} (flow, n, body) SELECT $1::uuid, * FROM unnest($2::bigint[], $3::text[])

-- name: save_gates
UPDATE {gate} SET body = g.body
FROM unnest((SELECT $2::bigint[]), (SELECT $3::text[])) AS g (n, body)
WHERE {gate}.flow = $1::uuid AND {gate}.n = g.n

-- name: add
INSERT INTO {flow} (id, due, ended, key, body) VALUES ($1::uuid, $2::timestamptz, $3, $4::text, $5::text)

-- name: save
UPDATE {flow} SET due = $2::timestamptz, ended = $3, key = $4::text, body = $5::text WHERE id = $1::uuid

-- name: remove_flow
WITH gates AS (DELETE FROM {gate} WHERE flow = $1::uuid)
DELETE FROM {flow} WHERE id = $1::uuid

-- name: of_key
SELECT id::text FROM {flow} WHERE key = $1

-- name: due
SELECT id::text, body FROM {flow}
WHERE ended = $1 AND due IS NOT NULL AND due <= (SELECT clock_timestamp()) ORDER BY due LIMIT $2
FOR UPDATE SKIP LOCKED

-- name: over
SELECT EXISTS (SELECT FROM {flow} WHERE ended AND due IS NOT NULL AND due <= (SELECT clock_timestamp()))

-- name: put_off
-- What cannot be read is not to stand before the others for ever.
UPDATE {flow} SET due = NULL WHERE id = $1::uuid

-- name: records
SELECT id::text, body FROM {flow}

-- name: gate_records
SELECT flow::text, n, body FROM {gate}

-- name: live_members
WITH s AS MATERIALIZED (
    SELECT *, NULL::timestamptz AS finished_at, NULL::bytea AS result
    FROM {live}
    WHERE flow = $1::uuid AND ($2::bigint IS NULL OR behind = $2) AND state = ANY ($3::smallint[])
    ORDER BY seq LIMIT $4
    FOR UPDATE
)
SELECT {light} FROM s CROSS JOIN LATERAL (SELECT * FROM {task} WHERE {task}.id = s.id LIMIT 1) AS t ORDER BY t.seq

-- name: blocked_members
-- Those behind some gates, in the order of these.
WITH s AS MATERIALIZED (
    SELECT *, NULL::timestamptz AS finished_at, NULL::bytea AS result
    FROM {live}
    WHERE flow = $1::uuid AND behind BETWEEN $2 AND $3 AND state + 0 = 0
    ORDER BY behind, seq LIMIT $4
    FOR UPDATE
)
SELECT {light} FROM s CROSS JOIN LATERAL (SELECT * FROM {task} WHERE {task}.id = s.id LIMIT 1) AS t
ORDER BY s.behind, t.seq

-- name: running_members
-- One that is locked is being ended, perhaps in a caller's own transaction, which is not waited for.
WITH s AS MATERIALIZED (
    SELECT *, NULL::timestamptz AS finished_at, NULL::bytea AS result
    FROM {live}
    WHERE flow = $1::uuid AND ($2::bigint IS NULL OR behind = $2) AND state = ANY ($3::smallint[])
    ORDER BY seq LIMIT $4
    FOR UPDATE SKIP LOCKED
)
SELECT {light} FROM s CROSS JOIN LATERAL (SELECT * FROM {task} WHERE {task}.id = s.id LIMIT 1) AS t ORDER BY t.seq

-- name: ended_members
WITH s AS MATERIALIZED (
    SELECT *, NULL::timestamptz AS lease_until
    FROM {ended}
    WHERE flow = $1::uuid AND ($2::bigint IS NULL OR behind = $2) AND state = ANY ($3::smallint[]) AND NOT uncounted
    ORDER BY seq LIMIT $4
)
SELECT {light} FROM s CROSS JOIN LATERAL (SELECT * FROM {task} WHERE {task}.id = s.id LIMIT 1) AS t ORDER BY t.seq

-- name: count_members
SELECT state, count(*) FROM {live} WHERE flow = $1::uuid GROUP BY state
UNION ALL
SELECT CASE WHEN uncounted THEN 3 ELSE state END, count(*) FROM {ended} WHERE flow = $1::uuid GROUP BY 1

-- name: load_live
WITH s AS MATERIALIZED (
    SELECT *, NULL::timestamptz AS finished_at, NULL::bytea AS result
    FROM {live} WHERE id = ANY ($1::uuid[]) ORDER BY id FOR UPDATE
)
SELECT {light} FROM s CROSS JOIN LATERAL (SELECT * FROM {task} WHERE {task}.id = s.id LIMIT 1) AS t

-- name: load_ended
SELECT {light}
FROM (
    SELECT id, CASE WHEN uncounted THEN 3 ELSE state END AS state, attempt, delivery, run_at, started_at,
           CASE WHEN NOT uncounted THEN finished_at END AS finished_at, expires_at, worker, error, progress, cancel, flow,
           CASE WHEN uncounted THEN finished_at END AS lease_until
    FROM {ended} WHERE id = ANY ($1::uuid[])
) AS s
CROSS JOIN LATERAL (SELECT * FROM {task} WHERE {task}.id = s.id LIMIT 1) AS t

-- name: holders
SELECT key, id::text FROM {live}
WHERE key = ANY ($1::text[]) AND {live}.key IS NOT NULL AND ({live}.debounced IS NULL OR {live}.delivery = 0)

-- name: insert
WITH new AS MATERIALIZED (
    SELECT nextval('{order}') AS seq, n.*
    FROM unnest(
        $2::uuid[], $3::text[], $4::text[], $5::bytea[], $6::smallint[], $7::integer[], $8::timestamptz[],
        $9::timestamptz[], $10::double precision[], $11::text[], $12::text[], $13::text[], $14::smallint[], $15::uuid[],
        $16::bigint[], $17::text[], $18::text[], $19::text[], $20::text[], $21::boolean[]
    ) AS n (
        id, queue, name, body, priority, max_retries, run_at, expires_at, result_ttl, tags, unique_key, key, state,
        flow, behind, member, line, limit_key, limit_name, debounced
    )
),
waiting AS (
    INSERT INTO {live} (
        run_at, expires_at, result_ttl, seq, state, priority, id, queue, key, flow, behind, line, limit_key, limit_name,
        debounced
    )
    SELECT run_at, expires_at, result_ttl, seq, state, priority, id, queue, key, flow, behind, line, limit_key,
           limit_name, debounced
    FROM new
    -- In one order everywhere, so that two batches with the same keys do not wait for each other.
    ORDER BY key NULLS FIRST, seq
)
INSERT INTO {task} (
    id, seq, created_at, result_ttl, max_retries, priority, queue, name, unique_key, tags, member, body
)
SELECT id, seq, $1::timestamptz, result_ttl, max_retries, priority, queue, name, unique_key, tags::text[], member, body
FROM new

-- name: adopt
-- The same for tasks of another store, of flows or not, with what they have behind them.
WITH new AS MATERIALIZED (
    SELECT nextval('{order}') AS seq, n.*
    FROM unnest(
        $1::uuid[], $2::text[], $3::text[], $4::bytea[], $5::smallint[], $6::integer[], $7::timestamptz[],
        $8::timestamptz[], $9::double precision[], $10::text[], $11::text[], $12::text[], $13::smallint[], $14::uuid[],
        $15::bigint[], $16::text[], $17::timestamptz[], $18::timestamptz[], $19::timestamptz[], $20::integer[],
        $21::integer[], $22::boolean[], $23::text[], $24::text[], $25::text[], $26::bytea[],
        $27::text[], $28::text[], $29::text[], $30::boolean[]
    ) AS n (
        id, queue, name, body, priority, max_retries, run_at, expires_at, result_ttl, tags, unique_key, key, state,
        flow, behind, member, created_at, started_at, now, delivery, attempt, cancel, worker, error, attempt_log, result,
        line, limit_key, limit_name, debounced
    )
),
waiting AS (
    INSERT INTO {live} (
        run_at, started_at, expires_at, result_ttl, seq, delivery, attempt, state, priority, cancel, id, queue, worker,
        key, error, attempt_log, flow, behind, line, limit_key, limit_name, debounced
    )
    SELECT run_at, started_at, expires_at, result_ttl, seq, delivery, attempt, state, priority, cancel, id, queue,
           worker, key, error, attempt_log, flow, behind, line, limit_key, limit_name, debounced
    FROM new WHERE state < 3
    ORDER BY key NULLS FIRST, seq
),
over AS (
    INSERT INTO {ended} (
        run_at, started_at, finished_at, delete_at, expires_at, seq, delivery, attempt, state, cancel, id, queue,
        flow, behind, uncounted, worker, error, attempt_log, result
    )
    SELECT run_at, started_at, now, {kept_until}, expires_at, seq, delivery, attempt, state, cancel, id, queue,
           flow, behind, false, worker, error, attempt_log, result
    FROM new WHERE state > 3
)
INSERT INTO {task} (
    id, seq, created_at, result_ttl, max_retries, priority, queue, name, unique_key, tags, member, body
)
SELECT id, seq, created_at, result_ttl, max_retries, priority, queue, name, unique_key, tags::text[], member, body
FROM new

-- name: move
-- Tasks that wait, or are asked to stop, as they were before.
UPDATE {live} SET state = m.state, run_at = m.run_at, cancel = m.cancel
FROM unnest(
    (SELECT $1::uuid[]), (SELECT $2::smallint[]), (SELECT $3::timestamptz[]), (SELECT $4::boolean[])
) AS m (id, state, run_at, cancel)
WHERE {live}.id = m.id

-- name: end
-- Tasks that waited, with what became of them: counted by the same transaction.
WITH m AS MATERIALIZED (
    SELECT * FROM unnest((SELECT $2::uuid[]), (SELECT $3::smallint[]), (SELECT $4::text[])) AS m (id, final, told)
),
over AS (DELETE FROM {live} USING m WHERE {live}.id = m.id RETURNING {live}.*, m.final, m.told)
INSERT INTO {ended} (
    run_at, started_at, finished_at, delete_at, expires_at, seq, delivery, attempt, state, cancel, id, queue,
    flow, behind, uncounted, worker, error, attempt_log, progress
)
SELECT run_at, started_at, now, {kept_until}, expires_at, seq, delivery, attempt, final, cancel, id, queue,
       flow, behind, false, worker, told, attempt_log, progress
FROM over CROSS JOIN (SELECT $1::timestamptz AS now) AS clock

-- name: revive
-- Tasks that had ended.
WITH m AS MATERIALIZED (
    SELECT * FROM unnest(
        (SELECT $1::uuid[]), (SELECT $2::smallint[]), (SELECT $3::timestamptz[]), (SELECT $4::timestamptz[]),
        (SELECT $5::text[]), (SELECT $6::text[]), (SELECT $7::text[]), (SELECT $8::text[]), (SELECT $9::text[]),
        (SELECT $10::boolean[])
    ) AS m (id, new_state, new_run_at, new_expires_at, told, key, line, limit_key, limit_name, debounced)
),
back AS (
    DELETE FROM {ended} USING m WHERE {ended}.id = m.id
    RETURNING {ended}.*, m.new_state, m.new_run_at, m.new_expires_at, m.told, m.key, m.line,
        m.limit_key, m.limit_name, m.debounced
)
INSERT INTO {live} (
    run_at, started_at, expires_at, result_ttl, seq, delivery, attempt, state, priority, id, queue, worker, error,
    attempt_log, progress, flow, behind, key, line, limit_key, limit_name, debounced
)
SELECT back.new_run_at, back.started_at, back.new_expires_at, t.result_ttl, back.seq, back.delivery, 0, back.new_state,
       t.priority, back.id, back.queue, back.worker, back.told, back.attempt_log, back.progress, back.flow, back.behind,
       back.key, back.line, back.limit_key, back.limit_name, back.debounced
FROM back CROSS JOIN LATERAL (SELECT * FROM {task} WHERE {task}.id = back.id LIMIT 1) AS t
ORDER BY back.key NULLS FIRST, back.seq

-- name: remove
WITH waiting AS (DELETE FROM {live} WHERE {live}.id = ANY ($1::uuid[])),
over AS (DELETE FROM {ended} WHERE {ended}.id = ANY ($1::uuid[]))
DELETE FROM {task} WHERE {task}.id = ANY ($1::uuid[])

-- name: count
INSERT INTO {delta} (blocked, scheduled, ready, running, succeeded, failed, cancelled, queue)
SELECT * FROM unnest(
    $1::integer[], $2::integer[], $3::integer[], $4::integer[], $5::integer[], $6::integer[], $7::integer[], $8::text[]
)
