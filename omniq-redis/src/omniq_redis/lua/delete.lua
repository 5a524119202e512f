--! base many announce task endings remove
-- ARGV: ids. Gives '1' for each task that was removed, '0' for the others.
local ENDED = { s = 'succeeded:', f = 'failed:', c = 'cancelled:' }
local answers = {}
for i, id in ipairs(ARGV) do
  answers[i] = '0'
  local order = order_of(id)
  if order and call('HEXISTS', P .. 'running', id) == 0 then
    local past, head = call('GET', P .. 'h:' .. id), head_of(order, 1)
    local kept = past and ENDED[string.sub(past, 1, 1)]
    if kept then
      call('ZREM', P .. kept .. head.queue, id)
    else
      local key, place = waits_in(id, order, past, head)
      if key then
        call('ZREM', key, place)
      end
    end
    remove(id, order, head)
    answers[i] = '1'
  end
end
return table.concat(answers)
