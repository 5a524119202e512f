-- name: trigger
-- Fires when a caller may have to be woken, or the clock was put back (by a year at most: else it is the other record
-- that is wrong). Belongs to a connection, not to the file.
CREATE TEMP TRIGGER "{ns}.single" AFTER INSERT ON main."{ns}.task"
WHEN NEW.state = 0 AND (
    EXISTS (SELECT 1 FROM "{ns}.waiter")
    OR (SELECT created_at FROM "{ns}.task" WHERE seq = NEW.seq - 1) BETWEEN NEW.created_at + 1 AND NEW.created_at + 31622400000000
)
BEGIN
    SELECT omniq_notice();
    UPDATE "{ns}.task"
    SET created_at = (SELECT created_at FROM "{ns}.task" WHERE seq = NEW.seq - 1),
        run_at = (SELECT created_at FROM "{ns}.task" WHERE seq = NEW.seq - 1)
    WHERE seq = NEW.seq
      AND (SELECT created_at FROM "{ns}.task" WHERE seq = NEW.seq - 1) BETWEEN created_at + 1 AND created_at + 31622400000000;
END
