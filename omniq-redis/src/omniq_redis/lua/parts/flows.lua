-- Flows: what their tasks wait for. omniq.storage.transitions says it in Python, by the same names; here is how it is kept:
--   f:ID, a hash: the fields below; due, an e or l (it has ended, or is live) and the score of flows:ended or flows:due that
--     follows; and g and the number of each gate: state (s: shut, o: open, b: broken), unmet, failed,
--     holds, 1 if it revives, length of the rank, then rank and error. Times are as everywhere, 0 is none.
--   ft:ID, all of its tasks by their sequence numbers. fl:ID, those that are scheduled by the time, with some that were.
--   fb:ID, those that are blocked, and fd:ID, those that ended as their gate broke, by the numbers of their gates: sequence
--     6, id. All blocked ones of a queue stand in blocked:QUEUE, too.
--   flows:due and flows:ended: when there is something to do about a flow that is live, or has ended. flows:unique[key].
-- Everything is made at the first use, so that scripts that meet no task of a flow do not pay for it.
local made
function flows()
  if made then
    return made
  end
  made = {}
  local AUDIT, AUDITED, LONGEST_REASON = 300000000, 1000, 1000
  local MISSED = 'a task that it waits for is not in the store, or cannot be read'
  local ABANDONED = 'the flow was not built to its end: what built it died, or took longer than its hold'
  local CANCELLED_FLOW = 'the flow was cancelled'
  -- live: how many tasks have not ended, of which r are running; s, f and c: how many ended so. held: the gates that are,
  -- agenda: those with something to do, in order. cancelling, retrying (2: the flow was cancelled before) and auditing:
  -- whether that goes on, behind which task. While tasks are retried no gate opens.
  local NUMBERS = { 'created', 'ttl', 'live', 'r', 's', 'f', 'c', 'hold_until', 'finished', 'cancelled', 'cancelling',
    'cancel_from', 'retrying', 'retry_from', 'audit_at', 'auditing', 'audit_from', 'doubtful' }
  local TEXTS = { 'held', 'agenda', 'unique', 'due' }
  local opened, pending, is_pending = {}, {}, {}
  local woken, soonest = {}, {}

  local function wait_for(flow)
    if not is_pending[flow] then
      is_pending[flow] = true
      pending[#pending + 1] = flow
    end
    return flow
  end

  local function push(flow, n)
    if not flow.on_agenda[n] then
      flow.on_agenda[n] = true
      flow.last = flow.last + 1
      flow.todo[flow.last] = n
    end
  end

  local function pop(flow)
    flow.on_agenda[flow.todo[flow.first]] = nil
    flow.todo[flow.first] = nil
    flow.first = flow.first + 1
  end

  local function new(id, values)
    local flow = { id = id, key = P .. 'f:' .. id, gates = {}, changed = {}, was = values, on_agenda = {}, todo = {},
      first = 1, last = 0, holds = {} }
    for _, name in ipairs(NUMBERS) do
      flow[name] = tonumber(values[name] or '') or 0
    end
    for n in string.gmatch(values.agenda or '', '%d+') do
      push(flow, tonumber(n))
    end
    for n in string.gmatch(values.held or '', '%d+') do
      flow.holds[tonumber(n)] = true
    end
    flow.unique = values.unique
    opened[id] = flow
    return flow
  end

  -- Gives a flow, false if it is not there or cannot be read.
  local function open(id)
    local flow = opened[id]
    if flow == nil then
      flow = false
      local names = {}
      for _, list in ipairs({ NUMBERS, TEXTS }) do
        for _, name in ipairs(list) do
          names[#names + 1] = name
        end
      end
      local stored, values = call('HMGET', P .. 'f:' .. id, unpack(names)), {}
      for i, name in ipairs(names) do
        values[name] = stored[i] or nil
      end
      if tonumber(values.created or '') then
        flow = new(id, values)
      end
      opened[id] = flow
    end
    return flow and wait_for(flow)
  end

  -- Gates

  local function read_gate(n, text)
    local state, unmet, failed, holds, revives, length, rest =
      string.match(text, '^([sob]) (%-?%d+) (%-?%d+) (%d+) ([01]) (%d+) (.*)$')
    if not state then
      -- What cannot be read cannot open any more.
      return { n = n, state = 's', unmet = 0, failed = 1, holds = 0, revives = false, rank = '', err = MISSED }
    end
    length = tonumber(length)
    return { n = n, state = state, unmet = tonumber(unmet), failed = tonumber(failed), holds = tonumber(holds),
      revives = revives == '1', rank = string.sub(rest, 1, length), err = string.sub(rest, length + 1) }
  end

  local function look(flow, gate)
    if gate.state == 's' and (gate.failed > 0 or gate.unmet <= 0) then
      if gate.failed > 0 then
        gate.state = 'b'
      elseif flow.cancelled > 0 then
        -- Were it open, those behind it would not wait for what a retry of the flow runs again.
        gate.state, gate.err = 'b', gate.err == '' and CANCELLED_FLOW or gate.err
      elseif flow.retrying == 0 then
        gate.state = 'o'
      end
      flow.changed[gate.n] = gate
      push(flow, gate.n)
    end
  end

  local function count(flow, gate, step, failures, err)
    gate.unmet = gate.unmet + step
    gate.failed = gate.failed + failures
    if gate.err == '' then
      gate.err = err or ''
    end
    flow.changed[gate.n] = gate
    if gate.state == 'b' and gate.failed <= 0 then
      gate.state, gate.err, gate.revives = 's', '', true
      push(flow, gate.n)
    end
    look(flow, gate)
  end

  local function gate_of(flow, n)
    local gate = flow.gates[n]
    if gate == nil then
      local text = not flow.is_new and call('HGET', flow.key, string.format('g%.0f', n))
      gate = text and read_gate(n, text)
      flow.gates[n] = gate
      if gate and gate.state == 'b' and gate.failed <= 0 and flow.cancelled == 0 then
        count(flow, gate, 0, 0)  -- a cancellation that was taken back had broken it
      end
    end
    return gate
  end

  local function let_go(flow, gate, failures)
    local holds = gate.holds
    gate.holds = 0
    flow.holds[gate.n] = nil
    count(flow, gate, -holds, failures, failures > 0 and ABANDONED or '')
  end

  local function break_held(flow)
    local held = {}
    for n in pairs(flow.holds) do
      held[#held + 1] = n
    end
    for _, n in ipairs(held) do
      local gate = gate_of(flow, n)
      flow.holds[n] = nil
      if gate and gate.holds > 0 then
        let_go(flow, gate, 1)
      end
    end
  end

  -- Gives the gates that count a task, and whether each needs its success. An open one has counted all.
  local function fed(flow, head)
    local found = {}
    for _, feed in ipairs(head.member.feeds) do
      local gate = gate_of(flow, feed.gate)
      if gate and gate.state ~= 'o' then
        found[#found + 1] = { gate, feed.needs_success }
      end
    end
    return found
  end

  -- Tasks

  local function name_of(id)
    local order = redis.pcall('GET', P .. 'o:' .. id)
    if type(order) ~= 'string' or not has_head(order, 1) then
      return '?'
    end
    local stop = head_of(order, 1).stop
    local read, options = pcall(cjson.decode, string.match(string.sub(order, stop, stop + 65535), '^[^\n]*'))
    return read and type(options) == 'table' and tostring(options[1]) or '?'
  end

  -- Gives the first of a text's characters.
  local function shortened(text)
    local _, characters = string.gsub(text, '[^\128-\191]', '')
    if characters <= LONGEST_REASON then
      return text
    end
    local seen, at = 0, 0
    while seen <= LONGEST_REASON do
      at = string.find(text, '[^\128-\191]', at + 1)
      seen = seen + 1
    end
    return string.sub(text, 1, at - 1)
  end

  -- Gives what became of a task without success, for those that needed it.
  local function reason(id, letter, err)
    local what = 'task ' .. id .. ' (' .. name_of(id) .. ')'
    if letter == 'c' or err == '' then
      return what .. ' was cancelled'
    end
    local read, told = pcall(cjson.decode, (split_error(err)))
    if not read or type(told) ~= 'table' then
      return what .. ' failed'
    end
    return what .. ' failed: ' .. tostring(told[1]) .. ': ' .. shortened(tostring(told[2]))
  end

  -- Takes a task out of where those stand that wait.
  local function leave(flow, id, head)
    if head.member.behind then
      call('ZREM', P .. 'fb:' .. flow.id, head.seq .. id)
      unlist_ended('b', id, head.queue)
    end
    call('ZREM', P .. 'fl:' .. flow.id, id)
  end

  -- Counts the end of a task. err: its error; upstream: what failed, if its gate broke; ran: whether it was running.
  function made.ended(id, head, letter, err, upstream, ran)
    local flow = open(head.member.flow)
    if not flow then
      return
    end
    flow.live = flow.live - 1
    flow[letter] = flow[letter] + 1
    if ran then
      flow.r = flow.r - 1
    else
      leave(flow, id, head)
    end
    local why
    for _, one in ipairs(fed(flow, head)) do
      local fails = one[2] and letter ~= 's'
      if fails then
        why = why or upstream or reason(id, letter, err)
      end
      count(flow, one[1], -1, fails and 1 or 0, fails and why or '')
    end
  end

  -- Counts tasks of a flow that begin to run (or no longer do).
  function made.run(id, step)
    local flow = open(id)
    if flow then
      flow.r = flow.r + step
    end
  end

  function made.is_there(id)
    return open(id) and true
  end

  -- Notes that a task is scheduled (or ready).
  function made.waits(id, head, run)
    local flow = open(head.member.flow)
    if flow and run > now then
      call('ZREMRANGEBYSCORE', P .. 'fl:' .. flow.id, '-inf', now)
      call('ZADD', P .. 'fl:' .. flow.id, run, id)
    elseif flow then
      call('ZREM', P .. 'fl:' .. flow.id, id)
    end
  end

  -- Has it looked, after this step, whether a flow still gets what it waits for.
  function made.doubt(head)
    local flow = open(head.member.flow)
    if flow then
      flow.doubtful = 1
    end
  end

  -- Counts a task that is removed. letter: of its state, nil if it has not ended.
  function made.removed(id, order, head, letter)
    local flow = open(head.member.flow)
    if not flow then
      return
    end
    if letter ~= 's' and letter ~= 'f' and letter ~= 'c' then
      letter = 'c'
      made.ended(id, head, letter, '')
    elseif head.member.behind then
      call('ZREM', P .. 'fd:' .. flow.id, head.seq .. id)
    end
    flow[letter] = flow[letter] - 1
    call('ZREM', P .. 'ft:' .. flow.id, id)
  end

  -- Puts a task among those that are ready or scheduled, with the past that says so.
  local function put(flow, id, head, attempt, run, err, progress, result)
    call('SET', P .. 'h:' .. id, past_of('w', NEVER, attempt, err, progress, result))
    if run > now then
      make_scheduled(id, head, run)
      call('ZADD', P .. 'fl:' .. flow.id, run, id)
      soonest[head.queue] = math.min(soonest[head.queue] or run, run)
    elseif make_ready(id, head, run) then
      woken[head.queue] = true
    end
    local expires8 = string.sub(attempt, 25, 32)
    if expires8 ~= NEVER then
      call('ZADD', P .. 'expiring', (struct.unpack('>I8', expires8)), id)
    end
  end

  -- Gives the attempt, the error, the progress and the result of one that has a past or none.
  local function parts_of(order, past)
    if past then
      return split(past)
    end
    return string.rep('\0', 16) .. string.sub(order, 17, 32) .. '\0\0\0', '', '', ''
  end

  -- Lets a task go whose gate opened.
  local function release(flow, id, head, attempt, err, progress, result)
    local run = struct.unpack('>I8', attempt, 17)
    if head.member.delay then
      run = math.min(now + head.member.delay, LATEST)
    end
    local number = struct.unpack('>I4', attempt, 5)
    put(flow, id, head, renewed(attempt, number, run, string.sub(attempt, 25, 32)), run, err, progress, result)
  end

  -- Has a task wait again that had failed or was cancelled.
  local function revive(flow, id, order, past, head)
    local letter, place = string.sub(past, 1, 1), head.seq .. id
    local own = head.member.behind and gate_of(flow, head.member.behind)
    flow.live = flow.live + 1
    flow[letter] = flow[letter] - 1
    flow.finished, flow.audit_from = 0, 0
    for _, one in ipairs(fed(flow, head)) do
      count(flow, one[1], 1, one[2] and -1 or 0)
    end
    call('ZREM', P .. (letter == 'f' and 'failed:' or 'cancelled:') .. head.queue, id)
    unlist_ended(letter, id, head.queue)
    local attempt, err, progress, result = split(past)
    local was_started = string.sub(attempt, 9, 16) ~= NEVER
    if call('ZREM', P .. 'fd:' .. flow.id, place) == 1 then
      local _, log = split_error(err)
      err = log
    end
    local run, expires8 = run_of(order, past), string.sub(attempt, 25, 32)
    if expires8 ~= NEVER and struct.unpack('>I8', expires8) <= now then
      expires8 = NEVER
    end
    if not own or (own.state == 'o' and was_started) then
      put(flow, id, head, renewed(attempt, 0, now, expires8), now, err, progress, result)
    elseif own.state == 'o' then
      release(flow, id, head, renewed(attempt, 0, run, expires8), err, progress, result)
    else
      call('SET', P .. 'h:' .. id, past_of('b', NEVER, renewed(attempt, 0, run, expires8), err, progress, result))
      call('ZADD', P .. 'fb:' .. flow.id, own.n, place)
      list_ended('b', id, head)
      if own.state == 'b' then
        push(flow, own.n)
      end
    end
  end

  -- Tells whether a flow has ended and another has its unique key by now: then it cannot go on.
  function made.has_lost_key(flow)
    local holder = flow.finished > 0 and flow.unique and made.holder(flow.unique)
    return holder and holder ~= flow.id
  end

  -- Tries a task anew by hand. Tells whether that can be.
  function made.retry(id, order, past, head)
    local flow = open(head.member.flow)
    if not flow or flow.cancelled > 0 or made.has_lost_key(flow)
      or call('ZSCORE', P .. 'fd:' .. flow.id, head.seq .. id) then
      return false
    end
    revive(flow, id, order, past, head)
    return true
  end

  -- What follows

  local function work_off(flow, n, limit)
    local gate, moved = gate_of(flow, n), 0
    if gate then
      look(flow, gate)
    end
    local function some(key)
      local places = call('ZRANGEBYSCORE', P .. key .. flow.id, n, n, 'LIMIT', 0, limit - moved)
      moved = moved + #places
      return places
    end
    if gate and gate.state ~= 's' then
      for _, place in ipairs(some('fb:')) do
        local id = string.sub(place, 7)
        local order, past = order_of(id), past_of_task(id)
        local head = order and head_of(order, 1)
        call('ZREM', P .. 'fb:' .. flow.id, place)
        if not order or past == false then
          if call('EXISTS', P .. 'o:' .. id) == 1 and call('HEXISTS', P .. 'running', id) == 0 then
            end_corrupt(id, head and head.queue, 'it cannot be told what it is or what has become of it')
          end
          flow.doubtful = 1
        elseif is_blocked(past, head) then
          local attempt, err, progress, result = parts_of(order, past)
          local expires = struct.unpack('>I8', attempt, 25)
          flow.audit_from = 0
          if gate.state == 'b' then
            end_waiting(id, order, past, head, gate.err)
            call('ZADD', P .. 'fd:' .. flow.id, n, place)
          elseif expires > 0 and expires <= now then
            end_waiting(id, order, past, head)
          else
            unlist_ended('b', id, head.queue)
            release(flow, id, head, attempt, err, progress, result)
          end
        end
      end
    end
    if gate and gate.state ~= 'b' and gate.revives and moved < limit then
      for _, place in ipairs(some('fd:')) do
        local id = string.sub(place, 7)
        local order, past = order_of(id), past_of_task(id)
        if order and past and string.sub(past, 1, 1) == 'c' then
          revive(flow, id, order, past, head_of(order, 1))
        end
        call('ZREM', P .. 'fd:' .. flow.id, place)
      end
    end
    if moved < limit then
      pop(flow)
      if gate and gate.revives then
        gate.revives = false
        flow.changed[n] = gate
      end
    end
    return moved
  end

  -- Gives some of a flow's tasks by their sequence numbers, and the last of these.
  local function tasks_behind(flow, from, limit)
    local key, behind = P .. 'ft:' .. flow.id, string.format('(%.0f', from)
    local found = call('ZRANGEBYSCORE', key, behind, '+inf', 'WITHSCORES', 'LIMIT', 0, limit)
    local ids = {}
    for i = 1, #found, 2 do
      ids[#ids + 1] = found[i]
    end
    return ids, tonumber(found[#found] or from)
  end
  made.tasks_behind = tasks_behind

  local function cancel_one(id)
    local record = call('HGET', P .. 'running', id)
    if record then
      if is_running(record) then
        call('HSET', P .. 'running', id, string.sub(record, 1, 32) .. CANCEL_REQUESTED .. string.sub(record, 34))
      end
      return
    end
    local order, past = order_of(id), past_of_task(id)
    local head = order and head_of(order, 1)
    if head and head.member and past ~= false and (not past or string.find(past, '^[wb]')) then
      local key, place = waits_in(id, order, past, head)
      end_waiting(id, order, past, head)
      if key then
        take_out(key, place, id, head)
      end
    end
  end

  local function cancel_some(flow, limit)
    local ids, last = tasks_behind(flow, flow.cancel_from, limit)
    for _, id in ipairs(ids) do
      cancel_one(id)
    end
    flow.cancel_from = last
    if #ids < limit then
      flow.cancelling = 0
    end
    return #ids
  end

  local function retry_some(flow, limit)
    local ids, last = tasks_behind(flow, flow.retry_from, limit)
    for _, id in ipairs(ids) do
      local order, past, record = order_of(id), past_of_task(id), call('HGET', P .. 'running', id)
      local head = order and past and head_of(order, 1)
      if record then
        if flow.retrying == 2 and is_running(record) and is_cancel_requested(record) then
          call('HSET', P .. 'running', id, string.sub(record, 1, 32) .. '\0' .. string.sub(record, 34))
        end
      elseif head and head.member and string.find(past, '^[fc]') then
        made.retry(id, order, past, head)
      end
    end
    flow.retry_from = last
    if #ids < limit then
      flow.retrying = 0
    end
    return #ids
  end

  local function is_due(flow)
    return flow.cancelling > 0 or flow.retrying > 0 or flow.first <= flow.last
  end

  local function settle(flow, limit)
    local moved = 0
    while moved < limit and is_due(flow) do
      local step
      if flow.cancelling > 0 then
        step = cancel_some(flow, limit - moved)
      elseif flow.retrying > 0 then
        step = retry_some(flow, limit - moved)
      else
        step = work_off(flow, flow.todo[flow.first], limit - moved)
      end
      -- A gate without tasks behind it takes its part of the step, too.
      moved = moved + math.max(step, 1)
    end
    return moved
  end

  local function can_still_end(flow, id)
    local order, past = order_of(id), past_of_task(id)
    local head = order and head_of(order, 1)
    if not head or past == false or not head.member or head.member.flow ~= flow.id then
      return false
    end
    local record = call('HGET', P .. 'running', id)
    if record then
      return is_running(record)
    end
    return not is_blocked(past, head) and (not past or string.sub(past, 1, 1) == 'w')
  end

  -- Breaks the gates behind which tasks wait for ever, as a record was damaged: those of a flow in which nothing can run.
  -- Some of its tasks are looked at in each step; what goes back to a state that it had left has the look begin anew.
  local function audit(flow)
    flow.audit_at, flow.auditing = now + AUDIT, 0
    if is_due(flow) or next(flow.holds) then
      return
    end
    local ids, last = tasks_behind(flow, flow.audit_from, AUDITED)
    for _, id in ipairs(ids) do
      if can_still_end(flow, id) then
        return
      end
    end
    if #ids == AUDITED then
      flow.audit_from, flow.auditing = last, 1
      return
    end
    flow.live, flow.r = call('ZCARD', P .. 'fb:' .. flow.id), 0
    local n = -1
    for looked = 0, AUDITED do
      n = tonumber(call('ZRANGEBYSCORE', P .. 'fb:' .. flow.id, '(' .. n, '+inf', 'WITHSCORES', 'LIMIT', 0, 1)[2])
      if not n then
        break
      elseif looked == AUDITED then
        flow.auditing = 1
        break
      end
      local gate = gate_of(flow, n) or read_gate(n, '')
      flow.gates[n] = gate
      if gate.state == 's' then
        count(flow, gate, 0, 1, MISSED)
      else
        push(flow, n)
      end
    end
  end

  local function is_over(flow)
    return flow.live <= 0 and flow.retrying == 0 and not next(flow.holds)
  end

  local function save(flow)
    local words = {}
    local function put_field(name, text)
      if flow.was[name] ~= text then
        words[#words + 1], words[#words + 2] = name, text
        flow.was[name] = text
      end
    end
    for _, name in ipairs(NUMBERS) do
      put_field(name, string.format('%.0f', flow[name]))
    end
    local held, agenda = {}, {}
    for n in pairs(flow.holds) do
      held[#held + 1] = string.format('%.0f', n)
    end
    for i = flow.first, flow.last do
      agenda[#agenda + 1] = string.format('%.0f', flow.todo[i])
    end
    put_field('held', table.concat(held, ' '))
    put_field('agenda', table.concat(agenda, ' '))
    if flow.unique then
      put_field('unique', flow.unique)
    end
    for n, gate in pairs(flow.changed) do
      words[#words + 1] = string.format('g%.0f', n)
      words[#words + 1] = string.format('%s %.0f %.0f %.0f %d %d ', gate.state, gate.unmet, gate.failed, gate.holds,
        gate.revives and 1 or 0, #gate.rank) .. gate.rank .. gate.err
    end
    flow.changed = {}
    local due, letter = flow.created, flow.finished > 0 and 'e' or 'l'
    if flow.finished > 0 then
      due = math.min(flow.finished + flow.ttl, LATEST)
    elseif not is_due(flow) and flow.auditing == 0 then
      due = flow.hold_until > 0 and flow.hold_until or flow.audit_at
    end
    local before = flow.was.due or ''
    put_field('due', letter .. string.format('%.0f', due))
    if #words > 0 then
      apply('HSET', flow.key, words)
    end
    if flow.was.due == before then
      return
    elseif letter == 'e' then
      call('ZREM', P .. 'flows:due', flow.id)
      call('ZADD', P .. 'flows:ended', due, flow.id)
      if flow.unique and call('HGET', P .. 'flows:unique', flow.unique) == flow.id then
        call('HDEL', P .. 'flows:unique', flow.unique)
      end
      return
    end
    if string.sub(before, 1, 1) ~= 'l' then
      call('ZREM', P .. 'flows:ended', flow.id)
      if flow.unique then
        call('HSETNX', P .. 'flows:unique', flow.unique, flow.id)
      end
    end
    call('ZADD', P .. 'flows:due', due, flow.id)
    if due <= now and (tonumber(string.match(before, '^l(%d+)$') or '') or LATEST) > now then
      -- An idle worker goes on with what is left.
      call('PUBLISH', P .. 'due', string.format('%.0f', now))
    end
  end

  local function close_one(flow, limit)
    local moved = settle(flow, limit)
    if not is_over(flow) and (flow.doubtful > 0 or flow.auditing > 0 or flow.audit_at <= now) then
      audit(flow)
      moved = moved + settle(flow, limit - moved)
    end
    if not next(flow.holds) then
      flow.hold_until = 0
    end
    if is_over(flow) then
      while flow.first <= flow.last do
        pop(flow)
      end
      flow.cancelling, flow.auditing = 0, 0
      flow.finished = flow.finished > 0 and flow.finished or now
    end
    save(flow)
    return moved
  end

  -- Does what follows, as far as the step reaches, and saves everything; gives how many tasks were moved.
  function made.close(limit)
    local moved, at = 0, 1
    while pending[at] do
      local flow = pending[at]
      moved = moved + (flow.is_gone and 0 or close_one(flow, limit - moved))
      is_pending[flow] = nil
      at = at + 1
    end
    pending = {}
    for queue in pairs(woken) do
      wake(queue)
    end
    for queue, run in pairs(soonest) do
      announce_due(queue, run)
    end
    woken, soonest = {}, {}
    return moved
  end

  -- Does what is due about flows, up to so many tasks; gives how many.
  function made.settle(limit)
    local moved = 0
    while moved < limit do
      local id = call('ZRANGEBYSCORE', P .. 'flows:due', '-inf', now, 'LIMIT', 0, 1)[1]
      if not id then
        break
      end
      local flow = open(id)
      if not flow then
        call('ZREM', P .. 'flows:due', id)
      else
        flow.was.due = nil
        if flow.hold_until > 0 and flow.hold_until <= now then
          break_held(flow)
        end
        -- A flow of which not all could be looked at has taken a whole step.
        moved = moved + math.max(made.close(limit - moved), flow.auditing > 0 and limit - moved or 1)
      end
    end
    return moved
  end

  function made.cancel(id)
    local flow = open(id)
    if not flow or flow.cancelled > 0 or is_over(flow) then
      return false
    end
    flow.cancelled, flow.cancelling, flow.cancel_from, flow.retrying, flow.doubtful = 1, 1, 0, 0, 1
    break_held(flow)
    return true
  end

  -- Has the tasks of a flow retried that failed or were cancelled, but not as a gate broke; gives how many they are.
  function made.retry_flow(id)
    local flow = open(id)
    if not flow or made.has_lost_key(flow) then
      return 0
    end
    local found = math.max(flow.f + flow.c - call('ZCARD', P .. 'fd:' .. flow.id), 0)
    if found > 0 or (flow.cancelled > 0 and flow.live > 0) then
      flow.retrying, flow.retry_from, flow.finished = flow.cancelled > 0 and 2 or 1, 0, 0
    end
    flow.cancelled, flow.cancelling, flow.doubtful = 0, 0, 0
    return found
  end

  function made.release_hold(id, n)
    local flow = open(id)
    local gate = flow and gate_of(flow, n)
    if not gate or gate.holds <= 0 then
      return false
    end
    let_go(flow, gate, 0)
    return true
  end

  -- Gives the id of the flow that has not ended and has a key.
  function made.holder(key)
    local id = call('HGET', P .. 'flows:unique', key)
    local flow = id and open(id)
    return flow and flow.finished == 0 and id
  end

  -- Adds a flow.
  function made.add(id, unique, ttl)
    local flow = new(id, {})
    flow.created, flow.ttl, flow.unique, flow.audit_at, flow.is_new = now, ttl, unique, now + AUDIT, true
    return wait_for(flow)
  end

  function made.forget(id)
    for _, key in ipairs({ 'f:', 'ft:', 'fl:', 'fb:', 'fd:' }) do
      call('UNLINK', P .. key .. id)
    end
    call('ZREM', P .. 'flows:ended', id)
    local flow = opened[id]
    if flow then
      flow.is_gone = true
    end
    opened[id] = false
  end

  -- Puts a task, and its flow, back where they are to be found, see restore; gives false if it is not one that waits.
  function made.restore(id, order, past, head)
    local flow = open(head.member.flow)
    local letter, place = past and string.sub(past, 1, 1), head.seq .. id
    if flow then
      flow.was.due, flow.doubtful, flow.audit_from = nil, 1, 0
      call('ZADD', P .. 'ft:' .. flow.id, score_of(head), id)
    end
    if is_blocked(past, head) then
      list_ended('b', id, head)
      local gate = flow and gate_of(flow, head.member.behind)
      if gate then
        call('ZADD', P .. 'fb:' .. flow.id, gate.n, place)
        if gate.state ~= 's' then
          push(flow, gate.n)
        end
      else
        end_waiting(id, order, past, head, MISSED)
        unlist_ended('b', id, head.queue)
      end
    elseif flow and letter == 'c' and head.member.behind then
      local _, err = split(past)
      local read, told = pcall(cjson.decode, (split_error(err)))
      if read and type(told) == 'table' and told[1] == UPSTREAM then
        call('ZADD', P .. 'fd:' .. flow.id, head.member.behind, place)
      end
    end
  end

  made.open, made.gate_of, made.count, made.look, made.push, made.leave = open, gate_of, count, look, push, leave
  return made
end
