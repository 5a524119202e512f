-- name: by_id
SELECT {columns} FROM "{ns}.task" WHERE id = ?

-- name: by_seq
SELECT {columns} FROM "{ns}.task" WHERE seq = ?

-- name: counts
SELECT json_group_array(json_array(queue, state, n)) FROM "{ns}.counter" WHERE state >= 0 AND n != 0

-- name: paused
SELECT json_group_array(queue) FROM "{ns}.paused"

-- name: oldest
-- The first of each priority, found by one step down the index for each priority in use: never a scan of the queue.
WITH RECURSIVE level (priority, run_at) AS (
    SELECT * FROM (
        SELECT priority, run_at FROM "{ns}.task" INDEXED BY "{ns}.ready"
        WHERE state = 2 AND line IS NULL AND queue = :queue ORDER BY priority DESC, run_at LIMIT 1
    )
    UNION ALL
    SELECT (
               SELECT priority FROM "{ns}.task" INDEXED BY "{ns}.ready"
               WHERE state = 2 AND line IS NULL AND queue = :queue AND priority < level.priority
               ORDER BY priority DESC, run_at LIMIT 1
           ),
           (
               SELECT run_at FROM "{ns}.task" INDEXED BY "{ns}.ready"
               WHERE state = 2 AND line IS NULL AND queue = :queue AND priority < level.priority
               ORDER BY priority DESC, run_at LIMIT 1
           )
    FROM level WHERE level.priority IS NOT NULL
),
-- The same in each line.
lined (line, priority, run_at) AS (
    SELECT id, 9223372036854775807, NULL FROM "{ns}.line" WHERE queue = :queue
    UNION ALL
    SELECT line,
           (
               SELECT priority FROM "{ns}.task" INDEXED BY "{ns}.lined"
               WHERE state = 2 AND line IS NOT NULL AND line = lined.line AND priority < lined.priority
               ORDER BY priority DESC, run_at LIMIT 1
           ),
           (
               SELECT run_at FROM "{ns}.task" INDEXED BY "{ns}.lined"
               WHERE state = 2 AND line IS NOT NULL AND line = lined.line AND priority < lined.priority
               ORDER BY priority DESC, run_at LIMIT 1
           )
    FROM lined WHERE lined.priority IS NOT NULL
)
SELECT min(run_at) FROM (
    SELECT min(run_at) AS run_at FROM level
    UNION ALL
    SELECT min(run_at) FROM lined
    UNION ALL
    -- And of the fresh ones, which are few.
    SELECT min(run_at) FROM "{ns}.task"
    WHERE seq > (SELECT n FROM "{ns}.counter" WHERE queue = '' AND state = -1) AND state = 0 AND queue = :queue
)

-- name: workers
SELECT json_group_array(json_array(id, seen_at, about)) FROM "{ns}.worker" WHERE until > ?

-- name: running
SELECT json_group_array(json_array(worker, id)) FROM "{ns}.task" INDEXED BY "{ns}.running" WHERE state = 3

-- name: listed
SELECT {columns} FROM "{ns}.task" WHERE seq IN (SELECT value FROM json_each(?)) ORDER BY seq DESC

-- name: listed_bare
SELECT {bare} FROM "{ns}.task" WHERE seq IN (SELECT value FROM json_each(?)) ORDER BY seq DESC

-- name: first_at
-- The first task from a place on: created_at never falls with the place.
SELECT created_at FROM "{ns}.task" WHERE seq >= ? ORDER BY seq LIMIT 1

-- name: last_seq
SELECT coalesce(max(seq), 0) FROM "{ns}.task"

-- name: list_all
SELECT seq FROM "{ns}.task"
WHERE seq < :before AND seq >= :lowest
  AND (:queue IS NULL OR queue = :queue)
  AND (:states IS NULL OR state IN (SELECT value FROM json_each(:states)))
  AND (:name IS NULL OR name = :name)
ORDER BY seq DESC LIMIT :limit

-- name: list_tagged
SELECT seq FROM "{ns}.tag" JOIN "{ns}.task" USING (seq)
WHERE tag = :tag AND "{ns}.tag".seq < :before AND "{ns}.tag".seq >= :lowest
  AND (:queue IS NULL OR queue = :queue)
  AND (:states IS NULL OR state IN (SELECT value FROM json_each(:states)))
  AND (:name IS NULL OR name = :name)
ORDER BY "{ns}.tag".seq DESC LIMIT :limit

-- name: list_fresh
SELECT seq FROM "{ns}.task"
WHERE seq > (SELECT n FROM "{ns}.counter" WHERE queue = '' AND state = -1)
  AND seq < :before AND seq >= :lowest AND state = 0 AND queue = :queue AND (:name IS NULL OR name = :name)
ORDER BY seq DESC LIMIT :limit

-- name: list_scheduled
SELECT seq FROM "{ns}.task" INDEXED BY "{ns}.scheduled"
WHERE state = 1 AND queue = :queue AND seq < :before AND seq >= :lowest AND (:name IS NULL OR name = :name)
ORDER BY seq DESC LIMIT :limit

-- name: list_ready
SELECT seq FROM "{ns}.task" INDEXED BY "{ns}.ready"
WHERE state = 2 AND line IS NULL AND queue = :queue AND seq < :before AND seq >= :lowest AND (:name IS NULL OR name = :name)
ORDER BY seq DESC LIMIT :limit

-- name: list_lined
SELECT seq FROM "{ns}.line" JOIN "{ns}.task" INDEXED BY "{ns}.lined" ON line = "{ns}.line".id
WHERE "{ns}.line".queue = :queue AND line IS NOT NULL AND state = 2 AND seq < :before AND seq >= :lowest
  AND (:name IS NULL OR name = :name)
ORDER BY seq DESC LIMIT :limit

-- name: list_running
SELECT seq FROM "{ns}.task" INDEXED BY "{ns}.running"
WHERE state = 3 AND queue = :queue AND seq < :before AND seq >= :lowest AND (:name IS NULL OR name = :name)
ORDER BY seq DESC LIMIT :limit

-- name: list_blocked
SELECT seq FROM "{ns}.task" INDEXED BY "{ns}.apart"
WHERE state = 7 AND queue = :queue AND seq < :before AND seq >= :lowest AND (:name IS NULL OR name = :name)
ORDER BY seq DESC LIMIT :limit

-- name: list_members
SELECT seq FROM "{ns}.task" INDEXED BY "{ns}.member"
WHERE flow = :flow AND seq < :before AND seq >= :lowest
  AND (:states IS NULL OR state IN (SELECT value FROM json_each(:states)))
  AND (:queue IS NULL OR queue = :queue)
  AND (:name IS NULL OR name = :name)
  AND (:tag IS NULL OR EXISTS (SELECT 1 FROM "{ns}.tag" WHERE tag = :tag AND "{ns}.tag".seq = "{ns}.task".seq))
ORDER BY seq DESC LIMIT :limit

-- name: list_ended
SELECT seq FROM "{ns}.task" INDEXED BY "{ns}.apart"
WHERE finished_at IS NOT NULL AND queue = :queue AND state = :state AND seq < :before AND seq >= :lowest
  AND (:name IS NULL OR name = :name)
ORDER BY seq DESC LIMIT :limit
