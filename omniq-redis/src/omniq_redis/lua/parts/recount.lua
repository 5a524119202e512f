-- Counts anew how many tasks of each queue, key and named limit run, and wakes what the old counts may have held back.
local function recount()
  call('UNLINK', P .. 'recount', P .. 'counts', P .. 'slots')
  for _, record in ipairs(call('HVALS', P .. 'running')) do
    if is_running(record) then
      local head = head_of(record, end_of_attempt(record, 1) + 1)
      count_running(head.queue, 1)
      if head.line then
        limits().occupy(head, 1)
      end
    end
  end
  for _, id in ipairs(call('HKEYS', P .. 'limits')) do
    local queue, name = string.match(id, '^queue:(.*)$'), string.match(id, '^name:(.*)$')
    if queue or name then
      limits().changed(queue, name)
    end
  end
end
