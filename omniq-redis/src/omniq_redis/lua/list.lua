--! base many task records
-- ARGV: before which sequence number (0: from the latest), how many tasks to look at, queue, the state's letter, the
-- beginning and a part of a body; '' does not restrict. Gives the sequence number to go on from (0: no more are left),
-- the ids that match, and what is stored of them.
local before, budget = tonumber(ARGV[1]), tonumber(ARGV[2])
local queue, state, start, part = ARGV[3], ARGV[4], ARGV[5], ARGV[6]
local highest = before > 0 and math.floor((before - 1) / 100) or '+inf'
local ids, lowest = {}, 0
for _, number in ipairs(call('ZREVRANGEBYSCORE', P .. 'log', highest, '-inf', 'LIMIT', 0, math.ceil(budget / 100) + 1)) do
  if #ids >= budget then
    break
  end
  local chunk = call('HGETALL', P .. 'log:' .. number)
  local entries = {}
  for i = 1, #chunk, 2 do
    local seq = number * 100 + (tonumber(chunk[i]) or 0)
    if before == 0 or seq < before then
      entries[#entries + 1] = { seq, chunk[i + 1] }
    end
  end
  table.sort(entries, function(one, other) return one[1] > other[1] end)
  for _, entry in ipairs(entries) do
    if #ids >= budget then
      break
    end
    ids[#ids + 1] = entry[2]
    lowest = entry[1]
  end
  if #entries == 0 then
    lowest = number * 100
  end
end
local found = records(ids)
local matching, kept = {}, { now }
for i = 1, #ids do
  local at = 4 * i - 2
  local order, past = found[at], found[at + 1]
  if order and not has_head(order, 1) then
    -- What cannot be read is shown among all tasks, and among those that failed.
    if queue == '' and (state == '' or state == 'f') and start == '' and part == '' then
      matching[#matching + 1] = ids[i]
      for j = 0, 3 do
        kept[#kept + 1] = found[at + j]
      end
    end
  elseif order then
    local queue_length, unique_length = struct.unpack('>HH', order, 46)
    local body = 50 + queue_length + math.max(unique_length - 1, 0)
    local there = queue == '' or queue == string.sub(order, 50, 49 + queue_length)
    if there and state ~= '' then
      local letter
      if found[at + 2] then
        letter = 'r'
      elseif past and not is_past(past) then
        letter = 'f'
      elseif past and string.sub(past, 1, 1) ~= 'w' then
        letter = string.sub(past, 1, 1)
      else
        local run = past and struct.unpack('>I8', past, 26) or struct.unpack('>I8', order, 17)
        letter = run > now and 'd' or 'w'
      end
      there = letter == state
    end
    if there and start ~= '' then
      there = string.sub(order, body, body + #start - 1) == start
    end
    if there and part ~= '' then
      there = string.find(order, part, body, true)
    end
    if there then
      matching[#matching + 1] = ids[i]
      for j = 0, 3 do
        kept[#kept + 1] = found[at + j]
      end
    end
  end
end
return { lowest, matching, kept }
