-- name: lock
-- Takes the file's lock for writing, before anything is read that must still hold when it is written. Changes nothing.
DELETE FROM "{ns}.meta" WHERE 0
