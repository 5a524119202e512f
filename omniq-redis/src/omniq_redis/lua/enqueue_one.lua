--! base wake
-- ARGV: id, head and body of a task that is ready at once, never expires and has no unique key: what is enqueued most, by
-- those who wait for each, and worth a shorter way. Gives 1, or 0 if the id is stored already.
local id, head = ARGV[1], ARGV[2]
local seq = call('INCR', P .. 'seq')
local seq8 = struct.pack('>I8', seq)
local order = seq8 .. now8 .. now8 .. NEVER .. string.sub(head, 18) .. ARGV[3]
if not call_any('SET', P .. 'o:' .. id, order, 'NX') then
  return 0
end
local queue = string.sub(head, 35)
call('ZADD', P .. 'ready:' .. queue, 0, string.sub(head, 30, 30) .. now8 .. string.sub(seq8, 3) .. id)
local block = math.floor(seq / 100)
call('HSET', P .. 'log:' .. block, seq % 100, id)
call('ZADD', P .. 'log', block, block)
call('SADD', P .. 'queues', queue)
wake(queue)
return 1
