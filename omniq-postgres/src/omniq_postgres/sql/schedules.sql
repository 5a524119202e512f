-- A revision of 2^62 or more, or below 0, is none of ours: the next one is the first above the floor.

-- name: put
-- The floor is locked, so that none of this id is deleted between the look at it and the insertion.
INSERT INTO {schedule} AS s (id, revision, next_run, paused, body)
SELECT $1, least(floor, 4611686018427387902) + 1, $2, $3, $4 FROM {revision} FOR SHARE
ON CONFLICT (id) DO UPDATE
SET revision = CASE WHEN s.revision BETWEEN 0 AND 4611686018427387902 THEN s.revision + 1 ELSE excluded.revision END,
    next_run = excluded.next_run, paused = excluded.paused, body = excluded.body
RETURNING revision, extract(epoch FROM next_run - clock_timestamp())::double precision

-- name: add
INSERT INTO {schedule} (id, revision, next_run, paused, body)
SELECT $1, least(floor, 4611686018427387902) + 1, $2, $3, $4 FROM {revision} FOR SHARE
ON CONFLICT (id) DO NOTHING
RETURNING revision, extract(epoch FROM next_run - clock_timestamp())::double precision

-- name: replace
UPDATE {schedule}
SET revision = CASE
        WHEN revision BETWEEN 0 AND 4611686018427387902 THEN revision + 1
        ELSE (SELECT least(floor, 4611686018427387902) + 1 FROM {revision})
    END,
    next_run = $2, paused = $3, body = $4
WHERE id = $1 AND revision = $5
RETURNING revision, extract(epoch FROM next_run - clock_timestamp())::double precision

-- name: fire
-- Replace a schedule unless it has another revision by now, and store the tasks of its run as enqueue.guarded does. One
-- statement, so that a process that stands still in the middle of it holds no lock. No row: another one has fired it, or it is
-- gone; else in how many seconds it is due next, with what enqueue.guarded gives of each task; or with nothing, if there
-- are no tasks.
WITH fired AS (
    UPDATE {schedule} SET revision = revision + 1, next_run = $16, paused = $17, body = $18
    WHERE id = $15 AND revision = $19
    RETURNING next_run
),
clock AS MATERIALIZED (SELECT clock_timestamp() AS now FROM fired),
{storing}
SELECT extract(epoch FROM fired.next_run - clock_timestamp())::double precision,
       new.id::text,
       waiting.id IS NOT NULL,
       new.known,
       {holder},
       extract(epoch FROM new.run_at - clock.now)::double precision
FROM fired CROSS JOIN clock LEFT JOIN new ON true LEFT JOIN waiting ON waiting.id = new.id

-- name: get
SELECT id, revision, next_run, paused, body FROM {schedule} WHERE id = ANY ($1::text[])

-- name: all
SELECT id, revision, next_run, paused, body FROM {schedule} ORDER BY id

-- name: delete
-- The floor is locked before the schedule, as by put.
WITH known AS MATERIALIZED (SELECT floor FROM {revision} FOR UPDATE),
gone AS (DELETE FROM {schedule} USING known WHERE id = $1 RETURNING revision),
raised AS (UPDATE {revision} SET floor = gone.revision FROM gone WHERE gone.revision > floor AND gone.revision < 4611686018427387904)
SELECT 1 FROM gone

-- name: due
SELECT id, revision, next_run, paused, body FROM {schedule}
WHERE next_run IS NOT NULL AND NOT paused AND next_run <= (SELECT clock_timestamp())
ORDER BY next_run, id LIMIT $1
