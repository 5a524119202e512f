--! base rare_from many wake due announce waiting limited running task endings corrupt flows limits rare_to many wake promote waiting
-- ARGV: worker, lease, limit in all, the name under which the worker waited, then queue and limit of each queue.
-- Gives the time, then id, order and past of each claimed task.
local worker, lease, left, name = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4]
local until_ = now + lease
local found = { now }
-- The first that is due, rather than how many are: without flows this is the cheapest look.
local due = call('ZRANGE', P .. 'flows:due', '0', '0', 'WITHSCORES')[2]
if due and tonumber(due) <= now then
  rare().flows().settle(1000)
end
local of_flows
-- So many that have expired, or are no tasks, are enough for one step; the rest are for the next. Each queue has a few,
-- whatever those before it had.
local patience, LEAST = 2000, 200

local FIRST = struct.pack('>I4I4', 1, 1) .. now8
local WAITS = string.byte('w')
local OWNER = '\0' .. struct.pack('>H', #worker) .. worker
local size = 1

-- line: in which they stand, nil for those of the plain one.
local function take(queue, members, line)
  local ids = {}
  for i = 1, #members do
    ids[i] = string.sub(members[i], 16)
  end
  local orders, pasts = strings('o:', ids), strings('h:', ids)
  local running, leased, expired, watched, corrupt, count = {}, {}, {}, {}, {}, 0
  local queue_stop = 49 + #queue
  for i = 1, #ids do
    local order, past = orders[i], pasts[i]
    if not order then
      -- No task, or one that is not there any more, or of another type.
      if call_any('EXISTS', P .. 'o:' .. ids[i]) == 1 then
        corrupt[i] = 'its order is of another type'
      end
      patience = patience - 1
    elseif not has_head(order, 1) or string.sub(order, 50, queue_stop) ~= queue then
      corrupt[i] = 'its order is cut short, or of another queue'
    elseif past and not is_past(past) then
      corrupt[i] = 'what has become of it is cut short'
    elseif past and string.byte(past) ~= WAITS then
      -- It waits no more: it ended with its flow, which did not find it here.
      patience = patience - 1
    else
      local expires8 = expires_of(order, past)
      if expires8 ~= NEVER and struct.unpack('>I8', expires8) <= now then
        expired[#expired + 1] = i
      else
        local id, attempt = ids[i], nil
        if past then
          local delivery, number = struct.unpack('>I4I4', past, 10)
          attempt = struct.pack('>I4I4', delivery + 1, number + 1) .. now8 .. string.sub(past, 26, 41)
        else
          attempt = FIRST .. string.sub(order, 17, 32)
        end
        local unique_length = struct.unpack('>H', order, 48)
        local stop = unique_length == 0 and queue_stop or queue_stop + unique_length - 1
        local mark = unique_length > 1 and string.byte(order, queue_stop + 1) or 0
        if mark >= 254 then
          local head = mark == 254 and rare().head_of(order, 1)
          local its
          if head then
            its = head.member
          else
            its = rare().member_of(string.sub(order, queue_stop + 1, stop))
          end
          of_flows = of_flows or {}
          if its then
            of_flows[its.flow] = (of_flows[its.flow] or 0) + 1
          elseif head and head.first and head.unique then
            rare().free(head.unique, id)  -- none takes the place of one that was started
          end
        end
        running[2 * count + 1] = id
        running[2 * count + 2] = attempt .. OWNER .. string.sub(order, 1, stop)
        leased[2 * count + 1] = until_
        leased[2 * count + 2] = id
        count = count + 1
        if expires8 ~= NEVER then
          watched[#watched + 1] = id
        end
        found[size + 1] = id
        found[size + 2] = order
        found[size + 3] = past
        size = size + 3
      end
    end
  end
  -- First what takes memory: a server that is full refuses it before anything has changed.
  if count > 0 then
    apply('HSET', P .. 'running', running)
    apply('ZADD', P .. 'leased', leased)
    count_running(queue, count)
  end
  patience = patience - #expired
  for i, why in pairs(corrupt) do
    rare().end_corrupt(ids[i], queue, why)
  end
  for _, i in ipairs(expired) do
    rare().end_waiting(ids[i], orders[i], pasts[i], rare().head_of(orders[i], 1))
  end
  if line then
    call_any('ZREMRANGEBYRANK', P .. 'line:' .. line, 0, #members - 1)
    apply('ZREM', P .. 'lined:' .. queue, ids)
  else
    call_any('ZREMRANGEBYRANK', P .. 'ready:' .. queue, 0, #members - 1)
  end
  if #watched > 0 then
    apply('ZREM', P .. 'expiring', watched)
  end
  return count
end

-- Drops what is no task from the beginning of a queue: where there was some, there may be any number, and many of them are
-- told from tasks in one look that reads none.
local stride = 500
local function drop(queue)
  local key = P .. 'ready:' .. queue
  while patience > 0 and stride > 8 do
    local members, keys = call('ZRANGE', key, 0, stride - 1), {}
    for i = 1, #members do
      keys[i] = P .. 'o:' .. string.sub(members[i], 16)
    end
    if #members == 0 then
      return
    elseif call_any('EXISTS', unpack(keys)) == 0 then
      call_any('ZREMRANGEBYRANK', key, 0, #members - 1)
      patience = patience - #members
    else
      stride = math.floor(stride / 4)
    end
  end
end

local function serve(queue, wanted)
  patience = math.max(patience, LEAST)
  if name ~= '' then
    call('ZREM', P .. 'idle:' .. queue, name)
  end
  local lane = call('HGET', P .. 'lanes', queue)
  if not lane then
    promote(queue)
    while wanted > 0 and patience > 0 do
      local members = call('ZRANGE', P .. 'ready:' .. queue, 0, math.min(wanted, 2000) - 1)
      if #members == 0 then
        break
      end
      local count = take(queue, members)
      wanted = wanted - count
      left = left - count
      if count == 0 then
        drop(queue)
      end
    end
    if (wanted <= 0 or patience <= 0) and call_any('EXISTS', P .. 'ready:' .. queue) == 1 then
      wake(queue)
    end
  elseif string.sub(lane, 1, 1) ~= 'p' then
    if name ~= '' then
      call('ZREM', P .. 'stalled:' .. queue, name)
    end
    left = left - rare().limits().serve(queue, lane, wanted, function(members, line)
      local count = take(queue, members, line)
      if count == 0 and not line then
        drop(queue)
      end
      return count, patience > 0
    end)
  end
end

for at = 5, #ARGV, 2 do
  serve(ARGV[at], math.min(tonumber(ARGV[at + 1]), left))
end
for id, count in pairs(of_flows or {}) do
  rare().flows().run(id, count)
end
if made_rare then
  made_rare.conclude()
end
return found
