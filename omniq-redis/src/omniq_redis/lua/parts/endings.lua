local UPSTREAM = 'UpstreamFailed'

-- Ends a waiting task as cancelled; the caller takes it out of its queue afterwards.
-- upstream: what failed, if that is why.
local function end_waiting(id, order, past, head, upstream)
  local attempt, err, progress, result = string.rep('\0', 16) .. string.sub(order, 17, 32) .. '\0\0\0', '', '', ''
  if past then
    attempt, err, progress, result = split(past)
  end
  if upstream then
    local _, log = split_error(err)
    err = cjson.encode({ UPSTREAM, upstream, '' }) .. log
  end
  call('SET', P .. 'h:' .. id, past_of('c', now8, attempt, err, progress, result))
  call('ZADD', P .. 'cancelled:' .. head.queue, kept_until(head), id)
  list_ended('c', id, head)
  call('ZREM', P .. 'expiring', id)
  if head.unique then
    free(head.unique, id)
  elseif head.member then
    flows().ended(id, head, 'c', err, upstream)
  end
  announce({ id })
end

-- Gives the key of the queue that a task waits in, and its place there; nothing if it does not wait.
local function waits_in(id, order, past, head)
  if is_blocked(past, head) then
    return P .. IN_ORDER.b .. head.queue, id
  end
  local place = member(head, run_of(order, past), id)
  for _, state in ipairs({ 'ready:', 'scheduled:' }) do
    local key = P .. state .. head.queue
    if call('ZSCORE', key, place) then
      return key, place
    end
  end
end
