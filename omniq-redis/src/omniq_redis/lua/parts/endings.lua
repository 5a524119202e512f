-- Ends a waiting task as cancelled; whoever calls takes it out of its queue afterwards.
local function end_waiting(id, order, past, head)
  local attempt, err, progress, result = string.rep('\0', 16) .. string.sub(order, 17, 32) .. '\0\0\0', '', '', ''
  if past then
    attempt, err, progress, result = split(past)
  end
  call('SET', P .. 'h:' .. id, past_of('c', now8, attempt, err, progress, result))
  call('ZADD', P .. 'cancelled:' .. head.queue, now + head.ttl, id)
  list_ended('c', id, head)
  call('ZREM', P .. 'expiring', id)
  if head.unique then
    free(head.unique, id)
  end
  announce({ id })
end

-- Gives the key of the queue that a task waits in, and its place there; nothing if it does not wait.
local function waits_in(id, order, past, head)
  local place = member(head, run_of(order, past), id)
  for _, state in ipairs({ 'ready:', 'scheduled:' }) do
    local key = P .. state .. head.queue
    if call('ZSCORE', key, place) then
      return key, place
    end
  end
end
