-- name: trigger
-- Fires when somebody may have to be woken, or the clock was put back. Belongs to a connection, not to the file.
CREATE TEMP TRIGGER "{ns}.single" AFTER INSERT ON main."{ns}.task"
WHEN NEW.state = 0 AND (
    EXISTS (SELECT 1 FROM "{ns}.waiter")
    OR NEW.created_at < (SELECT created_at FROM "{ns}.task" WHERE seq = NEW.seq - 1)
)
BEGIN
    SELECT omniq_notice();
    UPDATE "{ns}.task"
    SET created_at = (SELECT created_at FROM "{ns}.task" WHERE seq = NEW.seq - 1),
        run_at = (SELECT created_at FROM "{ns}.task" WHERE seq = NEW.seq - 1)
    WHERE seq = NEW.seq AND created_at < (SELECT created_at FROM "{ns}.task" WHERE seq = NEW.seq - 1);
END
