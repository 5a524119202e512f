--! base rare_from many wake due announce waiting limited running task endings corrupt flows limits rare_to many promote
-- ARGV: the name under which to be woken, the queues. Gives 1 if a task is ready or something is to be done about a flow
-- (and otherwise notes the name), the time, when the next task or flow and the next schedule are due (-1: none). Where a
-- schedule is overdue, which perhaps no caller can fire, the next is said to be due in a second at the latest.
local name, next_due, stalled = ARGV[1], -1, {}
local function look(queue)
  local lane = call('HGET', P .. 'lanes', queue)
  if not lane then
    promote(queue)
    if call('EXISTS', P .. 'ready:' .. queue) == 1 then
      return true
    end
    local head = tonumber(call('ZRANGE', P .. 'scheduled:' .. queue, 0, 0, 'WITHSCORES')[2] or -1)
    if head >= 0 and (next_due < 0 or head < next_due) then
      next_due = head
    end
  elseif string.sub(lane, 1, 1) ~= 'p' then
    local is_there, due, is_stalled = rare().limits().outlook(queue, lane)
    if is_there then
      return true
    elseif due and (next_due < 0 or due < next_due) then
      next_due = due
    end
    stalled[queue] = is_stalled
  end
end

local is_there = false
for at = 2, #ARGV do
  is_there = is_there or look(ARGV[at])
end
if made_rare then
  made_rare.conclude()
end
if is_there then
  return { 1, now, -1, -1 }
end
local flow_due = tonumber(call('ZRANGE', P .. 'flows:due', 0, 0, 'WITHSCORES')[2] or -1)
if flow_due >= 0 and flow_due <= now then
  return { 1, now, -1, -1 }
end
for at = 2, #ARGV do
  local key = P .. (stalled[ARGV[at]] and 'stalled:' or 'idle:') .. ARGV[at]
  call('ZADD', key, now, name)
  -- Should all who wait die, nothing is left of them.
  call('EXPIRE', key, 60)
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
