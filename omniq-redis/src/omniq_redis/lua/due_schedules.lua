--! base many
-- ARGV: limit. Gives what is stored of the schedules that are due, the earliest first.
local due = call('ZRANGEBYSCORE', P .. 'schedules:due', '-inf', now, 'LIMIT', 0, tonumber(ARGV[1]))
return fields(P .. 'schedules', due)
