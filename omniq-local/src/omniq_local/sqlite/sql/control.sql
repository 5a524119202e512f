-- name: request_cancel
UPDATE "{ns}.task" SET cancel = 1 WHERE seq IN (SELECT value FROM json_each(?))

-- name: revive
UPDATE OR IGNORE "{ns}.task"
SET state = 2, run_at = ?, attempt = 0, cancel = NULL, finished_at = NULL, delete_at = NULL, result = NULL,
    expires_at = iif(expires_at <= ?, NULL, expires_at)
WHERE seq = ? AND state IN (5, 6)

-- name: run_now
UPDATE "{ns}.task" SET state = 2, run_at = ? WHERE run_at > ? AND seq = ? AND state = 1

-- name: doomed_scheduled
SELECT json_group_array(json_array(seq, id, queue, state, flow))
FROM (
    SELECT seq, id, queue, state, flow FROM "{ns}.task" INDEXED BY "{ns}.scheduled"
    WHERE state = 1 AND queue = ? AND seq <= ? LIMIT ?
)

-- name: doomed_ready
SELECT json_group_array(json_array(seq, id, queue, state, flow))
FROM (
    SELECT seq, id, queue, state, flow FROM "{ns}.task" INDEXED BY "{ns}.ready"
    WHERE state = 2 AND line IS NULL AND queue = ? AND seq <= ? LIMIT ?
)

-- name: doomed_lined
SELECT json_group_array(json_array(seq, id, queue, state, flow))
FROM (
    SELECT seq, "{ns}.task".id, "{ns}.task".queue, state, flow
    FROM "{ns}.line" JOIN "{ns}.task" INDEXED BY "{ns}.lined" ON line = "{ns}.line".id
    WHERE "{ns}.line".queue = ? AND line IS NOT NULL AND state = 2 AND seq <= ? LIMIT ?
)

-- name: doomed_ended
SELECT json_group_array(json_array(seq, id, queue, state, flow))
FROM (
    SELECT seq, id, queue, state, flow FROM "{ns}.task" INDEXED BY "{ns}.apart"
    WHERE finished_at IS NOT NULL AND queue = ? AND state = ? AND seq <= ? LIMIT ?
)

-- name: doomed_blocked
SELECT json_group_array(json_array(seq, id, queue, state, flow))
FROM (
    SELECT seq, id, queue, state, flow FROM "{ns}.task" INDEXED BY "{ns}.apart"
    WHERE state = 7 AND queue = ? AND seq <= ? LIMIT ?
)

-- name: pause
INSERT INTO "{ns}.paused" (queue) VALUES (?) ON CONFLICT DO NOTHING

-- name: resume
DELETE FROM "{ns}.paused" WHERE queue = ?

-- name: place
SELECT seq, id, queue, state, flow FROM "{ns}.task" WHERE seq = ?
