-- name: insert
INSERT INTO "{ns}.task" (
    id, queue, name, priority, state, created_at, run_at, expires_at, unique_key, ttl, options, body
)
VALUES {(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)}
ON CONFLICT DO NOTHING

-- name: seq_of
SELECT seq FROM "{ns}.task" WHERE id = ?

-- name: holder
SELECT id FROM "{ns}.task" WHERE unique_key = ? AND unique_key IS NOT NULL AND state < 4
  AND (first_at IS NULL OR delivery = 0)

-- name: add_body
INSERT INTO "{ns}.body" (seq, body) VALUES (?, ?)

-- name: add_tag
INSERT INTO "{ns}.tag" (tag, seq) VALUES {(?, ?)} ON CONFLICT DO NOTHING
