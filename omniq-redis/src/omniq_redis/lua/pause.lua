--! base
-- ARGV: queue. Gives 1, or 0 if it was paused already.
local lane = call('HGET', P .. 'lanes', ARGV[1]) or '-'
if string.sub(lane, 1, 1) == 'p' then
  return 0
end
call('HSET', P .. 'lanes', ARGV[1], 'p' .. string.sub(lane, 2))
return 1
