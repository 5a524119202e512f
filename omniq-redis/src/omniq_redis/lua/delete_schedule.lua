--! base
-- ARGV: id. Gives 1, or 0 if it was not there.
call('ZREM', P .. 'schedules:due', ARGV[1])
return call('HDEL', P .. 'schedules', ARGV[1])
