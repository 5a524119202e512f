--! base many waiting limited running
-- ARGV: worker, lease, then id and delivery of each lease, then what the worker tells about itself, if it does. Gives a
-- letter for each lease: h(eld), c(ancel requested), l(ost).
local worker, lease = ARGV[1], tonumber(ARGV[2])
local about = #ARGV % 2 == 1 and ARGV[#ARGV]
if lease > 0 then
  call('HSET', P .. 'workers', worker, now8 .. struct.pack('>I8', now + lease))
  if about then
    call('HSET', P .. 'about', worker, about)
  end
else
  call('HDEL', P .. 'workers', worker)
  call('HDEL', P .. 'about', worker)
end
local ids = {}
for at = 3, #ARGV - 1, 2 do
  ids[#ids + 1] = ARGV[at]
end
local running = fields(P .. 'running', ids)
local states, extended = {}, {}
for i = 1, #ids do
  local record = running[i]
  states[i] = 'l'
  if is_held(record, tonumber(ARGV[2 * i + 2])) then
    states[i] = is_cancel_requested(record) and 'c' or 'h'
    extended[#extended + 1] = now + lease
    extended[#extended + 1] = ids[i]
  end
end
if #extended > 0 then
  apply('ZADD', P .. 'leased', extended)
end
return table.concat(states)
