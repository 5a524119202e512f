-- name: glance
SELECT (SELECT created_at FROM "{ns}.task" ORDER BY seq DESC LIMIT 1), EXISTS (SELECT 1 FROM "{ns}.waiter")

-- name: tail_ends
SELECT (SELECT n FROM "{ns}.counter" WHERE queue = '' AND state = -1), (SELECT max(seq) FROM "{ns}.task"),
       EXISTS (SELECT 1 FROM "{ns}.lane")

-- name: tail
SELECT json_group_array(json_array(queue, state, n))
FROM (SELECT queue, state, count(*) AS n FROM "{ns}.task" WHERE seq > ? GROUP BY queue, state)

-- name: promote_tail
UPDATE "{ns}.task" SET state = 2 WHERE seq > ? AND state = 0

-- name: count
INSERT INTO "{ns}.counter" (queue, state, n) VALUES {(?, ?, ?)}
ON CONFLICT (queue, state) DO UPDATE SET n = n + excluded.n

-- name: conclude
UPDATE "{ns}.task"
SET state = ended.column2,
    finished_at = ?,
    delete_at = ? + min(ttl, 3162240000000000), -- a hundred years
    lease_until = NULL,
    result = ended.column3,
    error = iif(ended.column2 = 4, NULL, coalesce(ended.column4, error)),
    attempt_log = coalesce(ended.column5, attempt_log)
FROM (VALUES {(?, ?, ?, ?, ?)}) AS ended
WHERE seq = ended.column1

-- name: waiters_of
SELECT json_group_array(json_array(token, port))
FROM (SELECT token, port FROM "{ns}.waiter" WHERE topic = ? AND until > ? LIMIT ?)

-- name: waiters_of_tasks
SELECT json_group_array(json_array(token, port))
FROM (
    SELECT DISTINCT token, port FROM "{ns}.waiter" WHERE topic IN (SELECT 't:' || value FROM json_each(?))
)

-- name: dismiss
DELETE FROM "{ns}.waiter" WHERE token IN (SELECT value FROM json_each(?))

-- name: untag
DELETE FROM "{ns}.tag" WHERE seq IN (SELECT value FROM json_each(?))

-- name: drop_bodies
DELETE FROM "{ns}.body" WHERE seq IN (SELECT value FROM json_each(?))

-- name: drop
DELETE FROM "{ns}.task" WHERE seq IN (SELECT value FROM json_each(?))

-- name: rewind
UPDATE "{ns}.counter" SET n = min(n, coalesce((SELECT max(seq) FROM "{ns}.task"), 0)) WHERE queue = '' AND state = -1
