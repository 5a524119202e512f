-- In these statements "state + 0 = 2" keeps the planner from the index of ready tasks where the place of a row is known
-- already: that index holds few live rows, but perhaps a million dead ones, of which the planner knows nothing.
--
-- Here and elsewhere "least", "greatest" and "isfinite" keep numbers and times that only a hand can have written
-- from failing a statement that also concerns others.

-- part: taking
taken AS (
    UPDATE {live}
    SET state = 3,
        attempt = least(attempt, 2147483646) + 1,
        delivery = least(delivery, 2147483646) + 1,
        worker = $4,
        started_at = now,
        lease_until = now + $5 * interval '1 second',
        progress = NULL
    FROM clock
    WHERE {live}.ctid = ANY (ARRAY(SELECT picked.place FROM picked)) AND state + 0 = 2
    RETURNING {live}.*
),
counted AS (
    INSERT INTO {delta} (scheduled, ready, running, succeeded, failed, cancelled, queue)
    SELECT 0, -count(*), count(*), 0, 0, 0, queue FROM taken GROUP BY queue
)

-- name: claim
-- One row for each claimed task, and one that is empty but for the first column where there is none. That is not 0
-- where nothing was claimed because something must be done before: 1 for claim.promote and maintenance.expire, 2 where
-- gates have opened or broken, 4 where a queue has a limit or lines, and the sum of these.
WITH clock AS MATERIALIZED (SELECT clock_timestamp() AS now),
demand AS MATERIALIZED (
    SELECT d.queue, d.wanted
    FROM unnest($1::text[], $2::integer[]) WITH ORDINALITY AS d (queue, wanted, place)
    WHERE NOT EXISTS (SELECT FROM {paused} WHERE {paused}.queue = d.queue)
    ORDER BY d.place
),
obstacle AS MATERIALIZED (
    SELECT CASE WHEN $6::integer <> 0 THEN 0 ELSE (
        EXISTS (
            SELECT FROM demand, clock
            WHERE (
                SELECT {live}.run_at FROM {live} WHERE {live}.state = 1 AND {live}.queue = demand.queue
                ORDER BY {live}.run_at LIMIT 1
            ) <= clock.now
        )
        OR coalesce((
            SELECT expires_at FROM {live} WHERE expires_at IS NOT NULL AND state IN (-1, 1, 2) ORDER BY expires_at LIMIT 1
        ) <= (SELECT now FROM clock), false)
    )::integer + 2 * {agenda}::integer END
    + 4 * EXISTS (
        SELECT FROM {lane}
        WHERE {lane}.queue = ANY ($1::text[])
          AND NOT EXISTS (SELECT FROM {paused} WHERE {paused}.queue = {lane}.queue)
    )::integer AS found
),
picked AS MATERIALIZED (
    SELECT row.place
    FROM demand CROSS JOIN LATERAL (
        SELECT {live}.ctid AS place
        FROM {live}
        WHERE {live}.state = 2
          AND {live}.queue = demand.queue
          AND ({live}.expires_at IS NULL OR {live}.expires_at > (SELECT now FROM clock))
        ORDER BY {live}.priority DESC, {live}.run_at, {live}.seq
        LIMIT demand.wanted
        FOR UPDATE SKIP LOCKED
    ) AS row
    WHERE (SELECT found FROM obstacle) = 0
    LIMIT $3
),
{taking}
SELECT found, {claimed}
FROM obstacle
LEFT JOIN taken ON true
-- Beyond doubt one look into an index for each, however many the planner expects.
LEFT JOIN LATERAL (SELECT * FROM {task} WHERE {task}.id = taken.id LIMIT 1) AS t ON true
ORDER BY array_position($1, taken.queue), taken.priority DESC, taken.run_at, taken.seq

-- name: promote
-- Make tasks ready whose time has come, the earliest first. Those that stand in lines are left to limits.promote: a row
-- for each queue that has such.
WITH clock AS MATERIALIZED (SELECT clock_timestamp() AS now),
due AS MATERIALIZED (
    SELECT row.*
    FROM unnest($1::text[]) AS d (queue) CROSS JOIN LATERAL (
        SELECT {live}.ctid AS place, {live}.queue, {live}.line
        FROM {live}
        WHERE {live}.state = 1 AND {live}.queue = d.queue AND {live}.run_at <= (SELECT now FROM clock)
        ORDER BY {live}.run_at
        LIMIT $2
        FOR UPDATE SKIP LOCKED
    ) AS row
),
promoted AS (
    UPDATE {live} SET state = 2
    WHERE {live}.ctid = ANY (ARRAY(SELECT due.place FROM due WHERE due.line IS NULL)) AND state + 0 = 1
    RETURNING queue
),
counted AS (
    INSERT INTO {delta} (scheduled, ready, running, succeeded, failed, cancelled, queue)
    SELECT -count(*), count(*), 0, 0, 0, 0, queue FROM promoted GROUP BY queue
)
SELECT DISTINCT due.queue FROM due WHERE due.line IS NOT NULL

-- name: onward
-- Claim of one queue from where the last claims ended, priority by priority: past what is dead but cannot be removed yet
-- because an old transaction might still want to see it.
WITH clock AS MATERIALIZED (SELECT clock_timestamp() AS now),
picked AS MATERIALIZED (
    SELECT row.place
    FROM unnest($2::smallint[], $6::timestamptz[], $7::bigint[]) AS mark (priority, run_at, seq)
    CROSS JOIN LATERAL (
        SELECT {live}.ctid AS place
        FROM {live}
        WHERE {live}.state = 2
          AND {live}.queue = $1
          AND {live}.priority = mark.priority
          AND ({live}.run_at, {live}.seq) >= (mark.run_at, mark.seq)
          AND ({live}.expires_at IS NULL OR {live}.expires_at > (SELECT now FROM clock))
        ORDER BY {live}.run_at, {live}.seq
        LIMIT $3
        FOR UPDATE SKIP LOCKED
    ) AS row
    WHERE NOT EXISTS (SELECT FROM {paused} WHERE {paused}.queue = $1)
      AND NOT EXISTS (SELECT FROM {lane} WHERE {lane}.queue = $1)
    LIMIT $3
),
{taking}
SELECT 0, {claimed}
FROM taken CROSS JOIN LATERAL (SELECT * FROM {task} WHERE {task}.id = taken.id LIMIT 1) AS t
ORDER BY taken.priority DESC, taken.run_at, taken.seq

-- name: dead
SELECT pg_stat_get_dead_tuples('{live}'::regclass)
