--! base many waiting limited running task records
-- Lists tasks, the latest enqueued first. ARGV: before which sequence number (0: from the latest), how many tasks to look
-- at, after how many that match to stop, queue, the letters of the states, the beginning and a part of a body, created
-- from and before which time (0: any), slack of the clocks, 1 if bare, flow; '' does not restrict. Gives the sequence
-- number to go on from (0: no more are left), how many were looked at, the ids that match, what is stored of them and, if
-- bare, the sizes of body, result (-1: none) and traceback (-1: it is there) of each.
local before, budget, wanted = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local queue, states, start, part = ARGV[4], ARGV[5], ARGV[6], ARGV[7]
local from, till, slack, bare = tonumber(ARGV[8]), tonumber(ARGV[9]), tonumber(ARGV[10]), ARGV[11] == '1'
local flow = ARGV[12]
local READ = 1024

local function is_asked(letters)
  return states == '' or string.find(states, '[' .. letters .. ']') ~= nil
end

local function later_first(one, other)
  return one[1] > other[1]
end

-- Gives a string from its beginning, false if there is none.
local function beginning(key, length)
  local text = redis.pcall('GETRANGE', key, 0, length - 1)
  return type(text) == 'string' and text ~= '' and text
end

-- Gives a chunk of the log: pairs of sequence number and id, the latest first.
local function entries_of(number)
  local chunk = call('HGETALL', P .. 'log:' .. number)
  local entries = {}
  for i = 1, #chunk, 2 do
    entries[#entries + 1] = { number * 100 + (tonumber(chunk[i]) or 0), chunk[i + 1] }
  end
  table.sort(entries, later_first)
  return entries
end

-- Gives the number of the last chunk that can hold tasks enqueued before a time.
local function last_chunk(time)
  local low, high = 0, call('ZCARD', P .. 'log')
  while low < high do
    local middle = math.floor((low + high) / 2)
    local entries = entries_of(call('ZRANGE', P .. 'log', middle, middle)[1])
    local order = #entries > 0 and beginning(P .. 'o:' .. entries[#entries][2], 16)
    if order and #order == 16 and struct.unpack('>I8', order, 9) >= time then
      high = middle
    else
      low = middle + 1
    end
  end
  return low > 0 and call('ZRANGE', P .. 'log', low - 1, low - 1)[1]
end

-- Gives the latest tasks of all, as far as they are to be looked at, and where to go on.
local function logged()
  local highest = before > 0 and math.floor((before - 1) / 100) or '+inf'
  if before == 0 and till > 0 then
    highest = last_chunk(till + slack)
    if not highest then
      return {}, 0
    end
  end
  local found, lowest = {}, 0
  local chunks = call('ZREVRANGEBYSCORE', P .. 'log', highest, '-inf', 'LIMIT', 0, math.ceil(budget / 100) + 1)
  for _, number in ipairs(chunks) do
    if #found >= budget then
      break
    end
    for _, entry in ipairs(entries_of(number)) do
      if #found < budget and (before == 0 or entry[1] < before) then
        found[#found + 1] = entry
      end
    end
    lowest = #found > 0 and found[#found][1] or number * 100
  end
  return found, lowest
end

local function seq_of(id)
  local order = beginning(P .. 'o:' .. id, 8)
  return order and #order == 8 and struct.unpack('>I8', order)
end

-- Gives the same of a key that has them in the order of their sequence numbers.
local function in_order(key)
  local last = before > 0 and string.format('(%.0f', before) or '+inf'
  local some = call('ZREVRANGEBYSCORE', key, last, '-inf', 'WITHSCORES', 'LIMIT', 0, budget + 1)
  local found = {}
  for i = 1, math.min(#some, 2 * budget), 2 do
    found[#found + 1] = { tonumber(some[i + 1]), some[i] }
  end
  return found, #some > 2 * budget and found[budget][1] or 0
end

-- Gives the same of the states and the queue that are asked for, where these tasks are few or stand in the order of
-- their sequence numbers; nil where they are soon met among all.
local function indexed()
  if flow ~= '' then
    return in_order(P .. 'ft:' .. flow)
  elseif queue == '' and states == '' then
    return nil
  end
  local queues = queue ~= '' and { queue } or call('SMEMBERS', P .. 'queues')
  local waits, runs, well = is_asked('dw'), is_asked('r'), is_asked('s')
  local number = runs and call('HLEN', P .. 'running') or 0
  local function count(name)
    if waits then
      number = number + call('ZCARD', P .. 'ready:' .. name) + call('ZCARD', P .. 'scheduled:' .. name)
        + call('ZCARD', P .. 'lined:' .. name)
    end
    if well then
      number = number + call('ZCARD', P .. 'succeeded:' .. name)
    end
  end
  for _, name in ipairs(queues) do
    count(name)
  end
  if number * number > call('ZCARD', P .. 'log') * 100 * wanted then
    return nil
  end
  local found = {}
  local function add(seq, id)
    if seq and (before == 0 or seq < before) then
      found[#found + 1] = { seq, id }
    end
  end
  local function gather(name)
    if waits then
      for _, state in ipairs({ 'ready:', 'scheduled:' }) do
        for _, place in ipairs(call('ZRANGE', P .. state .. name, 0, -1)) do
          if #place > 15 then
            add(struct.unpack('>I8', '\0\0' .. string.sub(place, 10, 15)), string.sub(place, 16))
          end
        end
      end
      for _, id in ipairs(call('ZRANGE', P .. 'lined:' .. name, 0, -1)) do
        add(seq_of(id), id)
      end
    end
    if well then
      for _, id in ipairs(call('ZRANGE', P .. 'succeeded:' .. name, 0, -1)) do
        add(seq_of(id), id)
      end
    end
    for letter, key in pairs(IN_ORDER) do
      if is_asked(letter) then
        local last = before > 0 and '(' .. before or '+inf'
        local some = call('ZREVRANGEBYSCORE', P .. key .. name, last, '-inf', 'WITHSCORES', 'LIMIT', 0, budget + 1)
        for i = 1, #some, 2 do
          add(tonumber(some[i + 1]), some[i])
        end
      end
    end
  end
  for _, name in ipairs(queues) do
    gather(name)
  end
  for _, id in ipairs(runs and call('HKEYS', P .. 'running') or {}) do
    add(seq_of(id), id)
  end
  table.sort(found, later_first)
  local lowest = 0
  if #found > budget then
    lowest = found[budget][1]
    for i = #found, budget + 1, -1 do
      found[i] = nil
    end
  end
  return found, lowest
end

-- Gives an order up to its body, and that there is one; false and true if it cannot be read.
local function order_to_body(id)
  local length, key = READ, P .. 'o:' .. id
  local order = beginning(key, length)
  while order do
    local is_whole = #order < length
    if has_head(order, 1) then
      local queue_length, unique_length = struct.unpack('>HH', order, 46)
      local body = 50 + queue_length + math.max(unique_length - 1, 0)
      local stop = string.find(order, '\n', body, true)
      if stop or is_whole then
        return string.sub(order, 1, stop or #order), body
      end
    elseif is_whole then
      return false, true
    end
    length = length * 16
    order = beginning(key, length)
  end
  return false, call('EXISTS', key) == 1
end

-- Gives a past up to its result, and the length of all of it; false if it cannot be read, nil if there is none.
local function past_to_result(id)
  local key = P .. 'h:' .. id
  local past = beginning(key, READ)
  if not past then
    return nil
  end
  local size = call('STRLEN', key)
  if size < 52 or not string.find(past, '^[wbsfc]') then
    return false
  end
  local at = 45 + struct.unpack('>H', past, 43)
  if size < at + 7 then
    return false
  end
  if #past < at + 7 then
    past = beginning(key, at + 7)
  end
  local err, progress = struct.unpack('>I4I4', past, at)
  local stop = at + 7 + err + progress
  if size < stop then
    return false
  end
  return (#past < stop and beginning(key, stop) or string.sub(past, 1, stop)), size
end

local function is_of_flow(order)
  local its = head_of(order, 1).member
  return its and its.flow == flow
end

local function letter_of(order, past, runs)
  if runs then
    return 'r'
  elseif past == false then
    return 'f'
  elseif past and string.sub(past, 1, 1) ~= 'w' then
    return string.sub(past, 1, 1)
  elseif not past and is_blocked(past, head_of(order, 1)) then
    return 'b'
  end
  return run_of(order, past) > now and 'd' or 'w'
end

-- Gives a past without its traceback and its attempt log, and the size of the former.
local function without_traceback(past)
  local stop = end_of_attempt(past, 10)
  local length, progress = struct.unpack('>I4I4', past, stop + 1)
  if length <= 1000 then
    return past, -1
  end
  local size, text = -1, split_error(string.sub(past, stop + 9, stop + 8 + length))
  local is_read, err = pcall(cjson.decode, text)
  if is_read and type(err) == 'table' and type(err[3]) == 'string' then
    size = #err[3]
    err[3] = ''
    text = cjson.encode(err)
  end
  return string.sub(past, 1, stop) .. struct.pack('>I4I4', #text, progress) .. text .. string.sub(past, stop + 9 + length),
    size
end

local entries, lowest = indexed()
if not entries then
  entries, lowest = logged()
end
local all = {}
for i, entry in ipairs(entries) do
  all[i] = entry[2]
end
local running = fields(P .. 'running', all)
local looked, matching, stored, sizes = 0, {}, { now }, {}
for i, entry in ipairs(entries) do
  if #matching >= wanted then
    lowest = entries[i - 1][1]
    break
  end
  looked = i
  local id = entry[2]
  local order, body = order_to_body(id)
  local there = body and true
  local past, size
  if there and not order then
    -- What cannot be read is shown among all tasks, and among those that failed.
    there = queue == '' and is_asked('f') and start == '' and part == '' and from == 0 and flow == ''
  elseif there then
    local created = struct.unpack('>I8', order, 9)
    if created < from - slack then
      lowest = 0
      break
    end
    there = created >= from and (till == 0 or created < till)
      and (queue == '' or queue == string.sub(order, 50, 49 + struct.unpack('>H', order, 46)))
      and (start == '' or string.sub(order, body, body + #start - 1) == start)
      and (part == '' or string.find(order, part, body, true))
      and (flow == '' or is_of_flow(order))
    if there and (states ~= '' or bare) then
      past, size = past_to_result(id)
      there = is_asked(letter_of(order, past, running[i]))
    end
  end
  if there then
    local found = #matching + 1
    matching[found] = id
    if bare and order then
      local kept, traceback = past, -1
      if past then
        kept, traceback = without_traceback(past)
      elseif past == false then
        kept = beginning(P .. 'h:' .. id, READ)
      end
      stored[4 * found - 2] = order
      stored[4 * found - 1] = kept or false
      stored[4 * found] = running[i]
      stored[4 * found + 1] = running[i] and call('ZSCORE', P .. 'leased', id)
      local result = past and string.sub(past, 1, 1) == 's' and size - #past or -1
      sizes[found] = { call('STRLEN', P .. 'o:' .. id) - #order, result, traceback }
    elseif bare then
      local some = records({ id })
      for j = 1, 4 do
        stored[4 * found - 3 + j] = some[j + 1]
      end
      sizes[found] = { 0, -1, -1 }
    end
  end
end
return { lowest, looked, matching, bare and stored or records(matching), sizes }
