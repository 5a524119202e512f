-- Reads what a task with a key, a named limit or a debounce has in the place of its unique key: a byte that no text has,
-- flags 1 (1: a key, 2: a named limit, 4: debounced, 8: a unique key or a place in a flow follows), line 16, length of the
-- key 2 and of the limit's name 2, when the first of those was enqueued that took each other's places 8, then these.
local function limited_of(word)
  if #word < 30 then
    return {}
  end
  local flags, line, key, limit, first = struct.unpack('>Bc16HHI8', word, 2)
  local found, at = { line = flags % 4 > 0 and line or nil, first = math.floor(flags / 4) % 2 == 1 and first or nil }, 31
  if flags % 2 == 1 then
    found.key = string.sub(word, at, at + key - 1)
  end
  if math.floor(flags / 2) % 2 == 1 then
    found.limit = string.sub(word, at + key, at + key + limit - 1)
  end
  if flags >= 8 then
    found.word = string.sub(word, at + key + limit)
  end
  return found
end
