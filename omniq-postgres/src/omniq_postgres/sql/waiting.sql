-- part: moments
-- In how many seconds the next task will be ready, and in how many the next schedule or flow is due: a second where one
-- is overdue, which perhaps no caller can fire. Of the queues that are not paused; and those that have limits or lines, of
-- which only limits.prospects can tell.
extract(epoch FROM min((
    SELECT least(greatest({live}.run_at, '1970-01-01+00'), '9999-12-31 23:59:59.999999+00')
    FROM {live} WHERE {live}.state = 1 AND {live}.queue = mine.queue
    ORDER BY {live}.run_at LIMIT 1
)) - clock_timestamp())::double precision,
extract(epoch FROM least((
    SELECT least(next_run, '9999-12-31 23:59:59.999999+00') FROM {schedule}
    WHERE next_run IS NOT NULL AND NOT paused AND next_run > (SELECT clock_timestamp())
    ORDER BY next_run LIMIT 1
), (
    SELECT clock_timestamp() + interval '1 second' FROM {schedule}
    WHERE next_run IS NOT NULL AND NOT paused AND next_run <= (SELECT clock_timestamp())
    ORDER BY next_run LIMIT 1
), (
    SELECT least(greatest(due, clock_timestamp() + interval '1 second'), '9999-12-31 23:59:59.999999+00') FROM {flow}
    WHERE due IS NOT NULL AND NOT ended ORDER BY due LIMIT 1
)) - clock_timestamp())::double precision,
(SELECT array_agg({lane}.queue) FROM {lane} WHERE {lane}.queue = ANY ($1::text[]))
FROM unnest((SELECT $1::text[])) AS mine (queue)
WHERE NOT EXISTS (SELECT FROM {paused} WHERE {paused}.queue = mine.queue)

-- name: prospects
-- Whether a task is ready or due in one of the queues, or a flow is due, and the next moments.
SELECT coalesce(bool_or((
           -- In the order of its index, so that no planner thinks of looking through the table for the first.
           SELECT true FROM {live} WHERE {live}.state = 2 AND {live}.queue = mine.queue
           ORDER BY {live}.priority DESC, {live}.run_at, {live}.seq LIMIT 1
       )), false),
       {agenda},
       {moments}

-- name: prospects_onward
-- The same, looking for ready tasks from where the last claims ended only.
SELECT coalesce((
           SELECT bool_or((
               SELECT true FROM {live}
               WHERE {live}.state = 2 AND {live}.queue = mark.queue AND {live}.priority = mark.priority
                 AND ({live}.run_at, {live}.seq) >= (mark.run_at, mark.seq)
               ORDER BY {live}.run_at, {live}.seq LIMIT 1
           ))
           FROM unnest(
               (SELECT $2::text[]), (SELECT $3::smallint[]), (SELECT $4::timestamptz[]), (SELECT $5::bigint[])
           ) AS mark (queue, priority, run_at, seq)
           WHERE NOT EXISTS (SELECT FROM {paused} WHERE {paused}.queue = mark.queue)
       ), false),
       {moments}

-- name: ended
SELECT asked.id::text FROM unnest((SELECT $1::uuid[])) AS asked (id)
WHERE asked.id IS NOT NULL
  -- What is in no state, or at no time, will never run.
  AND NOT EXISTS (
      SELECT FROM {live} WHERE {live}.id = asked.id AND {live}.state BETWEEN -1 AND 3 AND isfinite({live}.run_at)
  )

-- name: notify
SELECT pg_notify(n.channel, n.payload) FROM unnest($1::text[], $2::text[]) AS n (channel, payload)

-- name: notify_ended
-- Tell of those of some tasks that have ended, by the last characters of their ids.
SELECT pg_notify($1, string_agg(right(told.id::text, 12), ''))
FROM unnest((SELECT $2::uuid[])) AS told (id)
WHERE NOT EXISTS (SELECT FROM {live} WHERE {live}.id = told.id)
HAVING count(*) > 0
