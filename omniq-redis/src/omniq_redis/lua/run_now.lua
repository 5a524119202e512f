--! base many wake due announce waiting limited running task endings corrupt flows limits
-- ARGV: ids. Gives '1' for each task that was scheduled for later and is ready now, '0' for the others.
local answers, queues = {}, {}
for i, id in ipairs(ARGV) do
  answers[i] = '0'
  local past, order = past_of_task(id), order_of(id)
  if order and past ~= false then
    local head, run = head_of(order, 1), run_of(order, past)
    local scheduled, place = P .. 'scheduled:' .. head.queue, member(head, run, id)
    if run > now and call('ZSCORE', scheduled, place) then
      local attempt, err, progress, result = string.rep('\0', 43), '', '', ''
      if past then
        attempt, err, progress, result = split(past)
      end
      attempt = renewed(attempt, struct.unpack('>I4', attempt, 5), now, expires_of(order, past))
      call('SET', P .. 'h:' .. id, past_of('w', NEVER, attempt, err, progress, result))
      queues[head.queue] = make_ready(id, head, now) or queues[head.queue]
      call('ZREM', scheduled, place)
      if head.member then
        flows().waits(id, head, now)
      end
      answers[i] = '1'
    end
  end
end
conclude()
for queue in pairs(queues) do
  wake(queue)
end
return table.concat(answers)
