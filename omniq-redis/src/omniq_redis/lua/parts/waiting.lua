-- What claim needs of every task; the part named task draws what is stored, and has what is needed more seldom.

-- Any client of the server can write anything: these tell whether a record has all that the scripts read of it.
-- The rest is looked at by the clients.
local function has_head(text, at)
  if #text < at + 48 then
    return false
  end
  local queue_length, unique_length = struct.unpack('>HH', text, at + 45)
  return #text >= at + 48 + queue_length + math.max(unique_length - 1, 0)
end

local function is_past(past)
  if #past < 52 or not string.find(past, '^[wbsfc]') then
    return false
  end
  local at = 45 + struct.unpack('>H', past, 43)
  if #past < at + 7 then
    return false
  end
  local err, progress = struct.unpack('>I4I4', past, at)
  return #past >= at + 7 + err + progress
end

local function expires_of(order, past)
  if past then
    return string.sub(past, 34, 41)
  end
  return string.sub(order, 25, 32)
end

-- Counts the running tasks of a queue. What is no number is counted from 0 again.
local function count_running(queue, change)
  local counted = redis.pcall('HINCRBY', P .. 'counts', queue, change)
  if type(counted) == 'table' then
    call('HSET', P .. 'counts', queue, math.max(change, 0))
  end
end
