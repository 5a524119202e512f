--! base many wake due announce waiting limited running task endings corrupt flows limits
-- ARGV: ids. Gives '1' for each that was scheduled, ready or running, '0' for the others.
local answers = {}
for i, id in ipairs(ARGV) do
  answers[i] = '0'
  local record = call('HGET', P .. 'running', id)
  if record and is_running(record) then
    call('HSET', P .. 'running', id, string.sub(record, 1, 32) .. CANCEL_REQUESTED .. string.sub(record, 34))
    answers[i] = '1'
  elseif not record then
    local order, past = order_of(id), past_of_task(id)
    if order and past ~= false then
      local head = head_of(order, 1)
      local key, place = waits_in(id, order, past, head)
      if key then
        end_waiting(id, order, past, head)
        take_out(key, place, id, head)
        answers[i] = '1'
      end
    end
  end
end
conclude()
return table.concat(answers)
