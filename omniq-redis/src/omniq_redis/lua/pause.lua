--! base
-- ARGV: queue. Gives 1, or 0 if it was paused already.
return call('SADD', P .. 'paused', ARGV[1])
