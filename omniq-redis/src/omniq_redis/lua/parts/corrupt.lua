-- Ends a task that cannot be read as failed. Its order stays as it is, and the rest of it stands where its result would.
local function end_corrupt(id, queue, why)
  local delivery, kept = 0, call('HGET', P .. 'running', id)
  if not kept then
    kept = redis.pcall('GET', P .. 'h:' .. id)
    kept = type(kept) == 'string' and kept or ''
    delivery = #kept >= 13 and struct.unpack('>I4', kept, 10) or 0
  elseif #kept >= 4 then
    delivery = struct.unpack('>I4', kept)
  end
  if delivery >= 2 ^ 31 - 2 ^ 16 then
    delivery = 0
  end
  local err = cjson.encode({ 'CorruptRecord', 'what the server holds of this task cannot be read: ' .. why, '' })
  local attempt = struct.pack('>I4', delivery) .. string.rep('\0', 4) .. now8 .. now8 .. NEVER .. '\0\0\0'
  call('SET', P .. 'h:' .. id, past_of('f', now8, attempt, err, '', kept))
  local ran = call('HDEL', P .. 'running', id)
  if ran == 1 then
    call('SET', P .. 'recount', '1') -- what it counted for cannot be told
  end
  call('ZREM', P .. 'leased', id)
  call('ZREM', P .. 'expiring', id)
  local order = order_of(id)
  local head = order and head_of(order, 1)
  if head and head.unique then
    free(head.unique, id)
  end
  queue = head and head.queue or queue
  if queue then
    call('ZADD', P .. 'failed:' .. queue, head and kept_until(head) or now + 86400000000, id)
    call('ZADD', P .. IN_ORDER.f .. queue, head and score_of(head) or 0, id)
  end
  if head and head.member then
    flows().ended(id, head, 'f', err, nil, ran == 1)
    flows().doubt(head)
  end
  announce({ id })
end
