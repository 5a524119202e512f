--! base rare_from many wake due announce waiting limited running task endings corrupt flows limits rare_to wake
-- ARGV: queue. Wakes another, if there is work, in place of one who has no use for it.
local ready, lanes = P .. 'ready:' .. ARGV[1], P .. 'lanes'
local found = call('EXISTS', ready, lanes)
local is_ready = found == 2 or (found == 1 and call('EXISTS', ready) == 1)
local lane = found > (is_ready and 1 or 0) and call('HGET', lanes, ARGV[1])
if lane and #lane > 1 then
  rare().limits().freed(ARGV[1], lane)
  rare().conclude()
elseif is_ready then
  wake(ARGV[1])
end
