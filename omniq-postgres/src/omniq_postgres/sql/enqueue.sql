-- part: times
SELECT nextval('{order}') AS seq,
       n.*,
       -- What is beyond the last time that a calendar has comes back to it; and nothing is ready before it is there.
       least(greatest(coalesce(n.at, now + n.delay, now), now), '9999-12-31 23:59:59.999999+00') AS run_at,
       CASE
           WHEN n.lifetime IS NULL THEN n.dies_at
           ELSE least(now + n.lifetime, '9999-12-31 23:59:59.999999+00')
       END AS expires_at

-- part: given
unnest(
    $1::uuid[], $2::text[], $3::text[], $4::bytea[], $5::smallint[], $6::integer[], $7::timestamptz[],
    $8::interval[], $9::timestamptz[], $10::interval[], $11::double precision[], $12::text[], $13::text[],
    $14::text[]
) AS n (
    id, queue, name, body, priority, max_retries, at, delay, dies_at, lifetime, result_ttl, tags, unique_key, key
)

-- part: storing
-- Of tasks that may be there already or whose unique keys may be taken; each id at most once.
new AS MATERIALIZED (
    {times},
           EXISTS (SELECT FROM {task} WHERE {task}.id = n.id) AS known
    FROM clock, {given}
),
waiting AS (
    INSERT INTO {live} (run_at, expires_at, result_ttl, seq, state, priority, id, queue, key)
    SELECT run_at, expires_at, result_ttl, seq, CASE WHEN run_at > now THEN 1 ELSE 2 END, priority, id, queue, key
    FROM new, clock
    WHERE NOT known
    -- In one order everywhere, so that two batches with the same keys do not wait for each other.
    ORDER BY key NULLS FIRST, seq
    ON CONFLICT DO NOTHING
    RETURNING id, queue, state, run_at
),
-- The holder of a key may have been waited for: nothing was created before that one had ended.
stored AS MATERIALIZED (SELECT clock_timestamp() AS at FROM (SELECT count(*) FROM waiting) AS whole),
counted AS (
    INSERT INTO {delta} (scheduled, ready, running, succeeded, failed, cancelled, queue)
    SELECT count(*) FILTER (WHERE state = 1), count(*) FILTER (WHERE state = 2), 0, 0, 0, 0, queue
    FROM waiting GROUP BY queue
),
kept AS (
    INSERT INTO {task} (
        id, seq, created_at, result_ttl, max_retries, priority, queue, name, unique_key, tags, body
    )
    SELECT id, seq, stored.at, result_ttl, max_retries, priority, new.queue, name, unique_key, tags::text[], body
    FROM new JOIN waiting USING (id), stored
)

-- part: holder
(SELECT {live}.id::text FROM {live} WHERE {live}.key = new.key AND {live}.key IS NOT NULL AND ({live}.debounced IS NULL OR {live}.delivery = 0))

-- name: fresh
-- Tasks without unique keys whose ids are new, as they nearly always are: an id that is not fails the whole statement.
WITH clock AS MATERIALIZED (SELECT clock_timestamp() AS now),
new AS MATERIALIZED (
    {times}
    FROM clock, {given}
),
waiting AS (
    INSERT INTO {live} (run_at, expires_at, result_ttl, seq, state, priority, id, queue)
    SELECT run_at, expires_at, result_ttl, seq, CASE WHEN run_at > now THEN 1 ELSE 2 END, priority, id, queue
    FROM new, clock
),
counted AS (
    INSERT INTO {delta} (scheduled, ready, running, succeeded, failed, cancelled, queue)
    SELECT count(*) FILTER (WHERE run_at > now), count(*) FILTER (WHERE run_at <= now), 0, 0, 0, 0, queue
    FROM new, clock GROUP BY queue
),
kept AS (
    INSERT INTO {task} (
        id, seq, created_at, result_ttl, max_retries, priority, queue, name, tags, body
    )
    SELECT id, seq, now, result_ttl, max_retries, priority, queue, name, tags::text[], body
    FROM new, clock
)
SELECT queue, extract(epoch FROM min(run_at) - min(now))::double precision
FROM new, clock WHERE run_at > now GROUP BY queue

-- name: single
-- The same for one task that is ready at once and never expires, in as little as it takes.
WITH new AS MATERIALIZED (SELECT nextval('{order}') AS seq, clock_timestamp() AS now),
waiting AS (
    INSERT INTO {live} (run_at, result_ttl, seq, state, priority, id, queue)
    SELECT now, $7::double precision, seq, 2, $5::smallint, $1::uuid, $2::text FROM new
),
counted AS (
    INSERT INTO {delta} (scheduled, ready, running, succeeded, failed, cancelled, queue)
    VALUES (0, 1, 0, 0, 0, 0, $2::text)
)
INSERT INTO {task} (id, seq, created_at, result_ttl, max_retries, priority, queue, name, tags, body)
SELECT $1::uuid, seq, now, $7::double precision, $6::integer, $5::smallint, $2::text, $3::text, $8::text::text[], $4::bytea
FROM new

-- name: guarded
-- The same for tasks that may be there already or whose unique keys may be taken; each id at most once. What was not
-- stored, though nothing here says why, met a task that came meanwhile.
WITH clock AS MATERIALIZED (SELECT clock_timestamp() AS now),
{storing}
SELECT new.id::text,
       waiting.id IS NOT NULL,
       known,
       {holder},
       extract(epoch FROM new.run_at - now)::double precision
FROM new LEFT JOIN waiting USING (id), clock

-- name: found
-- Whether tasks are there by now, and who holds their keys.
SELECT n.id::text,
       EXISTS (SELECT FROM {task} WHERE {task}.id = n.id),
       (SELECT {live}.id::text FROM {live} WHERE {live}.key = n.key AND {live}.key IS NOT NULL AND ({live}.debounced IS NULL OR {live}.delivery = 0))
FROM unnest($1::uuid[], $2::text[]) AS n (id, key)
