-- name: revision
SELECT revision FROM "{ns}.schedule" WHERE id = ?

-- name: revision_floor
SELECT CAST(value AS INTEGER) FROM "{ns}.meta" WHERE key = 'revision_floor'

-- name: raise_revision_floor
UPDATE "{ns}.meta" SET value = schedule.revision FROM "{ns}.schedule" AS schedule
WHERE key = 'revision_floor' AND schedule.id = ? AND schedule.revision > CAST(value AS INTEGER)
  AND schedule.revision < 4611686018427387904

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
ORDER BY next_run, id
