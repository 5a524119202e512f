-- What is kept of limits is read and changed by one transaction at a time, which has the lock; see omniq_postgres.limits.

-- name: lock
-- Held until the transaction ends, or its client stands still in it for too long.
SELECT 'locked' FROM pg_advisory_xact_lock({limit_lock})

-- name: lock_keys
-- Held as long; in their order, so that two who want several do not wait for each other.
SELECT 'locked'
FROM unnest((SELECT $1::text[])) AS wanted (key)
CROSS JOIN LATERAL pg_advisory_xact_lock(hashtextextended(wanted.key, {limit_lock}))

-- name: lock_ended
SELECT 'locked' FROM {ended} WHERE id = ANY ($1::uuid[]) ORDER BY id FOR UPDATE

-- name: lanes
SELECT 'lane', queue, body FROM {lane} WHERE $1::text[] IS NULL OR queue = ANY ($1::text[])

-- name: save_lane
INSERT INTO {lane} (queue, body) VALUES ($1, $2) ON CONFLICT (queue) DO UPDATE SET body = excluded.body

-- name: remove_lane
DELETE FROM {lane} WHERE queue = $1

-- name: limits
SELECT 'limit', id, body FROM {limits} WHERE $1::text[] IS NULL OR id = ANY ($1::text[])

-- name: save_limit
INSERT INTO {limits} (id, body) VALUES ($1, $2) ON CONFLICT (id) DO UPDATE SET body = excluded.body

-- name: remove_limit
DELETE FROM {limits} WHERE id = $1

-- name: floor
SELECT floor FROM {revision}

-- name: raise_floor
UPDATE {revision} SET floor = greatest(floor, $1)

-- name: lines_by_id
SELECT id, body FROM {line} WHERE id = ANY ($1::text[])

-- name: lines
SELECT id, body FROM {line}
WHERE queue = $1 AND place = $2 AND first_rank <= $3 ORDER BY first_rank, second_rank LIMIT $4

-- name: lines_of_keys
SELECT l.id, l.body
FROM unnest((SELECT $1::text[]), (SELECT $2::text[])) AS asked (queue, limit_key)
CROSS JOIN LATERAL (
    SELECT id, body FROM {line}
    WHERE {line}.queue = asked.queue AND {line}.limit_key = asked.limit_key AND {line}.limit_key IS NOT NULL
) AS l
ORDER BY l.id

-- name: queues_at
SELECT DISTINCT queue FROM {line} WHERE place = $1 ORDER BY queue

-- name: has_lines
-- One range of the index for those before the place, and one for those behind it.
SELECT EXISTS (SELECT FROM {line} WHERE queue = $1 AND place < $2)
    OR EXISTS (SELECT FROM {line} WHERE queue = $1 AND place > $2)

-- name: save_lines
INSERT INTO {line} (id, queue, limit_key, place, first_rank, second_rank, body)
SELECT * FROM unnest(
    (SELECT $1::text[]), (SELECT $2::text[]), (SELECT $3::text[]), (SELECT $4::text[]), (SELECT $5::bigint[]),
    (SELECT $6::bigint[]), (SELECT $7::text[])
)
ON CONFLICT (id) DO UPDATE
SET place = excluded.place, first_rank = excluded.first_rank, second_rank = excluded.second_rank, body = excluded.body

-- name: remove_lines
DELETE FROM {line} WHERE id = ANY ($1::text[])

-- name: records
SELECT 'limit', id, body FROM {limits}
UNION ALL SELECT 'lane', queue, body FROM {lane}
UNION ALL SELECT 'line', id, body FROM {line}

-- name: running_in_queue
SELECT count(*) FROM {live} WHERE state = 3 AND queue = $1

-- name: running_of_keys
SELECT 'slots', asked.limit_key, taken.number
FROM unnest((SELECT $2::text[])) AS asked (limit_key)
CROSS JOIN LATERAL (
    SELECT count(*) AS number FROM {live}
    WHERE state = 3 AND queue = $1 AND {live}.limit_key = asked.limit_key AND {live}.limit_key IS NOT NULL
) AS taken

-- name: running_by_name
SELECT count(*) FROM {live} WHERE state = 3 AND limit_name = $1 AND limit_name IS NOT NULL

-- name: buckets
SELECT 'rest', id, at_rest FROM {bucket} WHERE id = ANY ($1::text[])

-- name: save_buckets
INSERT INTO {bucket} (id, at_rest) SELECT * FROM unnest((SELECT $1::text[]), (SELECT $2::bigint[]))
ON CONFLICT (id) DO UPDATE SET at_rest = excluded.at_rest

-- name: drop_buckets
DELETE FROM {bucket}
WHERE id = ANY (ARRAY(SELECT b.id FROM {bucket} AS b WHERE b.at_rest <= $1 ORDER BY b.at_rest LIMIT $2))

-- name: any
-- Whether anything is kept of lines and rates, or of ends that are not followed yet.
SELECT EXISTS (SELECT FROM {lane}) OR EXISTS (SELECT FROM {bucket}) OR EXISTS (SELECT FROM {wake})

-- name: wakes
-- What stopped running, each once.
DELETE FROM {wake}
WHERE {wake}.ctid = ANY (ARRAY(SELECT {wake}.ctid FROM {wake} LIMIT $1 FOR UPDATE SKIP LOCKED))
RETURNING 'wake', queue, limit_key, limit_name, released

-- name: woken
SELECT EXISTS (SELECT FROM {wake})

-- name: paused
SELECT 'paused', queue FROM {paused} WHERE queue = ANY ($1::text[])

-- name: promote
-- Put tasks into their lines whose time had come when the transaction began: a row for each of those lines.
WITH due AS MATERIALIZED (
    SELECT row.place
    FROM unnest($1::text[]) AS d (queue) CROSS JOIN LATERAL (
        SELECT {live}.ctid AS place
        FROM {live}
        WHERE {live}.state = 1 AND {live}.queue = d.queue AND {live}.run_at <= now() AND {live}.line IS NOT NULL
        ORDER BY {live}.run_at
        LIMIT $2
        FOR UPDATE SKIP LOCKED
    ) AS row
),
promoted AS (
    UPDATE {live} SET state = -1
    WHERE {live}.ctid = ANY (ARRAY(SELECT due.place FROM due)) AND state + 0 = 1
    RETURNING queue, limit_key, limit_name, priority
),
counted AS (
    INSERT INTO {delta} (scheduled, ready, running, succeeded, failed, cancelled, queue)
    SELECT -count(*), count(*), 0, 0, 0, 0, queue FROM promoted GROUP BY queue
)
SELECT 'due', queue, limit_key, limit_name, max(priority) FROM promoted GROUP BY queue, limit_key, limit_name

-- name: ready
-- The first of each of some lines that nothing has locked. Behind each: how many there are with those that something has
-- locked, up to as many, and the line. Of a line that has only such, a row that is empty else.
WITH asked AS MATERIALIZED (
    SELECT a.line, (
        SELECT count(*) FROM (
            SELECT FROM {live}
            WHERE state = -1 AND {live}.line = a.line AND (expires_at IS NULL OR expires_at > $2)
            ORDER BY priority DESC, run_at, {live}.seq LIMIT $3
        ) AS head
    ) AS there
    FROM unnest((SELECT $1::text[])) AS a (line)
),
s AS MATERIALIZED (
    SELECT first.*, NULL::timestamptz AS finished_at, NULL::bytea AS result
    FROM asked
    CROSS JOIN LATERAL (
        SELECT * FROM {live}
        WHERE state = -1 AND {live}.line = asked.line AND (expires_at IS NULL OR expires_at > $2)
        ORDER BY priority DESC, run_at, {live}.seq LIMIT $3
        FOR UPDATE SKIP LOCKED
    ) AS first
)
SELECT {record}, asked.there, asked.line
FROM asked
LEFT JOIN s ON s.line = asked.line
LEFT JOIN LATERAL (SELECT * FROM {task} WHERE {task}.id = s.id LIMIT 1) AS t ON true
WHERE asked.there > 0
ORDER BY asked.line, s.priority DESC, s.run_at, s.seq

-- name: ready_plain
WITH s AS MATERIALIZED (
    SELECT *, NULL::timestamptz AS finished_at, NULL::bytea AS result
    FROM {live}
    WHERE state = 2 AND queue = $1 AND (expires_at IS NULL OR expires_at > $2)
    ORDER BY priority DESC, run_at, {live}.seq LIMIT $3
    FOR UPDATE SKIP LOCKED
)
SELECT {record}, 0, '' FROM s CROSS JOIN LATERAL (SELECT * FROM {task} WHERE {task}.id = s.id LIMIT 1) AS t
ORDER BY s.priority DESC, s.run_at, s.seq

-- name: start
UPDATE {live}
SET state = 3, attempt = m.attempt, delivery = m.delivery, worker = $1, started_at = $2, lease_until = $3, progress = NULL
FROM unnest((SELECT $4::uuid[]), (SELECT $5::integer[]), (SELECT $6::integer[])) AS m (id, attempt, delivery)
WHERE {live}.id = m.id

-- name: prospects
-- Whether tasks are ready in a queue that have no limits of their own, or any due; and when the next will be.
SELECT EXISTS (SELECT FROM {live} WHERE state = 2 AND queue = $1)
       OR coalesce(head.run_at <= clock_timestamp(), false),
       CASE WHEN isfinite(head.run_at) THEN head.run_at END
FROM (SELECT (
    SELECT {live}.run_at FROM {live} WHERE {live}.state = 1 AND {live}.queue = $1 ORDER BY {live}.run_at LIMIT 1
) AS run_at) AS head
