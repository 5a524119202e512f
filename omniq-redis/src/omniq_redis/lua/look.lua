--! base many promote
-- ARGV: the name under which to be woken, the queues. Gives 1 if a task is ready or something is to be done about a flow
-- (and otherwise notes the name), the time, when the next task or flow and the next schedule are due (-1: none). Where a
-- schedule is overdue, which perhaps no caller can fire, the next is said to be due in a second at the latest.
local name, next_due = ARGV[1], -1
local function look(queue)
  if call('SISMEMBER', P .. 'paused', queue) == 0 then
    promote(queue)
    if call('EXISTS', P .. 'ready:' .. queue) == 1 then
      return true
    end
    local head = tonumber(call('ZRANGE', P .. 'scheduled:' .. queue, 0, 0, 'WITHSCORES')[2] or -1)
    if head >= 0 and (next_due < 0 or head < next_due) then
      next_due = head
    end
  end
end

for at = 2, #ARGV do
  if look(ARGV[at]) then
    return { 1, now, -1, -1 }
  end
end
local flow_due = tonumber(call('ZRANGE', P .. 'flows:due', 0, 0, 'WITHSCORES')[2] or -1)
if flow_due >= 0 and flow_due <= now then
  return { 1, now, -1, -1 }
end
for at = 2, #ARGV do
  call('ZADD', P .. 'idle:' .. ARGV[at], now, name)
  -- Should all who wait die, nothing is left of them.
  call('EXPIRE', P .. 'idle:' .. ARGV[at], 60)
end
local next_run = tonumber(call('ZRANGE', P .. 'schedules:due', 0, 0, 'WITHSCORES')[2] or -1)
if next_run >= 0 and next_run <= now then
  local after = string.format('(%.0f', now)
  next_run = tonumber(call('ZRANGEBYSCORE', P .. 'schedules:due', after, '+inf', 'WITHSCORES', 'LIMIT', 0, 1)[2] or -1)
  next_run = next_run < 0 and now + 1e6 or math.min(next_run, now + 1e6)
end
if flow_due >= 0 then
  next_due = next_due < 0 and flow_due or math.min(next_due, flow_due)
end
return { 0, now, next_due, next_run }
