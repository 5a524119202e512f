--! base schedule
-- ARGV: id. Gives 1, or 0 if it was not there.
raise_revision_floor(revision_of(ARGV[1]))
call('ZREM', P .. 'schedules:due', ARGV[1])
return call('HDEL', P .. 'schedules', ARGV[1])
