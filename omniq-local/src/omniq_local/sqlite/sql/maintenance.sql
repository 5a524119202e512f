-- name: lapsed
SELECT json_group_array(json_array(seq, id, queue, attempt, cancel, worker, options, flow, line))
FROM (
    SELECT seq, id, queue, attempt, cancel, worker, options, flow, line FROM "{ns}.task" INDEXED BY "{ns}.running"
    WHERE state = 3 AND lease_until <= ?
    ORDER BY lease_until LIMIT ?
)

-- name: log_lost
-- As omniq.storage.attempts.lost_line says it.
UPDATE "{ns}.task"
SET attempt_log = substr(
    coalesce(attempt_log || char(10), '') || json_array(attempt, 'lost', worker, started_at, ?), -?
)
WHERE seq IN (SELECT value FROM json_each(?))

-- name: shorten
-- What is no time of this calendar, or none at all, has run out.
UPDATE "{ns}.task" SET lease_until = iif(lease_until <= 253402300799999999, :now + lease, :now)
WHERE state = 3 AND (lease_until > :now + lease + 1000000 OR lease_until > 253402300799999999 OR lease_until IS NULL)

-- name: outdated
SELECT json_group_array(json_array(seq, id, queue, state, flow))
FROM (
    SELECT seq, id, queue, state, flow FROM "{ns}.task" INDEXED BY "{ns}.retention"
    WHERE delete_at IS NOT NULL AND delete_at <= ?
    ORDER BY delete_at LIMIT ?
)

-- name: dead_workers
DELETE FROM "{ns}.worker" WHERE until <= ?

-- name: dead_waiters
DELETE FROM "{ns}.waiter" WHERE until <= ?

-- name: empty_counters
DELETE FROM "{ns}.counter" WHERE n = 0 AND state >= 0
