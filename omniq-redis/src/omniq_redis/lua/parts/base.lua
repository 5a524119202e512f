-- KEYS[1] is what the names of all of the namespace's keys begin with; they are in one slot.
local P = KEYS[1]

-- Runs a command that takes a key of any type, or of which it is known that it is of the right one.
local call_any = redis.call

-- Runs any other. If a key is of another type than ours it is put aside first: without that a script would stop halfway,
-- with some of its changes made and some not. Its bytes are kept under another name.
local pcall_ = redis.pcall
local function call(...)
  local result = pcall_(...)
  if type(result) ~= 'table' or not result.err then
    return result
  end
  local TYPES = { G = 'string', H = 'hash', I = 'string', S = 'set', Z = 'zset' }
  local command, key = ...
  local found, wanted = pcall_('TYPE', key).ok, TYPES[string.sub(command, 1, 1)]
  if found and wanted and found ~= wanted and found ~= 'none' then
    local aside = P .. 'aside:' .. string.sub(key, #P + 1)
    pcall_('RENAME', key, aside)
    pcall_('SADD', P .. 'aside', aside)
    pcall_('SET', P .. 'restoring', '+inf')
  end
  local err = result.err
  if key == P .. 'seq' and (string.find(err, 'WRONGTYPE') or string.find(err, 'integer') or string.find(err, 'overflow')) then
    -- Or no number, or the last. New tasks come behind all that are there.
    local last = pcall_('ZREVRANGEBYSCORE', P .. 'log', '+inf', '-inf', 'WITHSCORES', 'LIMIT', 0, 1)[2]
    pcall_('SET', key, string.format('%.0f', (math.floor(tonumber(last) or 0) + 1) * 100))
  end
  return call_any(...)
end
local time = call_any('TIME')
local now = time[1] * 1000000 + time[2]
local now8 = struct.pack('>I8', now)
local NEVER = string.rep('\0', 8)
local LATEST = 253402300799999968
