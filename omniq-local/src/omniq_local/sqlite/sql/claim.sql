-- name: obstacles
SELECT json_array(
           (SELECT json_group_array(queue) FROM "{ns}.paused"),
           EXISTS (SELECT 1 FROM "{ns}.task" WHERE expires_at IS NOT NULL AND state < 3 AND expires_at <= ?),
           EXISTS (SELECT 1 FROM "{ns}.flow" WHERE ended = 0 AND due <= ?),
           EXISTS (SELECT 1 FROM "{ns}.task" INDEXED BY "{ns}.lined" WHERE line IS NOT NULL)
       )

-- name: expired
SELECT json_group_array(json_array(seq, id, queue, state, flow))
FROM (
    SELECT seq, id, queue, state, flow FROM "{ns}.task" INDEXED BY "{ns}.expiry"
    WHERE expires_at IS NOT NULL AND state < 3 AND expires_at <= ?
    ORDER BY expires_at LIMIT ?
)

-- name: promote
UPDATE "{ns}.task" SET state = 2
WHERE seq IN (
    SELECT seq FROM "{ns}.task" INDEXED BY "{ns}.scheduled"
    WHERE state = 1 AND queue = ? AND run_at <= ?
    ORDER BY run_at LIMIT ?
)

-- name: due
SELECT seq, line IS NOT NULL FROM "{ns}.task" INDEXED BY "{ns}.scheduled"
WHERE state = 1 AND queue = ? AND run_at <= ?
ORDER BY run_at LIMIT ?

-- name: make_ready
UPDATE "{ns}.task" SET state = 2 WHERE seq IN (SELECT value FROM json_each(?))

-- name: pick
SELECT json_group_array(json_array({claimed}))
FROM (
    SELECT {claimable}, body FROM "{ns}.task" INDEXED BY "{ns}.ready"
    WHERE state = 2 AND line IS NULL AND queue = ? AND (expires_at IS NULL OR expires_at > ?)
    ORDER BY priority DESC, run_at, seq LIMIT ?
)

-- name: pick_seqs
SELECT json_group_array(seq)
FROM (
    SELECT seq FROM "{ns}.task" INDEXED BY "{ns}.ready"
    WHERE state = 2 AND line IS NULL AND queue = ? AND (expires_at IS NULL OR expires_at > ?)
    ORDER BY priority DESC, run_at, seq LIMIT ?
)

-- name: pick_one
SELECT json_array({claimed}) FROM (SELECT {claimable}, body FROM "{ns}.task" WHERE seq = ?)

-- name: take
UPDATE "{ns}.task"
SET state = 3, progress = NULL,
    -- A number that is not what it was must not overflow, which would undo the claim of all.
    attempt = min(attempt, 1099511627776) + 1, delivery = min(delivery, 1099511627776) + 1,
    lease_until = ?, lease = ?, worker = ?, started_at = ?
WHERE seq IN (SELECT value FROM json_each(?))

-- name: body
SELECT body FROM "{ns}.body" WHERE seq = ?

-- name: flow_of
SELECT flow FROM "{ns}.task" WHERE seq = ?
