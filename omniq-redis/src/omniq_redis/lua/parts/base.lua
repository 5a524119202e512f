-- KEYS[1] is what the names of all of the namespace's keys begin with; they are in one slot.
local P = KEYS[1]
local call = redis.call
local time = call('TIME')
local now = time[1] * 1000000 + time[2]
local now8 = struct.pack('>I8', now)
local NEVER = string.rep('\0', 8)
local LATEST = 253402300799999968
