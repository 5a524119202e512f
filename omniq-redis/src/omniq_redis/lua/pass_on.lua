--! base rare_from many wake due announce waiting limited running task endings corrupt flows limits rare_to wake
-- ARGV: queue. Wakes another, if there is work, in place of one who has no use for it.
local lane = call('HGET', P .. 'lanes', ARGV[1])
if lane and #lane > 1 then
  rare().limits().freed(ARGV[1], lane)
  rare().conclude()
elseif call('EXISTS', P .. 'ready:' .. ARGV[1]) == 1 then
  wake(ARGV[1])
end
