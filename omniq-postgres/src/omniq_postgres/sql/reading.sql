-- part: state
-- Where a task "t" stands.
CROSS JOIN LATERAL (
    SELECT id, state, attempt, delivery, run_at, started_at, NULL::timestamptz AS finished_at, expires_at, lease_until,
           worker, error, progress, cancel, attempt_log, flow, NULL::bytea AS result
    FROM {live} WHERE {live}.id = t.id
    UNION ALL
    SELECT id, state, attempt, delivery, run_at, started_at, finished_at, expires_at, NULL, worker, error, progress,
           cancel, attempt_log, flow, result
    FROM {ended} WHERE {ended}.id = t.id
) AS s

-- name: now
SELECT clock_timestamp()

-- name: by_id
SELECT {record}
FROM unnest((SELECT $1::uuid[])) AS asked (id)
JOIN {task} AS t USING (id)
{state}

-- name: latest
-- The latest tasks of all.
SELECT {record}
FROM {task} AS t
{state}
WHERE t.seq < $1 AND t.seq >= $3
ORDER BY t.seq DESC LIMIT $2

-- name: list
-- The latest tasks of all queues, whatever their state, that have a name or a tag, or were enqueued at some time.
SELECT {record}
FROM {task} AS t
{state}
WHERE t.seq < $1 AND t.seq >= $5
  AND ($2::text IS NULL OR t.name = $2)
  AND ($3::text IS NULL OR t.tags @> ARRAY[$3])
  AND ($6::timestamptz IS NULL OR t.created_at >= $6)
  AND ($7::timestamptz IS NULL OR t.created_at < $7)
ORDER BY t.seq DESC LIMIT $4

-- name: list_live
-- The latest tasks in one of the states that come before the end.
SELECT {record}
FROM (
    SELECT *, NULL::timestamptz AS finished_at, NULL::bytea AS result
    FROM {live}
    WHERE state = $6::smallint AND seq < $1 AND seq >= $7 AND ($4::text IS NULL OR queue = $4)
      AND ($10::uuid IS NULL OR flow = $10)
) AS s
JOIN {task} AS t USING (id)
WHERE ($2::text IS NULL OR t.name = $2)
  AND ($3::text IS NULL OR t.tags @> ARRAY[$3])
  AND ($8::timestamptz IS NULL OR t.created_at >= $8)
  AND ($9::timestamptz IS NULL OR t.created_at < $9)
ORDER BY t.seq DESC LIMIT $5

-- name: list_running
-- The latest running tasks, which are few: these alone are looked up, whatever the planner thinks of the others.
WITH s AS MATERIALIZED (
    SELECT *, NULL::timestamptz AS finished_at, NULL::bytea AS result
    FROM {live}
    WHERE state = 3 AND state = $6::smallint AND seq < $1 AND seq >= $7 AND ($4::text IS NULL OR queue = $4)
      AND ($10::uuid IS NULL OR flow = $10)
)
SELECT {record}
FROM s CROSS JOIN LATERAL (SELECT * FROM {task} WHERE {task}.id = s.id LIMIT 1) AS t
WHERE ($2::text IS NULL OR t.name = $2)
  AND ($3::text IS NULL OR t.tags @> ARRAY[$3])
  AND ($8::timestamptz IS NULL OR t.created_at >= $8)
  AND ($9::timestamptz IS NULL OR t.created_at < $9)
ORDER BY t.seq DESC LIMIT $5

-- name: list_ended
-- The latest tasks that ended in one way, of one queue or of each.
WITH q AS MATERIALIZED (
    SELECT queue FROM {counter} WHERE $4::text IS NULL
    UNION SELECT queue FROM {delta} WHERE $4::text IS NULL
    UNION SELECT $4::text WHERE $4::text IS NOT NULL
),
s AS MATERIALIZED (
    SELECT e.*
    FROM q CROSS JOIN LATERAL (
        SELECT {ended}.*, NULL::timestamptz AS lease_until
        FROM {ended}
        WHERE {ended}.queue = q.queue AND {ended}.state = $6::smallint AND {ended}.seq < $1
          AND {ended}.seq >= $7
          AND ($10::uuid IS NULL OR {ended}.flow = $10)
          AND (
              ($2::text IS NULL AND $3::text IS NULL AND $8::timestamptz IS NULL AND $9::timestamptz IS NULL)
              OR EXISTS (
                  SELECT FROM {task} AS u
                  WHERE u.id = {ended}.id
                    AND ($2::text IS NULL OR u.name = $2)
                    AND ($3::text IS NULL OR u.tags @> ARRAY[$3])
                    AND ($8::timestamptz IS NULL OR u.created_at >= $8)
                    AND ($9::timestamptz IS NULL OR u.created_at < $9)
              )
          )
        ORDER BY {ended}.seq DESC LIMIT $5
    ) AS e
    ORDER BY e.seq DESC LIMIT $5
)
SELECT {record}
FROM s CROSS JOIN LATERAL (SELECT * FROM {task} WHERE {task}.id = s.id LIMIT 1) AS t
ORDER BY t.seq DESC

-- name: looked_all
SELECT seq FROM {task} WHERE seq < $1 AND seq >= $2 ORDER BY seq DESC LIMIT $3

-- name: looked_live
SELECT seq FROM {live}
WHERE state = $5::smallint AND seq < $1 AND seq >= $2 AND ($4::text IS NULL OR queue = $4)
  AND ($6::uuid IS NULL OR flow = $6)
ORDER BY seq DESC LIMIT $3

-- name: looked_ended
WITH q AS MATERIALIZED (
    SELECT queue FROM {counter} WHERE $4::text IS NULL
    UNION SELECT queue FROM {delta} WHERE $4::text IS NULL
    UNION SELECT $4::text WHERE $4::text IS NOT NULL
)
SELECT e.seq
FROM q CROSS JOIN LATERAL (
    SELECT {ended}.seq FROM {ended}
    WHERE {ended}.queue = q.queue AND {ended}.state = $5::smallint AND {ended}.seq < $1 AND {ended}.seq >= $2
      AND ($6::uuid IS NULL OR {ended}.flow = $6)
    ORDER BY {ended}.seq DESC LIMIT $3
) AS e
ORDER BY e.seq DESC LIMIT $3

-- name: last_seq
SELECT coalesce(max(seq), 0) FROM {task}

-- name: first_at
-- Whether the first task from a place on was enqueued before a time.
SELECT created_at < $2 FROM {task} WHERE seq >= $1 ORDER BY seq LIMIT 1

-- name: stats
-- Counters with what was not summed up yet, and the time for which the oldest ready task of each queue has waited: the
-- first of each priority, found by one step down the index for each priority in use.
WITH RECURSIVE sums AS MATERIALIZED (
    SELECT queue,
           least(greatest(sum(scheduled), -1e18), 1e18)::bigint AS scheduled,
           least(greatest(sum(ready), -1e18), 1e18)::bigint AS ready,
           least(greatest(sum(running), -1e18), 1e18)::bigint AS running,
           least(greatest(sum(succeeded), -1e18), 1e18)::bigint AS succeeded,
           least(greatest(sum(failed), -1e18), 1e18)::bigint AS failed,
           least(greatest(sum(cancelled), -1e18), 1e18)::bigint AS cancelled,
           least(greatest(sum(blocked), -1e18), 1e18)::bigint AS blocked
    FROM (
        SELECT queue, scheduled, ready, running, succeeded, failed, cancelled, blocked FROM {counter}
        UNION ALL
        SELECT queue, scheduled, ready, running, succeeded, failed, cancelled, blocked FROM {delta}
        UNION ALL
        SELECT queue, 0, 0, 0, 0, 0, 0, 0 FROM {paused}
    ) AS parts
    GROUP BY queue
),
level AS (
    SELECT sums.queue, head.priority, head.run_at
    FROM sums CROSS JOIN LATERAL (
        SELECT priority, run_at FROM {live} WHERE state = 2 AND {live}.queue = sums.queue
        ORDER BY priority DESC, run_at, seq LIMIT 1
    ) AS head
    WHERE sums.ready > 0
    UNION ALL
    SELECT level.queue, head.priority, head.run_at
    FROM level CROSS JOIN LATERAL (
        SELECT priority, run_at FROM {live}
        WHERE state = 2 AND {live}.queue = level.queue AND {live}.priority < level.priority
        ORDER BY priority DESC, run_at, seq LIMIT 1
    ) AS head
)
SELECT queue, blocked, scheduled, ready, running, succeeded, failed, cancelled,
       EXISTS (SELECT FROM {paused} WHERE {paused}.queue = sums.queue) AS is_paused,
       (
           SELECT extract(epoch FROM clock_timestamp() - least(min(level.run_at), (
               SELECT {live}.run_at FROM {live}
               WHERE state = -1 AND {live}.queue = sums.queue AND isfinite({live}.run_at)
               ORDER BY {live}.run_at LIMIT 1
           )))::double precision
           FROM level WHERE level.queue = sums.queue AND isfinite(level.run_at)
       )
FROM sums

-- name: workers
SELECT w.id,
       w.seen_at,
       ARRAY(
           SELECT {live}.id::text FROM {live} WHERE {live}.state = 3 AND {live}.worker = w.id ORDER BY {live}.seq
       ),
       w.about
FROM {worker} AS w WHERE w.until > clock_timestamp() ORDER BY w.id

-- name: namespaces
-- Of the schema, by the one table that nothing else calls so.
SELECT left(relname, -length('_migration'))
FROM pg_class
WHERE relnamespace = '{schema}'::regnamespace AND relkind = 'r' AND right(relname, 10) = '_migration'
LIMIT 1000
