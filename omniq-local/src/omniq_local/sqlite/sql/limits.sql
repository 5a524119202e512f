-- name: has_lane
SELECT 1 FROM "{ns}.lane" WHERE queue = ?

-- name: ready
SELECT {columns} FROM "{ns}.task" INDEXED BY "{ns}.lined"
WHERE state = 2 AND line IS NOT NULL AND line = ?
ORDER BY priority DESC, run_at, seq LIMIT ?

-- name: ready_plain
SELECT {columns} FROM "{ns}.task" INDEXED BY "{ns}.ready"
WHERE state = 2 AND line IS NULL AND queue = ?
ORDER BY priority DESC, run_at, seq LIMIT ?

-- name: running
SELECT queue, limit_key, limit_name FROM "{ns}.task" INDEXED BY "{ns}.running" WHERE state = 3

-- name: work
-- Whether a task of the plain line of a queue is ready, or any of it due; and when the next will be.
SELECT EXISTS (SELECT 1 FROM "{ns}.task" WHERE state = 2 AND line IS NULL AND queue = :queue)
       OR EXISTS (SELECT 1 FROM "{ns}.task" WHERE state = 1 AND queue = :queue AND run_at <= :now)
       OR EXISTS (
           SELECT 1 FROM "{ns}.task"
           WHERE seq > (SELECT n FROM "{ns}.counter" WHERE queue = '' AND state = -1) AND state = 0 AND queue = :queue
       ),
       (SELECT min(run_at) FROM "{ns}.task" WHERE state = 1 AND queue = :queue)

-- name: paused
SELECT queue FROM "{ns}.paused"

-- name: raise_revision_floor
UPDATE "{ns}.meta" SET value = :revision
WHERE key = 'revision_floor' AND CAST(value AS INTEGER) < :revision AND :revision < 4611686018427387904
