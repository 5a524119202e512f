--! base many wake due announce waiting limited running task endings corrupt flows limits
-- Stores records of another store as they stand, see Storage.adopt. ARGV: the number of flows; of each its id, unique key
-- (behind a k, or ''), numbers (created, ttl, live, s, f, c, hold_until, finished, cancelled) and gates (n 4, state 1, unmet
-- 8, failed 8, holds 4, length of rank 2 and of error 4, rank, error); then of each task its id, its order but for the
-- sequence, and its past or ''. Gives a letter for each: s, stored; p, present; k, its key is taken; n, there is no such flow.
local ENDED = { s = 'succeeded:', f = 'failed:', c = 'cancelled:' }
local work, answers, woken, soonest, at = flows(), {}, {}, {}, 2

local function adopt_flow(id, unique, numbers, gates)
  unique = unique ~= '' and string.sub(unique, 2) or nil
  local number = {}
  for text in string.gmatch(numbers, '%d+') do
    number[#number + 1] = tonumber(text)
  end
  if work.open(id) then
    return 'p'
  elseif unique and number[8] == 0 and work.holder(unique) then
    return 'k'
  end
  local flow = work.add(id, unique, number[2])
  flow.created, flow.live, flow.s, flow.f, flow.c = number[1], number[3], number[4], number[5], number[6]
  flow.hold_until, flow.finished, flow.cancelled = number[7], number[8], number[9]
  local from = 1
  while from <= #gates do
    local n, state, unmet, failed, holds, rank, err = struct.unpack('>I4c1i8i8I4HI4', gates, from)
    from = from + 31
    local gate = { n = n, state = state, unmet = unmet, failed = failed, holds = holds, revives = false,
      rank = string.sub(gates, from, from + rank - 1), err = string.sub(gates, from + rank, from + rank + err - 1) }
    from = from + rank + err
    flow.gates[n], flow.changed[n] = gate, gate
    flow.holds[n] = holds > 0 and true or nil
  end
  return 's'
end

-- Tells whether a task ended as its gate broke.
local function is_upstream(past)
  local _, err = split(past)
  local read, told = pcall(cjson.decode, (split_error(err)))
  return read and type(told) == 'table' and told[1] == UPSTREAM
end

-- Puts a task where those stand that wait, or have ended.
local function place(id, order, past, head, flow)
  local letter = past and string.sub(past, 1, 1)
  local gate = flow and head.member.behind and work.gate_of(flow, head.member.behind)
  if is_blocked(past, head) then
    call('ZADD', P .. 'fb:' .. flow.id, head.member.behind, head.seq .. id)
    list_ended('b', id, head)
    if gate and gate.state ~= 's' then
      work.push(flow, gate.n)
    end
  elseif ENDED[letter] then
    local kept = flow and LATEST or math.min(struct.unpack('>I8', past, 2) + head.ttl, LATEST)
    call('ZADD', P .. ENDED[letter] .. head.queue, kept, id)
    if IN_ORDER[letter] then
      list_ended(letter, id, head)
    end
    if gate and letter == 'c' and is_upstream(past) then
      call('ZADD', P .. 'fd:' .. flow.id, gate.n, head.seq .. id)
      if gate.state ~= 'b' then
        gate.revives, flow.changed[gate.n] = true, gate
        work.push(flow, gate.n)
      end
    end
  else
    local run, expires8 = run_of(order, past), expires_of(order, past)
    if run > now then
      make_scheduled(id, head, run)
      soonest[head.queue] = math.min(soonest[head.queue] or run, run)
    else
      woken[head.queue] = make_ready(id, head, run) or woken[head.queue]
    end
    if flow then
      work.waits(id, head, run)
    end
    if expires8 ~= NEVER then
      call('ZADD', P .. 'expiring', (struct.unpack('>I8', expires8)), id)
    end
  end
end

local function adopt_task(seq, id, rest, past)
  if call('EXISTS', P .. 'o:' .. id) == 1 then
    return 'p'
  end
  local order = struct.pack('>I8', seq) .. rest
  past = past ~= '' and past or nil
  local head, ended = head_of(order, 1), past and ENDED[string.sub(past, 1, 1)]
  local flow = head.member and work.open(head.member.flow)
  if head.member and not flow then
    return 'n'
  elseif not ended and holds_key(past, head) then
    local holder = call('HGET', P .. 'unique', head.unique)
    if holder and holder ~= id and call('EXISTS', P .. 'o:' .. holder) == 1 then
      return 'k'
    end
    call('HSET', P .. 'unique', head.unique, id)
  end
  call('SET', P .. 'o:' .. id, order)
  if past then
    call('SET', P .. 'h:' .. id, past)
  end
  local block = math.floor(seq / 100)
  call('HSET', P .. 'log:' .. block, seq % 100, id)
  call('ZADD', P .. 'log', block, block)
  call('SADD', P .. 'queues', head.queue)
  if flow then
    call('ZADD', P .. 'ft:' .. flow.id, seq, id)
    if not ended and flow.live <= 0 and not next(flow.holds) then
      flow.live, flow.finished = flow.live + 1, 0 -- an audit has not waited for what had not come yet
    end
    if not ended and flow.cancelled > 0 then
      flow.cancelling, flow.cancel_from = 1, 0
    end
  end
  place(id, order, past, head, flow)
  return 's'
end

for _ = 1, tonumber(ARGV[1]) do
  answers[#answers + 1] = adopt_flow(ARGV[at], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3])
  at = at + 4
end
local count = (#ARGV - at + 1) / 3
local seq = count > 0 and call('INCRBY', P .. 'seq', count) - count or 0
for i = at, #ARGV, 3 do
  seq = seq + 1
  answers[#answers + 1] = adopt_task(seq, ARGV[i], ARGV[i + 1], ARGV[i + 2])
end
conclude()
for queue in pairs(woken) do
  wake(queue)
end
for queue, run in pairs(soonest) do
  announce_due(queue, run)
end
return table.concat(answers)
