--! base wake
-- ARGV: queue. Gives 1, or 0 if it was not paused.
local lane = call('HGET', P .. 'lanes', ARGV[1]) or '-'
if string.sub(lane, 1, 1) ~= 'p' then
  return 0
elseif #lane == 1 then
  call('HDEL', P .. 'lanes', ARGV[1])
else
  call('HSET', P .. 'lanes', ARGV[1], '-' .. string.sub(lane, 2))
end
wake(ARGV[1])
local head = call('ZRANGE', P .. 'scheduled:' .. ARGV[1], 0, 0, 'WITHSCORES')[2]
if head then
  call('PUBLISH', P .. 'due', string.format('%.0f:', head) .. ARGV[1])
end
return 1
