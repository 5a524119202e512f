-- KEYS[1] is what the names of all of the namespace's keys begin with; they are in one slot.
local P = KEYS[1]
local call = redis.call
local time = call('TIME')
local now = time[1] * 1000000 + time[2]
local now8 = struct.pack('>I8', now)
-- Runs what fails where a key is of another type than ours, and gives its result, or nil then.
local function of_its_type(run, ...)
  local is_done, result = pcall(run, ...)
  if is_done then
    return result
  end
  local text = type(result) == 'table' and result.err or tostring(result)
  if not string.find(text, 'WRONGTYPE', 1, true) then
    error(result, 0)
  end
end
local NEVER = string.rep('\0', 8)
local LATEST = 253402300799999968
