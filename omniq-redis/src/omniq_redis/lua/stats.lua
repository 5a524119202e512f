--! base
-- Gives for each queue: its name, 1 if paused, scheduled, ready, running, succeeded, failed, cancelled, blocked, and for how
-- many microseconds its oldest ready task has waited, or -1.
local function oldest_of(queue)
  local key, oldest, from = P .. 'ready:' .. queue, nil, '-'
  for _ = 1, 256 do
    -- Within a priority the head is the oldest: one look for each priority in use.
    local head = call('ZRANGEBYLEX', key, from, '+', 'LIMIT', 0, 1)[1]
    if not head then
      break
    end
    local place = string.byte(head) or 0
    if #head > 15 then
      oldest = math.min(oldest or now, (struct.unpack('>I8', head, 2)))
      from = '[' .. string.char(math.min(place + 1, 255))
    else
      from = '(' .. head  -- no task of ours
    end
    if place == 255 then
      break
    end
  end
  for _, first in ipairs({ 'scheduled:', 'lined:' }) do
    local run = tonumber(call('ZRANGE', P .. first .. queue, 0, 0, 'WITHSCORES')[2] or -1)
    if run >= 0 and run <= now then
      oldest = math.min(oldest or run, run)
    end
  end
  return oldest and math.max(now - oldest, 0) or -1
end

local found, lanes = {}, {}
local stored = call('HGETALL', P .. 'lanes')
for i = 1, #stored, 2 do
  lanes[stored[i]] = stored[i + 1]
end
local function add(queue)
  local scheduled = call('ZCARD', P .. 'scheduled:' .. queue)
  local due = scheduled > 0 and call('ZCOUNT', P .. 'scheduled:' .. queue, '-inf', now) or 0
  local paused = lanes[queue] and string.sub(lanes[queue], 1, 1) == 'p' and 1 or 0
  local row = {
    queue,
    paused,
    scheduled - due,
    call('ZCARD', P .. 'ready:' .. queue) + call('ZCARD', P .. 'lined:' .. queue) + due,
    tonumber(call('HGET', P .. 'counts', queue) or 0) or 0,
    call('ZCARD', P .. 'succeeded:' .. queue),
    call('ZCARD', P .. 'failed:' .. queue),
    call('ZCARD', P .. 'cancelled:' .. queue),
    call('ZCARD', P .. 'blocked:' .. queue),
    oldest_of(queue),
  }
  if paused == 0 and row[3] + row[4] + row[5] + row[6] + row[7] + row[8] + row[9] == 0 then
    call('SREM', P .. 'queues', queue)
    call('HDEL', P .. 'counts', queue)
  else
    found[#found + 1] = row
  end
end

local seen = {}
for _, queue in ipairs(call('SMEMBERS', P .. 'queues')) do
  seen[queue] = true
  add(queue)
end
for queue in pairs(lanes) do
  if not seen[queue] then
    add(queue)
  end
end
return found
