--! base many wake due announce waiting limited running task endings corrupt flows limits remove
-- ARGV: limit. Removes ended tasks whose time is over, and what dead workers left. Gives how many tasks were removed.
local limit, removed = tonumber(ARGV[1]), 0
local function prune(queue)
  for _, state in ipairs({ 'succeeded:', 'failed:', 'cancelled:' }) do
    if removed >= limit then
      break
    end
    local key, letter = P .. state .. queue, string.sub(state, 1, 1)
    local over = call('ZRANGEBYSCORE', key, '-inf', now, 'LIMIT', 0, limit - removed)
    for _, id in ipairs(over) do
      local order = order_of(id)
      if order then
        remove(id, order, head_of(order, 1), letter)
      end
      call('ZREM', key, id)
      unlist_ended(letter, id, queue)
    end
    removed = removed + #over
  end
  call('ZREMRANGEBYSCORE', P .. 'idle:' .. queue, '-inf', now - 60000000)
end

for _, queue in ipairs(call('SMEMBERS', P .. 'queues')) do
  prune(queue)
end
-- Removes a flow that ended with its tasks, as far as the limit reaches.
local ENDED = { s = 'succeeded:', f = 'failed:', c = 'cancelled:' }
local function drop(flow)
  local ids = flows().tasks_behind({ id = flow }, 0, limit - removed)
  for _, id in ipairs(ids) do
    local order, past = order_of(id), past_of_task(id)
    local head = order and head_of(order, 1)
    local letter = past and string.sub(past, 1, 1)
    if head and head.member and head.member.flow == flow and ENDED[letter] then
      call('ZREM', P .. ENDED[letter] .. head.queue, id)
      unlist_ended(letter, id, head.queue)
      remove(id, order, head, letter)
      removed = removed + 1
    end
    call('ZREM', P .. 'ft:' .. flow, id)
  end
  if removed < limit then
    flows().forget(flow)
  end
end

-- So many flows at most, as well: of one all of whose tasks were deleted none is left to be removed.
for _ = 1, limit do
  local flow = removed < limit and call('ZRANGEBYSCORE', P .. 'flows:ended', '-inf', now, 'LIMIT', 0, 1)[1]
  if not flow then
    break
  end
  drop(flow)
end
conclude()
-- Forgets lines that are idle, one start of weight 1 ahead at most, and lanes, where that changes nothing; see
-- omniq.storage.limit_transitions.prune_lines.
local function prune_lane(queue, lane)
  lane = limits().lane(queue, lane)
  local resting, lines = P .. 'resting:' .. queue, P .. 'lines:' .. queue
  local till = '+inf'
  if call('HLEN', lines) > call('ZCARD', resting) or call('EXISTS', P .. 'ready:' .. queue) == 1 then
    till = string.format('%.0f', lane.vtime + 1000000)
  end
  local over = call('ZRANGEBYSCORE', resting, '-inf', till, 'LIMIT', 0, limit)
  if #over > 0 then
    apply('HDEL', lines, over)
    apply('ZREM', resting, over)
  end
  if call('EXISTS', lines, P .. 'scheduled:' .. queue) == 0 and call('HEXISTS', P .. 'limits', 'queue:' .. queue) == 0 then
    limits().forget_lane(queue)
  end
end

local lanes = call('HGETALL', P .. 'lanes')
-- If the clock was put back, lines are asleep until the times of one that was ahead.
local was_put_back = #lanes > 0 and (tonumber(call('HGET', P .. 'meta', 'pruned_at') or 0) or 0) > now
if #lanes > 0 then
  call('HSET', P .. 'meta', 'pruned_at', string.format('%.0f', now))
end
for i = 1, #lanes, 2 do
  if #lanes[i + 1] > 1 then
    if was_put_back then
      limits().changed(lanes[i])
    end
    prune_lane(lanes[i], lanes[i + 1])
  end
end
local at_rest = call('ZRANGEBYSCORE', P .. 'rates', '-inf', now, 'LIMIT', 0, limit)
if #at_rest > 0 then
  apply('ZREM', P .. 'rates', at_rest)
end
if #lanes > 0 then
  -- A slot that is counted and that no task has would be lost for good.
  local counted = 0
  for _, number in ipairs(call('HVALS', P .. 'counts')) do
    counted = counted + (tonumber(number) or 0)
  end
  if counted ~= call('HLEN', P .. 'running') then
    call('SET', P .. 'recount', '1')
  end
end
conclude()
local workers = call('HGETALL', P .. 'workers')
for i = 1, #workers, 2 do
  if #workers[i + 1] ~= 16 or struct.unpack('>I8', workers[i + 1], 9) <= now then
    call('HDEL', P .. 'workers', workers[i])
    call('HDEL', P .. 'about', workers[i])
  end
end
return removed
