-- Tells all who wait for work if a task that was just scheduled is the next one of its queue.
local function announce_due(queue, run)
  local head = call('ZRANGE', P .. 'scheduled:' .. queue, 0, 0, 'WITHSCORES')[2]
  if head and run <= tonumber(head) then
    call_any('PUBLISH', P .. 'due', string.format('%.0f:', run) .. queue)
  end
end
