-- name: by_seqs
SELECT {slim} FROM "{ns}.task" WHERE seq IN (SELECT value FROM json_each(?))

-- name: by_ids
SELECT {slim} FROM "{ns}.task" WHERE id IN (SELECT value FROM json_each(?))

-- name: insert
INSERT INTO "{ns}.task" (
    id, queue, name, priority, state, created_at, run_at, expires_at, options, flow, behind, feeds,
    opening_delay, body, delivery, attempt, cancel, started_at, finished_at, delete_at, ttl, worker, unique_key, error,
    attempt_log, result, line, limit_key, limit_name, first_at
)
VALUES {(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)}

-- name: save
UPDATE "{ns}.task"
SET state = new.column2, run_at = new.column3, attempt = new.column4, finished_at = new.column5,
    expires_at = new.column6, cancel = new.column7, lease_until = new.column8, error = new.column9
FROM (VALUES {(?, ?, ?, ?, ?, ?, ?, ?, ?)}) AS new
WHERE seq = new.column1

-- name: get
SELECT id, body FROM "{ns}.flow" WHERE id IN (SELECT value FROM json_each(?)) ORDER BY id

-- name: put
INSERT INTO "{ns}.flow" (id, unique_key, ended, due, body) VALUES (?, ?, ?, ?, ?)
ON CONFLICT (id) DO UPDATE
SET unique_key = excluded.unique_key, ended = excluded.ended, due = excluded.due, body = excluded.body

-- name: drop
DELETE FROM "{ns}.flow" WHERE id = ?

-- name: drop_gates
DELETE FROM "{ns}.gate" WHERE flow = ?

-- name: gates
SELECT n, body FROM "{ns}.gate" WHERE flow = ?

-- name: some_gates
SELECT n, body FROM "{ns}.gate" WHERE flow = ? AND n IN (SELECT value FROM json_each(?))

-- name: put_gates
INSERT INTO "{ns}.gate" (flow, n, body) VALUES {(?, ?, ?)}
ON CONFLICT (flow, n) DO UPDATE SET body = excluded.body

-- name: members
SELECT {slim} FROM "{ns}.task" WHERE seq IN (
    SELECT seq FROM "{ns}.task" INDEXED BY "{ns}.member"
    WHERE flow = ? AND state IN (SELECT value FROM json_each(?)) ORDER BY seq LIMIT ?
)
ORDER BY seq

-- name: members_behind
SELECT {slim} FROM "{ns}.task" INDEXED BY "{ns}.member"
WHERE flow = ? AND state = ? AND behind = ? ORDER BY seq LIMIT ?

-- name: count
SELECT state, count(*) FROM "{ns}.task" INDEXED BY "{ns}.member" WHERE flow = ? GROUP BY state

-- name: of_key
SELECT id FROM "{ns}.flow" WHERE unique_key = ?

-- name: due
SELECT id, body FROM "{ns}.flow" WHERE ended = ? AND due <= ? ORDER BY due LIMIT ?

-- name: never_due
UPDATE "{ns}.flow" SET due = NULL WHERE id = ?

-- name: all
SELECT id, body FROM "{ns}.flow"

-- name: all_gates
SELECT flow, n, body FROM "{ns}.gate"
