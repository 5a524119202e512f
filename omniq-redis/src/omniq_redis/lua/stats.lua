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
  local due = call('ZRANGE', P .. 'scheduled:' .. queue, 0, 0, 'WITHSCORES')[2]
  if due and tonumber(due) <= now then
    oldest = math.min(oldest or due, due)
  end
  return oldest and math.max(now - oldest, 0) or -1
end

local found = {}
local function add(queue)
  local scheduled = call('ZCARD', P .. 'scheduled:' .. queue)
  local due = scheduled > 0 and call('ZCOUNT', P .. 'scheduled:' .. queue, '-inf', now) or 0
  local paused = call('SISMEMBER', P .. 'paused', queue)
  local row = {
    queue,
    paused,
    scheduled - due,
    call('ZCARD', P .. 'ready:' .. queue) + due,
    tonumber(call('HGET', P .. 'counts', queue) or 0),
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
for _, key in ipairs({ 'queues', 'paused' }) do
  for _, queue in ipairs(call('SMEMBERS', P .. key)) do
    if not seen[queue] then
      seen[queue] = true
      add(queue)
    end
  end
end
return found
