--! base rare_from many wake due announce waiting limited running task endings corrupt flows limits rare_to many wake due announce waiting limited running
-- ARGV: id, head, data of each outcome. A head is kind 1 (s, f, c as the states; r: retry, l: released), delivery 4,
-- delay 8; data the result or the error, with the attempt log. Gives '1' or '0' for each.
local count = #ARGV / 3
local ids = {}
for i = 1, count do
  ids[i] = ARGV[3 * i - 2]
end
local STATE = { s = 'succeeded', f = 'failed', c = 'cancelled' }
local NOTHING = string.rep('\0', 8)
local running = fields(P .. 'running', ids)
local answers, stored, gone, ended, queues, again, freed = {}, {}, {}, {}, {}, {}, {}
local seen, placed, released = {}, {}, {}

local function push(list, one, other)
  local size = list.size or 0
  list[size + 1] = one
  list[size + 2] = other
  list.size = size + 2
end

-- Puts a task back to wait.
local function put_back(id, record, attempt, head, queue, kind, delay, err, progress)
  local number, _, run, expires = struct.unpack('>I4I8I8I8', record, 5)
  if kind == 'l' then
    number = number - 1
  end
  if kind == 'r' or delay > 0 then
    run = math.min(now + delay, LATEST)
  end
  local kept = renewed(attempt, number, run, string.sub(record, 25, 32))
  push(stored, P .. 'h:' .. id, past_of('w', NEVER, kept, err, progress, ''))
  if run > now then
    push(queue.scheduled, run, member(head, run, id))
    queue.soonest = math.min(queue.soonest or run, run)
  elseif head.line then
    rare().limits().add(id, head, run)
  else
    push(queue.ready, 0, member(head, run, id))
  end
  if head.line and run > now then
    rare().limits().lane(head.queue)
  end
  if expires > 0 then
    push(again, expires, id)
  end
  if head.member then
    rare().flows().run(head.member.flow, -1)
    rare().flows().waits(id, head, run)
  end
end

-- Lets go on what waits in queues that have limits.
local function follow_limits()
  local names, has_lane = {}, {}
  for name in pairs(queues) do
    names[#names + 1] = name
  end
  local lanes = fields(P .. 'lanes', names)
  for i, name in ipairs(names) do
    if lanes[i] and #lanes[i] > 1 then
      has_lane[name] = true
      rare().limits().freed(name, lanes[i])
    end
  end
  for _, head in ipairs(released) do
    if has_lane[head.queue] or head.limit then
      rare().limits().give_back(head)
    end
  end
end

for i = 1, count do
  local id, record = ids[i], running[i]
  local kind, delivery, delay = struct.unpack('>c1I4I8', ARGV[3 * i - 1])
  answers[i] = '0'
  if not seen[id] and is_held(record, delivery) then
    answers[i] = '1'
    seen[id] = true
    gone[#gone + 1] = id
    local data = ARGV[3 * i]
    local stop = end_of_attempt(record, 1)
    local attempt, head = string.sub(record, 1, stop), head_of(record, stop + 1)
    local queue, progress = of(queues, head.queue), string.sub(record, head.stop)
    queue.ended = queue.ended + 1
    if head.line then
      rare().limits().left(head)
    end
    if kind == 'l' then
      released[#released + 1] = head
    end
    local state, err, log = STATE[kind], '', ''
    if delivery > 1 then  -- the first has nothing before it
      err, log = split_error(latest_error(id))
    end
    if kind == 's' then
      err = log
    else
      local told, told_log = split_error(data)
      if kind == 'c' or (kind == 'l' and told == '') then
        told = err
      end
      err = told .. (told_log == '' and log or told_log)
    end
    if not state and is_cancel_requested(record) then
      -- It was asked to stop, and does not run again.
      state = 'cancelled'
      if kind == 'l' then
        attempt = string.sub(record, 1, 4) .. struct.pack('>I4', struct.unpack('>I4', record, 5) - 1)
          .. string.sub(attempt, 9)
      end
    end
    if state then
      push(queue[state], head.member and rare().kept_until(head) or now + head.ttl, id)
      if state ~= 'succeeded' then
        local key = P .. 'order:' .. state .. ':' .. head.queue
        placed[key] = placed[key] or {}
        push(placed[key], score_of(head), id)
      end
      ended[#ended + 1] = id
      if head.member then
        rare().flows().ended(id, head, string.sub(state, 1, 1), err, nil, true)
      end
      if kind == 's' and progress == '' and err == '' then
        push(stored, P .. 'h:' .. id, 's' .. now8 .. attempt .. NOTHING .. data)
      else
        local result = kind == 's' and data or ''
        push(stored, P .. 'h:' .. id, past_of(string.sub(state, 1, 1), now8, attempt, err, progress, result))
      end
      if head.unique then
        push(freed, head.unique, id)
      end
    else
      put_back(id, record, attempt, head, queue, kind, delay, err, progress)
    end
  end
end
if #gone > 0 then
  -- First what takes memory: a server that is full refuses it before anything has changed.
  for i = 1, #stored, 4000 do
    call_any('MSET', unpack(stored, i, math.min(i + 3999, #stored)))
  end
  for name, queue in pairs(queues) do
    for _, state in ipairs({ 'ready', 'scheduled', 'succeeded', 'failed', 'cancelled' }) do
      if #queue[state] > 0 then
        apply('ZADD', P .. state .. ':' .. name, queue[state])
      end
    end
    count_running(name, -queue.ended)
  end
  for key, list in pairs(placed) do
    apply('ZADD', key, list)
  end
  if #again > 0 then
    apply('ZADD', P .. 'expiring', again)
  end
  for i = 1, #freed, 2 do
    free(freed[i], freed[i + 1])
  end
  apply('HDEL', P .. 'running', gone)
  apply('ZREM', P .. 'leased', gone)
  -- One look for both, as mostly neither is there.
  local others = call_any('EXISTS', P .. 'waiting', P .. 'lanes')
  if others > 0 then
    local told = announce(ended, true)
    if others == 2 or (not told and call_any('EXISTS', P .. 'lanes') == 1) then
      follow_limits()
      released = {}
    end
  end
  if #released > 0 and call_any('EXISTS', P .. 'limits') == 1 then
    -- Without a lane, too, as prune may have forgotten it: the rate of a named limit has counted them.
    follow_limits()
  end
  if made_rare then
    made_rare.conclude()
  end
  for name, queue in pairs(queues) do
    if #queue.ready > 0 then
      wake(name)
    end
    if queue.soonest then
      announce_due(name, queue.soonest)
    end
  end
end
return table.concat(answers)
