-- Runs a command that takes any number of arguments, in pieces that Lua's stack can hold.
local function apply(command, key, items)
  local result = 0
  for i = 1, #items, 4000 do
    result = call(command, key, unpack(items, i, math.min(i + 3999, #items)))
  end
  return result
end

-- Reads a value for each id, false where there is none.
local function fields(key, ids)
  local values = {}
  for i = 1, #ids, 4000 do
    local some = call('HMGET', key, unpack(ids, i, math.min(i + 3999, #ids)))
    for j = 1, #some do
      values[i + j - 1] = some[j]
    end
  end
  return values
end

local function strings(kind, ids)
  local values = {}
  for i = 1, #ids, 4000 do
    local keys = {}
    for j = i, math.min(i + 3999, #ids) do
      keys[#keys + 1] = P .. kind .. ids[j]
    end
    local some = call_any('MGET', unpack(keys))
    for j = 1, #some do
      values[i + j - 1] = some[j]
    end
  end
  return values
end

-- Gives the table of a queue in a table of them.
local function of(queues, queue)
  local found = queues[queue]
  if not found then
    found = { ready = {}, scheduled = {}, succeeded = {}, failed = {}, cancelled = {}, ended = 0 }
    queues[queue] = found
  end
  return found
end
