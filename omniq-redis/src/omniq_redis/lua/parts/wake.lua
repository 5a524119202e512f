-- Wakes one of those who wait for work in a queue: not all, as one task is all there may be. Whoever claims and leaves
-- something wakes the next. A name whose owner is gone has no subscriber; then it is the next one's turn.
local function wake(queue)
  local key = P .. 'idle:' .. queue
  while true do
    local name = call('ZPOPMIN', key)[1]
    if not name then
      return
    end
    local channel, number = string.match(name, '^([^:]*):(.*)$')
    if channel and call_any('PUBLISH', P .. 'to:' .. channel, 'w' .. number .. ':' .. queue) > 0 then
      return
    end
  end
end
