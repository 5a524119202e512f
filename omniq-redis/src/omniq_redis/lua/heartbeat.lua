--! base many task
-- ARGV: worker, lease, then id and delivery of each lease. Gives a letter for each: h(eld), c(ancel requested), l(ost).
local worker, lease = ARGV[1], tonumber(ARGV[2])
if lease > 0 then
  call('HSET', P .. 'workers', worker, now8 .. struct.pack('>I8', now + lease))
else
  call('HDEL', P .. 'workers', worker)
end
local ids = {}
for at = 3, #ARGV, 2 do
  ids[#ids + 1] = ARGV[at]
end
local running = fields(P .. 'running', ids)
local states, extended = {}, {}
for i = 1, #ids do
  local record = running[i]
  states[i] = 'l'
  if record and struct.unpack('>I4', record) == tonumber(ARGV[2 * i + 2]) then
    states[i] = is_cancel_requested(record) and 'c' or 'h'
    extended[#extended + 1] = now + lease
    extended[#extended + 1] = ids[i]
  end
end
if #extended > 0 then
  apply('ZADD', P .. 'leased', extended)
end
return table.concat(states)
