-- name: revision
SELECT revision FROM "{ns}.schedule" WHERE id = ?

-- name: put
INSERT INTO "{ns}.schedule" (id, revision, next_run, paused, body) VALUES (?, ?, ?, ?, ?)
ON CONFLICT (id) DO UPDATE
SET revision = excluded.revision, next_run = excluded.next_run, paused = excluded.paused, body = excluded.body

-- name: get
SELECT id, revision, next_run, paused, body FROM "{ns}.schedule" WHERE id = ?

-- name: all
SELECT id, revision, next_run, paused, body FROM "{ns}.schedule" ORDER BY id

-- name: delete
DELETE FROM "{ns}.schedule" WHERE id = ?

-- name: due
SELECT id, revision, next_run, paused, body FROM "{ns}.schedule"
WHERE next_run IS NOT NULL AND paused = 0 AND next_run <= ?
ORDER BY next_run, id LIMIT ?
