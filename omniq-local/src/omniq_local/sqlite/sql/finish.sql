-- name: held
SELECT json_group_array(json_array(id, seq, queue, state, delivery, cancel, flow, line))
FROM "{ns}.task" WHERE id IN (SELECT value FROM json_each(?))

-- name: give_back
UPDATE "{ns}.task"
SET state = back.column2,
    run_at = coalesce(back.column3, run_at),
    attempt = max(attempt, 1) - back.column4,
    error = iif(back.column5, error, back.column6),
    attempt_log = coalesce(back.column7, attempt_log),
    lease_until = NULL
FROM (VALUES {(?, ?, ?, ?, ?, ?, ?)}) AS back
WHERE seq = back.column1

-- name: extend
UPDATE "{ns}.task" SET lease_until = ?, lease = ? WHERE seq IN (SELECT value FROM json_each(?))

-- name: seen
INSERT INTO "{ns}.worker" (id, seen_at, until, about) VALUES (?, ?, ?, ?)
ON CONFLICT (id) DO UPDATE
SET seen_at = excluded.seen_at, until = excluded.until, about = coalesce(excluded.about, about)

-- name: sign_off
DELETE FROM "{ns}.worker" WHERE id = ?

-- name: note_progress
UPDATE "{ns}.task" SET progress = said.column3
FROM (VALUES {(?, ?, ?)}) AS said
WHERE id = said.column1 AND state = 3 AND delivery = said.column2
