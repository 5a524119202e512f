--! base many promote
-- ARGV: the name under which to be woken, the queues. Gives 1 if a task is ready (and otherwise notes the name), the time,
-- when the next task and the next schedule are due (-1: none).
local name, next_due = ARGV[1], -1
for at = 2, #ARGV do
  local queue = ARGV[at]
  if call('SISMEMBER', P .. 'paused', queue) == 0 then
    promote(queue)
    if call('EXISTS', P .. 'ready:' .. queue) == 1 then
      return { 1, now, -1, -1 }
    end
    local head = tonumber(call('ZRANGE', P .. 'scheduled:' .. queue, 0, 0, 'WITHSCORES')[2] or -1)
    if head >= 0 and (next_due < 0 or head < next_due) then
      next_due = head
    end
  end
end
for at = 2, #ARGV do
  call('ZADD', P .. 'idle:' .. ARGV[at], now, name)
  -- Should all who wait die, nothing is left of them.
  call('EXPIRE', P .. 'idle:' .. ARGV[at], 60)
end
return { 0, now, next_due, tonumber(call('ZRANGE', P .. 'schedules:due', 0, 0, 'WITHSCORES')[2] or -1) }
