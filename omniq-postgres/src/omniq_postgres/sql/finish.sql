-- In these statements "state + 0 = 3" keeps the planner from the index of running tasks: it holds few live rows, but
-- perhaps a million dead ones, of which the planner knows nothing. Each task is to be found by its id.
--
-- Here and elsewhere arrays come as "(SELECT $1)", so that no plan is made for their length: a batch of one would be
-- planned anew each time, which takes longer than to run it.

-- part: woken
-- What is to be looked at as slots of keys and named limits are free; done under the lock of limits, in a next step.
woken AS (
    INSERT INTO {wake} (queue, limit_key, limit_name) SELECT queue, limit_key, limit_name FROM over WHERE line IS NOT NULL
)

-- name: final
-- A batch of outcomes that all end their tasks: gives how many were accepted, unless all were, which, and the flows of
-- those that are of one; and the queues among theirs that have limits or lines.
WITH clock AS MATERIALIZED (SELECT clock_timestamp() AS now),
told AS MATERIALIZED (
    SELECT * FROM unnest(
        (SELECT $1::uuid[]), (SELECT $2::integer[]), (SELECT $3::smallint[]), (SELECT $4::bytea[]), (SELECT $5::text[]),
        (SELECT $6::text[])
    ) WITH ORDINALITY AS t (id, delivery, kind, result, error, attempt_log, place)
),
over AS (
    DELETE FROM {live} USING told
    WHERE {live}.id = told.id AND {live}.state + 0 = 3 AND {live}.delivery = told.delivery
    RETURNING {live}.*, told.kind, told.result, told.error AS told_error, told.attempt_log AS told_log, told.place
),
counted AS (
    INSERT INTO {delta} (scheduled, ready, running, succeeded, failed, cancelled, queue)
    SELECT 0, 0, -count(*), count(*) FILTER (WHERE kind = 4), count(*) FILTER (WHERE kind = 5),
           count(*) FILTER (WHERE kind = 6), queue
    FROM over GROUP BY queue
),
history AS (
    INSERT INTO {ended} (
        run_at, started_at, finished_at, delete_at, expires_at, seq, delivery, attempt, state, cancel, id, queue,
        flow, behind, uncounted, worker, error, attempt_log, progress, result
    )
    SELECT run_at, started_at, now, {kept_until}, expires_at, seq, delivery,
           attempt, kind, cancel, id, queue,
           flow, behind, flow IS NOT NULL, worker,
           CASE kind WHEN 4 THEN NULL WHEN 5 THEN told_error ELSE error END, coalesce(told_log, attempt_log), progress, result
    FROM over, clock
),
{woken}
SELECT number, which, flows, lined || (
    SELECT array_agg(queue) FROM {lane}
    WHERE queue BETWEEN first AND last AND (first = last OR queue IN (SELECT over.queue FROM over))
)
FROM (
    SELECT count(*) AS number, CASE WHEN count(*) < cardinality($1::uuid[]) THEN array_agg(place) END AS which,
           array_agg(flow::text) FILTER (WHERE flow IS NOT NULL) AS flows,
           array_agg(queue) FILTER (WHERE line IS NOT NULL) AS lined, min(queue) AS first, max(queue) AS last
    FROM over
) AS sums

-- name: mixed
-- A batch of outcomes of which some give their tasks back: a row for each that was accepted.
WITH clock AS MATERIALIZED (SELECT clock_timestamp() AS now),
told AS MATERIALIZED (
    SELECT * FROM unnest(
        (SELECT $1::uuid[]), (SELECT $2::integer[]), (SELECT $3::smallint[]), (SELECT $4::bytea[]), (SELECT $5::text[]),
        (SELECT $6::text[]), (SELECT $7::interval[])
    ) WITH ORDINALITY AS t (id, delivery, kind, result, error, attempt_log, delay, place)
),
-- Locked before it is looked at: whether a task is to stop may change until then.
held AS MATERIALIZED (
    SELECT told.*, l.cancel
    FROM told JOIN {live} AS l ON l.id = told.id AND l.state + 0 = 3 AND l.delivery = told.delivery
    WHERE told.kind < 4
    FOR UPDATE OF l
),
back AS (
    UPDATE {live}
    -- One that stands in a line goes into it with the next claim.
    SET state = CASE WHEN held.delay > interval '0' OR line IS NOT NULL THEN 1 ELSE 2 END,
        run_at = CASE
            WHEN held.delay > interval '0' THEN least(now + held.delay, '9999-12-31 23:59:59.999999+00')
            WHEN held.kind = 1 THEN now
            ELSE {live}.run_at
        END,
        attempt = CASE held.kind WHEN 2 THEN greatest({live}.attempt, 1) - 1 ELSE {live}.attempt END,
        error = CASE held.kind WHEN 1 THEN held.error ELSE coalesce(held.error, {live}.error) END,
        attempt_log = coalesce(held.attempt_log, {live}.attempt_log),
        lease_until = NULL
    FROM held, clock
    WHERE {live}.id = held.id AND NOT held.cancel
    RETURNING {live}.queue, {live}.state, {live}.run_at, {live}.line, {live}.limit_key, {live}.limit_name,
              held.place, held.kind
),
over AS (
    DELETE FROM {live} USING told
    WHERE {live}.id = told.id AND {live}.state + 0 = 3 AND {live}.delivery = told.delivery AND told.kind > 3
    RETURNING {live}.*, told.kind, told.result, told.error AS told_error, told.attempt_log AS told_log, told.place
),
stopped AS (
    DELETE FROM {live} USING held
    WHERE {live}.id = held.id AND held.cancel
    RETURNING {live}.*, held.kind, held.result, held.error AS told_error, held.attempt_log AS told_log, held.place
),
ends AS (SELECT * FROM over UNION ALL SELECT * FROM stopped),
woken AS (
    INSERT INTO {wake} (queue, limit_key, limit_name, released)
    SELECT queue, limit_key, limit_name, kind = 2
    FROM (
        SELECT queue, limit_key, limit_name, kind, line FROM back
        UNION ALL SELECT queue, limit_key, limit_name, kind, line FROM ends
    ) AS changed
    WHERE line IS NOT NULL OR (kind = 2 AND EXISTS (SELECT FROM {lane} WHERE {lane}.queue = changed.queue))
),
counted AS (
    INSERT INTO {delta} (scheduled, ready, running, succeeded, failed, cancelled, queue)
    SELECT count(*) FILTER (WHERE state = 1), count(*) FILTER (WHERE state = 2), -count(*),
           count(*) FILTER (WHERE state = 4), count(*) FILTER (WHERE state = 5), count(*) FILTER (WHERE state = 6),
           queue
    FROM (
        SELECT queue, state FROM back UNION ALL SELECT queue, CASE WHEN kind > 3 THEN kind ELSE 6 END FROM ends
    ) AS changed
    GROUP BY queue
),
history AS (
    INSERT INTO {ended} (
        run_at, started_at, finished_at, delete_at, expires_at, seq, delivery, attempt, state, cancel, id, queue,
        flow, behind, uncounted, worker, error, attempt_log, progress, result
    )
    SELECT run_at, started_at, now, {kept_until}, expires_at, seq, delivery,
           CASE kind WHEN 2 THEN greatest(attempt, 1) - 1 ELSE attempt END, CASE WHEN kind > 3 THEN kind ELSE 6 END, cancel, id, queue,
           flow, behind, flow IS NOT NULL, worker, CASE WHEN kind = 4 THEN NULL WHEN kind IN (1, 5) THEN told_error ELSE coalesce(told_error, error) END,
           coalesce(told_log, attempt_log), progress, result
    FROM ends, clock
)
SELECT place, queue, CASE WHEN isfinite(run_at) THEN extract(epoch FROM run_at - now)::double precision ELSE 0 END,
       NULL,
       CASE WHEN line IS NOT NULL OR EXISTS (SELECT FROM {lane} WHERE {lane}.queue = back.queue) THEN queue END
FROM back, clock
UNION ALL
SELECT place, NULL, NULL, flow::text,
       CASE WHEN line IS NOT NULL OR EXISTS (SELECT FROM {lane} WHERE {lane}.queue = ends.queue) THEN queue END
FROM ends

-- name: heartbeat
-- A row for each lease that is held. What is locked is being ended, perhaps in a caller's own transaction, or extended
-- already: it is held as long as that is not committed, and is not waited for.
WITH clock AS MATERIALIZED (SELECT clock_timestamp() AS now),
told AS MATERIALIZED (
    SELECT * FROM unnest((SELECT $1::uuid[]), (SELECT $2::integer[])) WITH ORDINALITY AS t (id, delivery, place)
),
seen AS (
    INSERT INTO {worker} (id, seen_at, until, about)
    SELECT $3, now, now + $4 * interval '1 second', $5::text FROM clock WHERE $4 > 0
    ON CONFLICT (id) DO UPDATE
    SET seen_at = excluded.seen_at, until = excluded.until, about = coalesce(excluded.about, {worker}.about)
),
gone AS (DELETE FROM {worker} WHERE id = $3 AND $4 <= 0),
free AS MATERIALIZED (
    SELECT l.id
    FROM told JOIN {live} AS l ON l.id = told.id AND l.state + 0 = 3 AND l.delivery = told.delivery
    FOR UPDATE OF l SKIP LOCKED
),
extended AS (
    UPDATE {live} SET lease_until = now + $4 * interval '1 second' FROM free, clock WHERE {live}.id = free.id
)
SELECT told.place, {live}.cancel
FROM told JOIN {live} ON {live}.id = told.id AND {live}.state + 0 = 3 AND {live}.delivery = told.delivery

-- name: progress
WITH told AS MATERIALIZED (
    SELECT * FROM unnest((SELECT $1::uuid[]), (SELECT $2::integer[]), (SELECT $3::text[])) AS t (id, delivery, progress)
),
free AS MATERIALIZED (
    SELECT l.id, told.progress
    FROM told JOIN {live} AS l ON l.id = told.id AND l.state + 0 = 3 AND l.delivery = told.delivery
    FOR UPDATE OF l SKIP LOCKED
)
UPDATE {live} SET progress = free.progress FROM free WHERE {live}.id = free.id
