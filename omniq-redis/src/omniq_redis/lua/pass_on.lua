--! base wake
-- ARGV: queue. Wakes another, if there is work, in place of one who has no use for it.
if call('EXISTS', P .. 'ready:' .. ARGV[1]) == 1 then
  wake(ARGV[1])
end
