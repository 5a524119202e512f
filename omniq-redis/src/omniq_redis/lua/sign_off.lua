--! base
-- ARGV: a name by which no waiter is to be woken any more, the queues.
for at = 2, #ARGV do
  call('ZREM', P .. 'idle:' .. ARGV[at], ARGV[1])
  call('ZREM', P .. 'stalled:' .. ARGV[at], ARGV[1])
end
