--! base schedule
-- ARGV: id. Gives 1, or 0 if it was not there.
local revision = revision_of(ARGV[1])
if revision > revision_floor() then
  call('HSET', P .. 'meta', 'revision_floor', string.format('%.0f', revision))
end
call('ZREM', P .. 'schedules:due', ARGV[1])
return call('HDEL', P .. 'schedules', ARGV[1])
