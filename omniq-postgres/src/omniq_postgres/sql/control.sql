-- part: cancelled
-- What is deleted in "over" has ended as cancelled.
history AS (
    INSERT INTO {ended} (
        run_at, started_at, finished_at, delete_at, expires_at, seq, delivery, attempt, state, cancel, id, queue,
        flow, behind, uncounted, worker, error, attempt_log, progress
    )
    SELECT run_at, started_at, now, {kept_until}, expires_at, seq, delivery,
           attempt, 6, cancel, id, queue, flow, behind, flow IS NOT NULL, worker, error, attempt_log, progress
    FROM over, clock
),
counted AS (
    INSERT INTO {delta} (scheduled, ready, running, succeeded, failed, cancelled, queue, blocked)
    SELECT -count(*) FILTER (WHERE state = 1), -count(*) FILTER (WHERE state IN (-1, 2)), 0, 0, 0, count(*), queue,
           -count(*) FILTER (WHERE state = 0)
    FROM over GROUP BY queue
)

-- name: cancel
-- End what waits, and ask what runs to stop. A row for each live task: whether it ran, NULL where another transaction has it
-- locked; that one is to be tried again.
WITH clock AS MATERIALIZED (SELECT clock_timestamp() AS now),
live AS MATERIALIZED (SELECT {live}.id, {live}.flow FROM {live} WHERE {live}.id = ANY ($1::uuid[])),
free AS MATERIALIZED (
    SELECT {live}.id, {live}.state FROM {live} WHERE {live}.id = ANY ($1::uuid[]) FOR UPDATE SKIP LOCKED
),
asked AS (
    UPDATE {live} SET cancel = true WHERE {live}.id = ANY (ARRAY(SELECT free.id FROM free WHERE free.state = 3))
),
over AS (
    DELETE FROM {live} WHERE {live}.id = ANY (ARRAY(SELECT free.id FROM free WHERE free.state < 3)) RETURNING {live}.*
),
{cancelled}
SELECT live.id::text, free.state = 3, live.flow::text FROM live LEFT JOIN free USING (id)

-- name: retry
-- Make failed and cancelled tasks ready again unless another live task has their key by now. What is of a flow, or has
-- limits, is only named: that is done under their locks.
WITH clock AS MATERIALIZED (SELECT clock_timestamp() AS now),
chosen AS MATERIALIZED (
    SELECT {ended}.* FROM {ended}
    WHERE {ended}.id = ANY ($1::uuid[]) AND {ended}.state IN (5, 6) AND {ended}.flow IS NULL
      AND NOT EXISTS (SELECT FROM {task} WHERE {task}.id = {ended}.id AND {task}.member IS NOT NULL)
    ORDER BY {ended}.id
    FOR UPDATE
),
ready AS (
    INSERT INTO {live} (
        run_at, started_at, expires_at, result_ttl, seq, delivery, attempt, state, priority, id, queue, worker, key,
        error, attempt_log, progress
    )
    SELECT now, chosen.started_at, CASE WHEN chosen.expires_at > now THEN chosen.expires_at END, t.result_ttl,
           chosen.seq, chosen.delivery, 0, 2, t.priority, chosen.id, chosen.queue, chosen.worker,
           CASE
               WHEN length(t.unique_key) <= $2 THEN t.unique_key
               ELSE left(t.unique_key, $3) || encode(sha256(convert_to(t.unique_key, 'UTF8')), 'hex')
           END AS key,
           chosen.error, chosen.attempt_log, chosen.progress
    FROM clock, chosen CROSS JOIN LATERAL (SELECT * FROM {task} WHERE {task}.id = chosen.id LIMIT 1) AS t
    -- In one order everywhere, so that two batches with the same keys do not wait for each other.
    ORDER BY key NULLS FIRST, seq
    ON CONFLICT DO NOTHING
    RETURNING id, queue
),
gone AS (
    DELETE FROM {ended} WHERE {ended}.id = ANY (ARRAY(SELECT ready.id FROM ready)) RETURNING queue, state
),
counted AS (
    INSERT INTO {delta} (scheduled, ready, running, succeeded, failed, cancelled, queue)
    SELECT 0, count(*), 0, 0, -count(*) FILTER (WHERE state = 5), -count(*) FILTER (WHERE state = 6), queue
    FROM gone GROUP BY queue
)
SELECT id::text, queue, NULL FROM ready
UNION ALL
SELECT {ended}.id::text, NULL, coalesce({ended}.flow::text, '')
FROM {ended} JOIN {task} USING (id)
WHERE {ended}.id = ANY ($1::uuid[]) AND {ended}.state IN (5, 6)
  AND ({ended}.flow::text IS NOT NULL OR {task}.member IS NOT NULL)

-- name: run_now
-- Make scheduled tasks ready whose time has not come: those that stand in lines are due then, and go into theirs with the
-- next claim. Locked in one order, so that two that do so do not wait for each other.
WITH clock AS MATERIALIZED (SELECT clock_timestamp() AS now),
chosen AS MATERIALIZED (
    SELECT {live}.id FROM {live} WHERE {live}.id = ANY ($1::uuid[]) AND {live}.state + 0 = 1 ORDER BY {live}.id FOR UPDATE
),
ready AS (
    UPDATE {live} SET state = CASE WHEN line IS NULL THEN 2 ELSE 1 END, run_at = now
    FROM clock
    WHERE {live}.id = ANY (ARRAY(SELECT chosen.id FROM chosen)) AND {live}.state + 0 = 1 AND {live}.run_at > now
    RETURNING {live}.id, {live}.queue, {live}.state
),
counted AS (
    INSERT INTO {delta} (scheduled, ready, running, succeeded, failed, cancelled, queue)
    SELECT -count(*), count(*), 0, 0, 0, 0, queue FROM ready WHERE state = 2 GROUP BY queue
)
SELECT id::text, queue FROM ready

-- name: delete
-- What is of a flow is only named: that is done under the lock of the flow. "flow::text" keeps the planner from the index
-- of flows: each task is to be found by its id.
WITH waiting AS (
    DELETE FROM {live} WHERE {live}.id = ANY ($1::uuid[]) AND {live}.state <> 3 AND {live}.flow IS NULL
    RETURNING id, queue, state
),
over AS (
    DELETE FROM {ended} WHERE {ended}.id = ANY ($1::uuid[]) AND {ended}.flow IS NULL RETURNING id, queue, state
),
gone AS (SELECT * FROM waiting UNION ALL SELECT * FROM over),
forgotten AS (DELETE FROM {task} WHERE {task}.id = ANY (ARRAY(SELECT gone.id FROM gone))),
counted AS (
    INSERT INTO {delta} (scheduled, ready, running, succeeded, failed, cancelled, queue)
    SELECT -count(*) FILTER (WHERE state = 1), -count(*) FILTER (WHERE state IN (-1, 2)), 0,
           -count(*) FILTER (WHERE state = 4), -count(*) FILTER (WHERE state = 5),
           -count(*) FILTER (WHERE state = 6), queue
    FROM gone GROUP BY queue
)
SELECT id::text, NULL FROM gone
UNION ALL
SELECT {live}.id::text, {live}.flow::text
FROM {live} WHERE {live}.id = ANY ($1::uuid[]) AND {live}.state <> 3 AND {live}.flow::text IS NOT NULL
UNION ALL
SELECT {ended}.id::text, {ended}.flow::text
FROM {ended} WHERE {ended}.id = ANY ($1::uuid[]) AND {ended}.flow::text IS NOT NULL

-- name: doomed_waiting
-- Some tasks of a queue that wait, for control.delete.
SELECT id::text FROM {live} WHERE queue = $1 AND state = $2 AND seq <= $3 LIMIT $4

-- name: doomed_ended
SELECT id::text FROM {ended} WHERE queue = $1 AND state = $2 AND seq <= $3 ORDER BY seq LIMIT $4

-- name: last
SELECT coalesce(max(seq), 0) FROM {task}

-- name: pause
INSERT INTO {paused} (queue) VALUES ($1) ON CONFLICT DO NOTHING RETURNING 1

-- name: resume
DELETE FROM {paused} WHERE queue = $1 RETURNING 1
