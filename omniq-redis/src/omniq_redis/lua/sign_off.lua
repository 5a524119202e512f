--! base
-- ARGV: a name that nobody is to be woken by any more, the queues.
for at = 2, #ARGV do
  call('ZREM', P .. 'idle:' .. ARGV[at], ARGV[1])
end
