-- Settles how tasks of a flow are stored. state: of the gate that they are behind, nil if there is none.
local function place_member(kind, state)
  local run8 = struct.pack('>I8', kind.run)
  if state and state ~= 'o' then
    kind.is_blocked = true
    if kind.flags % 2 == 1 then
      -- The place is that of the enqueueing; the delay counts from the opening.
      kind.run, run8 = now, now8
    end
  elseif state then
    -- A delay has been counted from now, and so never counts from the opening.
    local at = kind.inner
    local flags = string.byte(kind.rest, at + 1)
    kind.rest = string.sub(kind.rest, 1, at) .. string.char(flags % 2) .. string.sub(kind.rest, at + 2)
    kind.past = past_of('w', NEVER, string.rep('\0', 16) .. run8 .. kind.expires8 .. '\0\0\0', '', '', '')
  end
  kind.static = now8 .. run8 .. kind.expires8 .. kind.rest
end

-- Stores a flow, or adds to one, with tasks as in store; nothing if that cannot be. given: its unique key ('' or behind a
-- k), hold_ttl, result_ttl and new gates (n 4, hold 1, length of the rank 2, rank), nil for tasks that are added to a flow
-- that is there. Gives 'ok' and what store gives; or why not, a position among the tasks, and gates.
local function build(id, first, given)
  local work, flow, new, order = flows(), flows().open(id), {}, {}
  if not flow and not given then
    return { 'unknown' }
  elseif not flow then
    local unique = given.unique ~= '' and string.sub(given.unique, 2) or nil
    local holder = unique and work.holder(unique)
    if holder then
      return { 'held', holder }
    end
    flow = work.add(id, unique, given.ttl)
  end
  local at = 1
  while given and at <= #given.gates do
    local n, hold, length = struct.unpack('>I4BH', given.gates, at)
    local rank = string.sub(given.gates, at + 7, at + 6 + length)
    at = at + 7 + length
    if not work.gate_of(flow, n) and not new[n] then
      new[n] = { n = n, state = 's', unmet = hold, failed = 0, holds = hold, revives = false, rank = rank, err = '' }
      order[#order + 1] = new[n]
    end
  end
  local function find(n)
    return work.gate_of(flow, n) or new[n]
  end

  -- Only what is not stored yet is looked at; the tasks of one kind are all alike.
  local fresh = {}
  for i = first, #ARGV, 3 do
    local kind = kind_for(ARGV[i + 1])
    kind.member = kind.member or (kind.word and member_of(kind.word))
    if kind.member and not kind.is_fresh and call('EXISTS', P .. 'o:' .. ARGV[i]) == 0 then
      kind.is_fresh, kind.position = true, (i - first) / 3
      fresh[#fresh + 1] = kind
    end
  end
  for _, kind in ipairs(fresh) do
    local behind = kind.member.behind
    local own = behind and find(behind)
    if behind and not own then
      return { 'gate', kind.position, behind }
    end
    for _, feed in ipairs(kind.member.feeds) do
      local gate = find(feed.gate)
      if not gate then
        return { 'gate', kind.position, feed.gate }
      elseif own and own.rank >= gate.rank then
        return { 'rank', kind.position, behind, feed.gate }
      elseif gate.state ~= 's' then
        return { 'closed', kind.position, feed.gate, gate.state }
      end
    end
  end
  if flow.cancelled > 0 and #fresh + #order > 0 then
    return { 'cancelled' }
  elseif #fresh > 0 and work.has_lost_key(flow) then
    return { 'lost' }
  end

  for _, gate in ipairs(order) do
    flow.gates[gate.n], flow.changed[gate.n] = gate, gate
    flow.holds[gate.n] = gate.holds > 0 and true or nil
  end
  if given and next(flow.holds) then
    flow.hold_until = math.min(now + given.hold_ttl, LATEST)
  end
  local tasks, later, behind, blocked, pasts = {}, {}, {}, {}, {}
  for _, kind in ipairs(fresh) do
    local own = kind.member.behind and work.gate_of(flow, kind.member.behind)
    kind.count = 0
    place_member(kind, own and own.state)
    local function join(task, seq, seq8)
      kind.count = kind.count + 1
      tasks[#tasks + 1], tasks[#tasks + 2] = seq, task
      if kind.is_blocked then
        behind[#behind + 1], behind[#behind + 2] = own.n, string.sub(seq8, 3) .. task
        local list = blocked[kind.queue] or {}
        list[#list + 1], list[#list + 2] = seq, task
        blocked[kind.queue] = list
      elseif own then
        pasts[#pasts + 1], pasts[#pasts + 2] = P .. 'h:' .. task, kind.past
      end
      if kind.run > now and not kind.is_blocked then
        later[#later + 1], later[#later + 2] = kind.run, task
      end
    end
    kind.join = join
  end
  local refused = store(first)
  for i = 1, #pasts, 4000 do
    call('MSET', unpack(pasts, i, math.min(i + 3999, #pasts)))
  end
  for key, list in pairs({ ['ft:'] = tasks, ['fl:'] = later, ['fb:'] = behind }) do
    if #list > 0 then
      apply('ZADD', P .. key .. id, list)
    end
  end
  for queue, list in pairs(blocked) do
    call('SADD', P .. 'queues', queue)
    apply('ZADD', P .. IN_ORDER.b .. queue, list)
  end
  for _, kind in ipairs(fresh) do
    flow.live = flow.live + kind.count
    for _, feed in ipairs(kind.member.feeds) do
      work.count(flow, work.gate_of(flow, feed.gate), kind.count, 0)
    end
    local own = kind.member.behind and work.gate_of(flow, kind.member.behind)
    if own and own.state == 'b' then
      work.push(flow, own.n)
    end
  end
  for _, gate in ipairs(order) do
    work.look(flow, gate)
  end
  if #tasks > 0 then
    flow.finished = 0
  end
  conclude()
  -- Not unpacked: the stack of Lua holds some thousands.
  local answer = { 'ok' }
  for i, word in ipairs(refused) do
    answer[i + 1] = word
  end
  return answer
end
