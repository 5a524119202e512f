--! base many wake due announce waiting limited running task endings corrupt flows limits recount records
-- ARGV: limit. Gives the time, then what is stored of each task whose lease had run out; the ids come last.
local LONGEST_LOG = 131072 -- as in omniq.storage.attempts
local limit = tonumber(ARGV[1])
local lost = call('ZRANGEBYSCORE', P .. 'leased', '-inf', now, 'LIMIT', 0, limit)
if call('HLEN', P .. 'running') > call('ZCARD', P .. 'leased') then
  -- A lease was removed by hand: of those it cannot be told that they run.
  for _, id in ipairs(call('HKEYS', P .. 'running')) do
    if #lost < limit and not call('ZSCORE', P .. 'leased', id) then
      lost[#lost + 1] = id
    end
  end
end
local running = fields(P .. 'running', lost)
local ids, queues, ended = {}, {}, {}
for i = 1, #lost do
  local id, record = lost[i], running[i]
  if record and not is_running(record) then
    ids[#ids + 1] = id
    local order = order_of(id)
    if order then
      count_running(head_of(order, 1).queue, -1)
    end
    end_corrupt(id, nil, 'the record of its latest attempt is cut short')
  elseif record then
    ids[#ids + 1] = id
    local stop = end_of_attempt(record, 1)
    local attempt, number = string.sub(record, 1, stop), struct.unpack('>I4', record, 5)
    local head = head_of(record, stop + 1)
    local queue = of(queues, head.queue)
    local progress = string.sub(record, head.stop)
    local state, err, log = 'cancelled', split_error(latest_error(id))
    local worker = string.sub(record, 36, stop)
    -- As omniq.storage.attempts.lost_line says it.
    local line = string.format('[%d,"lost",%s,%.0f,%.0f]', number, cjson.encode(worker), struct.unpack('>I8', record, 9), now)
    log = '\n' .. string.sub(string.sub(log, 2) .. (log == '' and '' or '\n') .. line, -LONGEST_LOG)
    if not is_cancel_requested(record) then
      if number <= head.max_retries then
        state = 'ready'
      else
        state = 'failed'
        local message = 'worker ' .. worker .. ' died or lost its lease in attempt ' .. number .. ', the last one'
        err = cjson.encode({ 'WorkerLost', message, '' })
      end
    end
    err = err .. log
    if state == 'ready' then
      local run, expires = struct.unpack('>I8I8', record, 17)
      call('SET', P .. 'h:' .. id, past_of('w', NEVER, attempt, err, progress, ''))
      queue.woken = make_ready(id, head, run) or queue.woken
      if expires > 0 then
        call('ZADD', P .. 'expiring', expires, id)
      end
      if head.member then
        flows().run(head.member.flow, -1)
      end
    else
      call('SET', P .. 'h:' .. id, past_of(string.sub(state, 1, 1), now8, attempt, err, progress, ''))
      call('ZADD', P .. state .. ':' .. head.queue, kept_until(head), id)
      list_ended(string.sub(state, 1, 1), id, head)
      ended[#ended + 1] = id
      if head.unique then
        free(head.unique, id)
      elseif head.member then
        flows().ended(id, head, string.sub(state, 1, 1), err, nil, true)
      end
    end
    call('HDEL', P .. 'running', id)
    count_running(head.queue, -1)
    if head.line then
      limits().left(head)
    end
  end
  call('ZREM', P .. 'leased', id)
end
announce(ended)
for name, queue in pairs(queues) do
  local lane = call('HGET', P .. 'lanes', name)
  if lane and #lane > 1 then
    limits().freed(name, lane)
  end
  if queue.woken then
    wake(name)
  end
end
if #lost < limit then
  for _, id in ipairs(call('ZRANGEBYSCORE', P .. 'expiring', '-inf', now, 'LIMIT', 0, limit - #lost)) do
    local order = order_of(id)
    local past = past_of_task(id)
    if order and past ~= false and call('HEXISTS', P .. 'running', id) == 0 then
      local head = head_of(order, 1)
      local key, place = waits_in(id, order, past, head)
      if key then
        end_waiting(id, order, past, head)
        take_out(key, place, id, head)
      end
    end
    call('ZREM', P .. 'expiring', id)
  end
end
conclude()
if call('ZCOUNT', P .. 'flows:due', '-inf', now) > 0 then
  flows().settle(1000)
  conclude()
end
if call('EXISTS', P .. 'recount') == 1 then
  recount()
  conclude()
end
local found = records(ids)
for i = 1, #ids do
  found[#found + 1] = ids[i]
end
return found
