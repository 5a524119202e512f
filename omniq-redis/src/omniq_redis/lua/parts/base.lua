-- KEYS[1] is what the names of all of the namespace's keys begin with; they are in one slot.
local P = KEYS[1]

-- Runs a command once more that failed, after a key of another type than ours has been put aside: without that a script
-- would stop halfway, with some of its changes made and some not. Its bytes are kept under another name.
local function call_again(err, command, key, ...)
  local TYPES = { G = 'string', H = 'hash', I = 'string', S = 'set', Z = 'zset' }
  local found, wanted = redis.pcall('TYPE', key).ok, TYPES[string.sub(command, 1, 1)]
  if found and wanted and found ~= wanted and found ~= 'none' then
    local aside = P .. 'aside:' .. string.sub(key, #P + 1)
    redis.pcall('RENAME', key, aside)
    redis.pcall('SADD', P .. 'aside', aside)
    redis.pcall('SET', P .. 'restoring', '+inf')
  end
  if key == P .. 'seq' and (string.find(err, 'WRONGTYPE') or string.find(err, 'integer') or string.find(err, 'overflow')) then
    -- Or no number, or the last. New tasks come behind all that are there.
    local last = redis.pcall('ZREVRANGEBYSCORE', P .. 'log', '+inf', '-inf', 'WITHSCORES', 'LIMIT', 0, 1)[2]
    redis.pcall('SET', key, string.format('%.0f', (math.floor(tonumber(last) or 0) + 1) * 100))
  end
  return redis.call(command, key, ...)
end

local pcall_ = redis.pcall
local function call(...)
  local result = pcall_(...)
  if type(result) == 'table' and result.err then
    return call_again(result.err, ...)
  end
  return result
end
local time = call('TIME')
local now = time[1] * 1000000 + time[2]
local now8 = struct.pack('>I8', now)
local NEVER = string.rep('\0', 8)
local LATEST = 253402300799999968
