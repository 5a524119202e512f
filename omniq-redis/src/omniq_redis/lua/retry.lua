--! base many wake due announce waiting limited running task endings corrupt flows limits
-- ARGV: ids. Gives '1' for each task that was made ready, '0' for the others.
local answers, queues = {}, {}
for i, id in ipairs(ARGV) do
  answers[i] = '0'
  local past, order = past_of_task(id), order_of(id)
  local state = past and string.sub(past, 1, 1)
  if order and (state == 'f' or state == 'c') and call('HEXISTS', P .. 'running', id) == 0 then
    local head = head_of(order, 1)
    if head.member then
      answers[i] = flows().retry(id, order, past, head) and '1' or '0'
    elseif not holds_key(past, head) or call('HSETNX', P .. 'unique', head.unique, id) == 1 then
      local expires8 = expires_of(order, past)
      if expires8 ~= NEVER then
        local expires = struct.unpack('>I8', expires8)
        if expires <= now then
          expires8 = NEVER
        else
          call('ZADD', P .. 'expiring', expires, id)
        end
      end
      local attempt, err, progress, result = split(past)
      call('SET', P .. 'h:' .. id, past_of('w', NEVER, renewed(attempt, 0, now, expires8), err, progress, result))
      queues[head.queue] = make_ready(id, head, now) or queues[head.queue]
      call('ZREM', P .. (state == 'f' and 'failed:' or 'cancelled:') .. head.queue, id)
      unlist_ended(state, id, head.queue)
      answers[i] = '1'
    end
  end
end
conclude()
for queue in pairs(queues) do
  wake(queue)
end
return table.concat(answers)
