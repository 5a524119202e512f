local UPSTREAM, SUPERSEDED = 'UpstreamFailed', 'Superseded'

-- Ends a waiting task as cancelled; the caller takes it out of its queue afterwards.
-- upstream: what failed, if that is why. superseded: what took its place.
local function end_waiting(id, order, past, head, upstream, superseded)
  local attempt, err, progress, result = string.rep('\0', 16) .. string.sub(order, 17, 32) .. '\0\0\0', '', '', ''
  if past then
    attempt, err, progress, result = split(past)
  end
  if upstream or superseded then
    local _, log = split_error(err)
    err = cjson.encode({ upstream and UPSTREAM or SUPERSEDED, upstream or superseded, '' }) .. log
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
  local ready = head.line and 'line:' .. head.line or 'ready:' .. head.queue
  for _, key in ipairs({ P .. ready, P .. 'scheduled:' .. head.queue }) do
    if call('ZSCORE', key, place) then
      return key, place
    end
  end
end

-- Takes a task out of where it waits, as waits_in told.
local function take_out(key, place, id, head)
  call('ZREM', key, place)
  if head.line then
    call('ZREM', P .. 'lined:' .. head.queue, id)
  end
end

-- Ends a debounced task that waits with a unique key, so that another takes its place; gives when the first of those was
-- enqueued that took each other's places, nil if the holder is not debounced.
local function supersede(holder, id, body)
  local order, past = order_of(holder), past_of_task(holder)
  local head = order and head_of(order, 1)
  if head and not head.first then
    return nil
  elseif not head or past == false or (past and struct.unpack('>I4', past, 10) > 0) then
    return now  -- it cannot be read, or was started
  end
  local read, options = pcall(cjson.decode, string.match(body, '^[^\n]*'))
  local name = read and type(options) == 'table' and tostring(options[1]) or '?'
  local key, place = waits_in(holder, order, past, head)
  end_waiting(holder, order, past, head, nil, 'task ' .. id .. ' (' .. name .. ') took its place')
  if key then
    take_out(key, place, holder, head)
  end
  return head.first
end
