-- name: put
INSERT INTO {schedule} AS s (id, revision, next_run, paused, body)
VALUES ($1, 1, $2, $3, $4)
ON CONFLICT (id) DO UPDATE
SET revision = s.revision + 1, next_run = excluded.next_run, paused = excluded.paused, body = excluded.body
RETURNING revision, extract(epoch FROM next_run - clock_timestamp())::double precision

-- name: add
INSERT INTO {schedule} (id, revision, next_run, paused, body)
VALUES ($1, 1, $2, $3, $4)
ON CONFLICT (id) DO NOTHING
RETURNING revision, extract(epoch FROM next_run - clock_timestamp())::double precision

-- name: replace
UPDATE {schedule} SET revision = revision + 1, next_run = $2, paused = $3, body = $4
WHERE id = $1 AND revision = $5
RETURNING revision, extract(epoch FROM next_run - clock_timestamp())::double precision

-- name: get
SELECT id, revision, next_run, paused, body FROM {schedule} WHERE id = ANY ($1::text[])

-- name: all
SELECT id, revision, next_run, paused, body FROM {schedule} ORDER BY id

-- name: delete
DELETE FROM {schedule} WHERE id = $1 RETURNING 1

-- name: due
SELECT id, revision, next_run, paused, body FROM {schedule}
WHERE next_run IS NOT NULL AND NOT paused AND next_run <= (SELECT clock_timestamp())
ORDER BY next_run, id LIMIT $1
