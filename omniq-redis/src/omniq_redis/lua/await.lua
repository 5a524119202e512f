--! base many
-- ARGV: the channel of a waiter for the end of tasks ('': it only asks), ids. Returns those that have ended or are
-- not there; if there are none, it is told when one ends.
local channel, ids = ARGV[1], {}
for i = 2, #ARGV do
  ids[i - 1] = ARGV[i]
end
local orders, ended = {}, {}
local running = fields(P .. 'running', ids)
for i, id in ipairs(ids) do
  if not running[i] then
    local state = redis.pcall('GETRANGE', P .. 'h:' .. id, 0, 0)
    if (state ~= '' and state ~= 'w' and state ~= 'b') or call('EXISTS', P .. 'o:' .. id) == 0 then
      ended[#ended + 1] = id
    end
  end
end
if #ended == 0 and channel ~= '' then
  local waiting = fields(P .. 'waiting', ids)
  for i, id in ipairs(ids) do
    local names = waiting[i]
    if not names then
      call('HSET', P .. 'waiting', id, channel)
    elseif not string.find(' ' .. names .. ' ', ' ' .. channel .. ' ', 1, true) then
      call('HSET', P .. 'waiting', id, names .. ' ' .. channel)
    end
  end
end
return ended
