-- name: recover
-- Take back what was not renewed. What is locked is being ended at this moment. One row for each, and one that is empty
-- where there is none: its first columns say whether there are tasks for maintenance.expire, and for maintenance.astray,
-- and whether something is to be done about flows.
WITH clock AS MATERIALIZED (SELECT clock_timestamp() AS now),
lapsed AS MATERIALIZED (
    SELECT {live}.id, {live}.cancel, {live}.attempt, {live}.lease_until AS lapsed_at,
           -- As omniq.storage.attempts.lost_line says it.
           right(
               coalesce({live}.attempt_log || chr(10), '') || json_build_array(
                   {live}.attempt,
                   'lost',
                   {live}.worker,
                   CASE WHEN isfinite({live}.started_at) THEN trunc(extract(epoch FROM {live}.started_at)::numeric * 1000000) END,
                   (SELECT trunc(extract(epoch FROM now)::numeric * 1000000) FROM clock)
               ),
               $3
           ) AS log
    FROM {live}
    WHERE {live}.state = 3
      AND {live}.lease_until <= (SELECT now FROM clock)
      AND {live}.lease_until >= (SELECT now - $2 * interval '1 second' FROM clock)
    ORDER BY {live}.lease_until
    LIMIT $1
    FOR UPDATE SKIP LOCKED
),
judged AS MATERIALIZED (
    SELECT lapsed.*, CASE WHEN lapsed.cancel THEN 6 WHEN lapsed.attempt <= t.max_retries THEN 2 ELSE 5 END AS verdict
    FROM lapsed LEFT JOIN LATERAL (SELECT max_retries FROM {task} WHERE {task}.id = lapsed.id LIMIT 1) AS t ON true
),
back AS (
    UPDATE {live}
    -- One that stands in a line goes into it with the next claim.
    SET state = CASE WHEN line IS NULL THEN 2 ELSE 1 END, lease_until = NULL, attempt_log = (SELECT log FROM lapsed WHERE lapsed.id = {live}.id)
    WHERE {live}.id = ANY (ARRAY(SELECT judged.id FROM judged WHERE verdict = 2))
    RETURNING {live}.*
),
over AS (
    DELETE FROM {live}
    WHERE {live}.id = ANY (ARRAY(SELECT judged.id FROM judged WHERE verdict > 2))
    RETURNING {live}.*
),
history AS (
    INSERT INTO {ended} (
        run_at, started_at, finished_at, delete_at, expires_at, seq, delivery, attempt, state, cancel, id, queue,
        flow, behind, uncounted, worker, error, attempt_log, progress
    )
    SELECT run_at, started_at, now, {kept_until}, expires_at, seq, delivery,
           attempt, CASE WHEN cancel THEN 6 ELSE 5 END, cancel, id, queue,
           flow, behind, flow IS NOT NULL, worker,
           CASE WHEN cancel THEN error ELSE json_build_array(
               'WorkerLost',
               'worker ' || worker || ' died or lost its lease in attempt ' || attempt || ', the last one',
               ''
           )::text END,
           (SELECT log FROM lapsed WHERE lapsed.id = over.id), progress
    FROM over, clock
    RETURNING *
),
counted AS (
    INSERT INTO {delta} (scheduled, ready, running, succeeded, failed, cancelled, queue)
    SELECT count(*) FILTER (WHERE state = 1), count(*) FILTER (WHERE state = 2), -count(*), 0,
           count(*) FILTER (WHERE state = 5), count(*) FILTER (WHERE state = 6), queue
    FROM (SELECT queue, state FROM back UNION ALL SELECT queue, state FROM history) AS changed
    GROUP BY queue
),
woken AS (
    INSERT INTO {wake} (queue, limit_key, limit_name)
    SELECT DISTINCT queue, limit_key, limit_name
    FROM (SELECT * FROM back UNION ALL SELECT * FROM over) AS changed
    WHERE line IS NOT NULL
)
SELECT late.found, late.astray, late.gates, (SELECT extract(epoch FROM min(now - lapsed_at)) FROM lapsed, clock)::double precision, {record}
FROM (
    SELECT coalesce((
        SELECT expires_at FROM {live} WHERE expires_at IS NOT NULL AND state IN (-1, 1, 2) ORDER BY expires_at LIMIT 1
    ) <= (SELECT now FROM clock), false) AS found,
    EXISTS (SELECT FROM {live} WHERE {live}.state = 3 AND {live}.lease_until IS NULL)
    OR EXISTS (SELECT FROM {live} WHERE {live}.state = 3 AND {live}.lease_until < '1970-01-01+00')
    OR EXISTS (
        SELECT FROM {live} WHERE {live}.state = 3 AND {live}.lease_until > '9999-12-31 23:59:59.999999+00'
    ) AS astray,
    {agenda} AS gates
) AS late
LEFT JOIN (
    SELECT id, state, attempt, delivery, run_at, started_at, NULL::timestamptz AS finished_at, expires_at, lease_until,
           worker, error, progress, cancel, attempt_log, flow, NULL::bytea AS result
    FROM back
    UNION ALL
    SELECT id, state, attempt, delivery, run_at, started_at, finished_at, expires_at, NULL, worker, error, progress,
           cancel, attempt_log, flow, NULL
    FROM history
) AS s ON true
LEFT JOIN LATERAL (SELECT * FROM {task} WHERE {task}.id = s.id LIMIT 1) AS t ON true

-- name: astray
-- Let leases run out that are none, or hold until no time: OmniQ has not written them.
UPDATE {live} SET lease_until = clock_timestamp()
WHERE {live}.id = ANY (ARRAY(
    SELECT l.id FROM {live} AS l
    WHERE l.state = 3
      AND (
          l.lease_until IS NULL
          OR l.lease_until < '1970-01-01+00'
          OR l.lease_until > '9999-12-31 23:59:59.999999+00'
      )
    LIMIT 1000
    FOR UPDATE SKIP LOCKED
))

-- name: expire
-- End waiting tasks whose time to start is over.
WITH clock AS MATERIALIZED (SELECT clock_timestamp() AS now),
late AS MATERIALIZED (
    SELECT {live}.id
    FROM {live}
    WHERE {live}.expires_at IS NOT NULL AND {live}.state IN (-1, 1, 2) AND {live}.expires_at <= (SELECT now FROM clock)
    ORDER BY {live}.expires_at
    LIMIT $1
    FOR UPDATE SKIP LOCKED
),
over AS (
    DELETE FROM {live} WHERE {live}.id = ANY (ARRAY(SELECT late.id FROM late)) AND state IN (-1, 1, 2) RETURNING {live}.*
),
{cancelled}
SELECT id::text, flow::text FROM over

-- name: prune
WITH clock AS MATERIALIZED (SELECT clock_timestamp() AS now),
outdated AS MATERIALIZED (
    SELECT {ended}.id FROM {ended}
    WHERE {ended}.delete_at <= (SELECT now FROM clock)
      AND {ended}.delete_at >= (SELECT now - $2 * interval '1 second' FROM clock)
    ORDER BY {ended}.delete_at LIMIT $1
    FOR UPDATE SKIP LOCKED
),
gone AS (
    DELETE FROM {ended} WHERE {ended}.id = ANY (ARRAY(SELECT outdated.id FROM outdated))
    RETURNING id, queue, state, delete_at
),
forgotten AS (DELETE FROM {task} WHERE {task}.id = ANY (ARRAY(SELECT outdated.id FROM outdated))),
counted AS (
    INSERT INTO {delta} (scheduled, ready, running, succeeded, failed, cancelled, queue)
    SELECT 0, 0, 0, -count(*) FILTER (WHERE state = 4), -count(*) FILTER (WHERE state = 5),
           -count(*) FILTER (WHERE state = 6), queue
    FROM gone GROUP BY queue
)
SELECT id::text, extract(epoch FROM now - delete_at)::double precision FROM gone, clock

-- name: dead_workers
DELETE FROM {worker} WHERE until <= (SELECT clock_timestamp())

-- name: fold
-- Sum up what was appended to the counters. Who finds another doing it takes what that one leaves.
WITH taken AS (
    DELETE FROM {delta}
    WHERE {delta}.ctid = ANY (ARRAY(SELECT {delta}.ctid FROM {delta} LIMIT $1 FOR UPDATE SKIP LOCKED))
    RETURNING *
),
summed AS (
    SELECT queue, sum(scheduled) AS scheduled, sum(ready) AS ready, sum(running) AS running,
           sum(succeeded) AS succeeded, sum(failed) AS failed, sum(cancelled) AS cancelled,
           sum(blocked) AS blocked, count(*) AS number
    FROM taken GROUP BY queue
),
added AS (
    INSERT INTO {counter} AS c (queue, scheduled, ready, running, succeeded, failed, cancelled, blocked)
    SELECT queue, scheduled, ready, running, succeeded, failed, cancelled, blocked FROM summed ORDER BY queue
    ON CONFLICT (queue) DO UPDATE
    SET scheduled = least(greatest(c.scheduled::numeric + excluded.scheduled, -1e18), 1e18),
        ready = least(greatest(c.ready::numeric + excluded.ready, -1e18), 1e18),
        running = least(greatest(c.running::numeric + excluded.running, -1e18), 1e18),
        succeeded = least(greatest(c.succeeded::numeric + excluded.succeeded, -1e18), 1e18),
        failed = least(greatest(c.failed::numeric + excluded.failed, -1e18), 1e18),
        cancelled = least(greatest(c.cancelled::numeric + excluded.cancelled, -1e18), 1e18),
        blocked = least(greatest(c.blocked::numeric + excluded.blocked, -1e18), 1e18)
)
SELECT coalesce(sum(number), 0)::bigint FROM summed

-- name: empty_counters
DELETE FROM {counter}
WHERE scheduled = 0 AND ready = 0 AND running = 0 AND succeeded = 0 AND failed = 0 AND cancelled = 0
  AND blocked = 0
