-- name: prospects
-- Whether a task is ready or due in one of the queues, or there is something to do about a flow; when the next will be;
-- when the next schedule fires, or when to look again as one is overdue, which perhaps no caller can fire; and the
-- queues that have limits or lines, about which the rest says nothing.
SELECT EXISTS (SELECT 1 FROM "{ns}.flow" WHERE ended = 0 AND due <= :now)
       OR EXISTS (
           SELECT 1 FROM json_each(:queues) AS mine
           WHERE NOT EXISTS (SELECT 1 FROM "{ns}.paused" WHERE queue = mine.value)
             AND NOT EXISTS (SELECT 1 FROM "{ns}.lane" WHERE queue = mine.value)
             AND (
                 EXISTS (SELECT 1 FROM "{ns}.task" WHERE state = 2 AND line IS NULL AND queue = mine.value)
                 OR EXISTS (SELECT 1 FROM "{ns}.task" WHERE state = 1 AND queue = mine.value AND run_at <= :now)
                 OR EXISTS (
                     SELECT 1 FROM "{ns}.task"
                     WHERE seq > (SELECT n FROM "{ns}.counter" WHERE queue = '' AND state = -1)
                       AND state = 0 AND queue = mine.value
                 )
             )
       ),
       (
           SELECT min((SELECT min(run_at) FROM "{ns}.task" WHERE state = 1 AND queue = mine.value))
           FROM json_each(:queues) AS mine
           WHERE NOT EXISTS (SELECT 1 FROM "{ns}.paused" WHERE queue = mine.value)
             AND NOT EXISTS (SELECT 1 FROM "{ns}.lane" WHERE queue = mine.value)
       ),
       (
           SELECT min(at) FROM (
               SELECT min(next_run) AS at FROM "{ns}.schedule"
               WHERE next_run IS NOT NULL AND paused = 0 AND next_run > :now
               UNION ALL
               SELECT :now + :pause WHERE EXISTS (
                   SELECT 1 FROM "{ns}.schedule" WHERE next_run IS NOT NULL AND paused = 0 AND next_run <= :now
               )
           )
       ),
       (
           SELECT json_group_array(mine.value) FROM json_each(:queues) AS mine
           WHERE EXISTS (SELECT 1 FROM "{ns}.lane" WHERE queue = mine.value)
             AND NOT EXISTS (SELECT 1 FROM "{ns}.paused" WHERE queue = mine.value)
       )

-- name: register
INSERT OR REPLACE INTO "{ns}.waiter" (topic, token, port, until) VALUES {(?, ?, ?, ?)}

-- name: unregister
DELETE FROM "{ns}.waiter" WHERE token = ?

-- name: live
SELECT json_group_array(id) FROM "{ns}.task" WHERE id IN (SELECT value FROM json_each(?)) AND (state < 4 OR state = 7)

-- name: others
SELECT count(*) FROM "{ns}.waiter" WHERE topic = ?
