--! base wake
-- ARGV: queue. Gives 1, or 0 if it was not paused.
local changed = call('SREM', P .. 'paused', ARGV[1])
if changed == 1 then
  wake(ARGV[1])
  local head = call('ZRANGE', P .. 'scheduled:' .. ARGV[1], 0, 0, 'WITHSCORES')[2]
  if head then
    call('PUBLISH', P .. 'due', string.format('%.0f:', head) .. ARGV[1])
  end
end
return changed
