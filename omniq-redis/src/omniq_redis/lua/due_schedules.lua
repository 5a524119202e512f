--! base many
-- ARGV: limit, how many to pass over. Gives id and what is stored of the schedules that are due, the earliest first.
local due = call('ZRANGEBYSCORE', P .. 'schedules:due', '-inf', now, 'LIMIT', tonumber(ARGV[2]), tonumber(ARGV[1]))
return { due, fields(P .. 'schedules', due) }
