--! base many wake due store
-- ARGV: id, head, body of each task. Gives the position and the stored task's id for each that was not stored.
return store(1)
