-- Limits: lines of ready tasks, and where they stand. omniq.storage.limit_transitions says it in Python, by the same names;
-- here is how it is kept:
--   limits[ID], a limit: revision 8, the first 16 digits of the SHA-1 of all else, then concurrency 8, interval 8 and burst
--     8 (0: none) of the whole and of each key, and what only clients read: a check of the weights 16 (0: none), a text.
--     weights:QUEUE[KEY], apart from that, as every claim checks the limit. rates[SCOPE]: when a rate is at rest.
--   slots[SCOPE]: how many tasks of a key or a named limit are running; those of a queue are in counts.
--   lanes[QUEUE]: a p if the queue is paused, else -; then, if it has a limit or lines, its vtime 8, that of the plain line
--     8, and 1 if its lines are to be made eligible. Only queues of which there is one of these things stand there.
--   line:LINE, the ready tasks of a line, as ready:QUEUE has those of the plain one. lined:QUEUE, all of those of a queue.
--   lines:QUEUE[LINE]: its place 1 (e: eligible, k: at its key, s: asleep, n: at its named limit, i: idle), 100 - priority
--     1, vtime 8, until when it is asleep 8, flags 1 (1: a key, 2: a named limit), length of the key 2, key, name.
--   eligible:QUEUE and named:NAME:QUEUE, lines in their order; parked:QUEUE (k), asleep:QUEUE by the time (l and the line,
--     or a and a name: an alarm), resting:QUEUE (i) by vtime. held:QUEUE:KEY: lines of a key that are k or s.
--     sharing:NAME: queues that have lines at a name. Where one of these and a line's record differ the record counts.
--   stalled:QUEUE, as idle:QUEUE: those who wait, but for a slot or a token of the queue, not for another task.
-- Everything is made at the first use, so that scripts that meet no limits do not pay for it.
local made_limits
function limits()
  if made_limits then
    return made_limits
  end
  made_limits = {}
  -- MOVED: so many lines are moved by one step at most, and twice as many are served by one claim. UNLIMITED: more than any claim asks for.
  local MOVED, STEP, UNLIMITED, PAGE = 300, 1000000, 2 ^ 53, 1000
  local rules, lanes, arrived, freed, keys, names, given, woken, soonest = {}, {}, {}, {}, {}, {}, {}, {}, {}

  -- Limits

  local function of_key(queue, key)
    return 'k' .. #queue .. ':' .. queue .. key
  end

  -- Gives a limit as it is stored.
  local function sealed(revision, text)
    local revision8 = struct.pack('>I8', revision)
    return revision8 .. string.sub(redis.sha1hex(revision8 .. text), 1, 16) .. text
  end

  local function is_sound(stored)
    return #stored >= 88 and sealed(struct.unpack('>I8', stored), string.sub(stored, 25)) == stored
  end

  -- Gives what a limit says of the whole and of each key, an empty table if there is none. One that cannot be read lets
  -- nothing start.
  local function rule_of(id)
    local rule = rules[id]
    if not rule then
      rule = {}
      local stored = call('HGET', P .. 'limits', id)
      if stored and not is_sound(stored) then
        rule.whole = { most = -1, interval = 0, burst = 0 }
      elseif stored then
        local most, interval, burst, each, each_interval, each_burst, weights =
          struct.unpack('>I8I8I8I8I8I8c16', stored, 25)
        rule.whole = { most = most, interval = interval, burst = burst }
        rule.each = { most = each, interval = each_interval, burst = each_burst }
        rule.weighs = weights ~= string.rep('\0', 16)
      end
      rules[id] = rule
    end
    return rule
  end

  local function whole_of(queue)
    return rule_of('queue:' .. queue).whole
  end

  local function running_in(scope)
    local key, field = 'slots', scope
    if string.sub(scope, 1, 1) == 'q' then
      key, field = 'counts', string.sub(scope, 2)
    end
    return tonumber(call('HGET', P .. key, field) or 0) or 0
  end

  -- Gives for how many more running tasks there is room; 0 or less: for none.
  local function slots(scope, rule)
    if not rule or rule.most == 0 then
      return UNLIMITED
    end
    return rule.most - running_in(scope)
  end

  local function at_rest(scope, rule)
    local stored = tonumber(call('ZSCORE', P .. 'rates', scope) or 0) or 0
    local latest = now + rule.burst * rule.interval
    if stored > latest then
      -- It comes of another rate, or the clock was put back: from now on it goes on by what is here.
      call('ZADD', P .. 'rates', latest, scope)
    end
    return math.min(math.max(stored, now), latest)
  end

  -- Gives how many tasks may start now by a rate, and when the next may if none may.
  local function tokens(scope, rule)
    if not rule or rule.interval == 0 then
      return UNLIMITED, now
    end
    local due = at_rest(scope, rule) - (rule.burst - 1) * rule.interval
    return math.max(0, math.floor((now - due) / rule.interval) + 1), due
  end

  -- Counts starts; a negative number gives back so many.
  local function spend(scope, rule, starts)
    if rule and rule.interval > 0 and starts ~= 0 then
      call('ZADD', P .. 'rates', math.min(at_rest(scope, rule) + starts * rule.interval, LATEST), scope)
    end
  end

  local function count(scope, change)
    local counted = redis.pcall('HINCRBY', P .. 'slots', scope, change)
    if type(counted) == 'table' then
      counted = math.max(change, 0)
      call('HSET', P .. 'slots', scope, counted)
    end
    if counted <= 0 then
      call('HDEL', P .. 'slots', scope)
    end
  end

  -- Gives the scopes in which tasks of a line, or with a head, take slots.
  local function scopes_of(line)
    local scopes = {}
    if line.key then
      scopes[1] = of_key(line.queue, line.key)
    end
    if line.limit then
      scopes[#scopes + 1] = 'n' .. line.limit
    end
    return scopes
  end

  -- Lanes and lines

  -- text: as it is stored, if that is known.
  local function lane_of(queue, text)
    local lane = lanes[queue]
    if not lane then
      text = text or call('HGET', P .. 'lanes', queue) or '-'
      lane = { queue = queue, mark = string.sub(text, 1, 1), vtime = 0, plain = 0, waking = 0, was = text }
      if #text >= 18 then
        lane.vtime, lane.plain, lane.waking = struct.unpack('>I8I8B', text, 2)
      end
      lanes[queue] = lane
    end
    return lane
  end

  local function read(queue, id)
    local text = call('HGET', P .. 'lines:' .. queue, id)
    if not text or #text < 21 then
      return nil
    end
    local place, priority, vtime, due, flags, length = struct.unpack('>c1BI8I8BH', text)
    return { queue = queue, id = id, place = place, priority = priority, vtime = vtime, due = due,
      key = flags % 2 == 1 and string.sub(text, 22, 21 + length) or nil,
      limit = flags >= 2 and string.sub(text, 22 + length) or nil }
  end

  local function rank_of(line)
    return struct.pack('>BI8', line.priority, line.vtime) .. line.id
  end

  local function named(name, queue)
    return P .. 'named:' .. #name .. ':' .. name .. ':' .. queue
  end

  local function held(queue, key)
    return P .. 'held:' .. #queue .. ':' .. queue .. ':' .. key
  end

  -- Gives all of a set, however many they are.
  local function all_of(key)
    local found = {}
    repeat
      local some = call('ZRANGE', key, #found, #found + PAGE - 1)
      for i = 1, #some do
        found[#found + 1] = some[i]
      end
    until #some < PAGE
    return found
  end

  -- Tells whether a line is found where its record says that it stands.
  function made_limits.stands(queue, id)
    local line, lane = read(queue, id), call('HGET', P .. 'lanes', queue)
    if not line or not lane or #lane < 18 then
      return false
    end
    local key, entry = P .. 'eligible:' .. queue, rank_of(line)
    if line.place == 'n' then
      key = named(line.limit, queue)
    elseif line.place == 'k' then
      key, entry = P .. 'parked:' .. queue, id
    elseif line.place == 's' then
      key, entry = P .. 'asleep:' .. queue, 'l' .. id
    elseif line.place ~= 'e' then
      return false
    end
    return call('ZSCORE', key, entry) ~= false
  end

  local function leave(line)
    if line.place == 'e' then
      call('ZREM', P .. 'eligible:' .. line.queue, rank_of(line))
    elseif line.place == 'n' then
      local key = named(line.limit, line.queue)
      call('ZREM', key, rank_of(line))
      if call('EXISTS', key) == 0 then
        call('ZREM', P .. 'sharing:' .. line.limit, line.queue)
      end
    elseif line.place == 'i' then
      call('ZREM', P .. 'resting:' .. line.queue, line.id)
    elseif line.place then
      if line.place == 'k' then
        call('ZREM', P .. 'parked:' .. line.queue, line.id)
      else
        call('ZREM', P .. 'asleep:' .. line.queue, 'l' .. line.id)
      end
      call('ZREM', held(line.queue, line.key), line.id)
    end
  end

  local function sleep(queue, what, due)
    call('ZADD', P .. 'asleep:' .. queue, due, what)
    soonest[queue] = math.min(soonest[queue] or due, due)
  end

  -- Moves a line to a place, with another vtime or priority if they are given.
  local function move(line, place, due, vtime, priority)
    leave(line)
    line.place, line.due = place, due or 0
    line.vtime, line.priority = vtime or line.vtime, priority or line.priority
    if place == 'e' then
      call('ZADD', P .. 'eligible:' .. line.queue, 0, rank_of(line))
      woken[line.queue] = true
    elseif place == 'n' then
      call('ZADD', named(line.limit, line.queue), 0, rank_of(line))
      call('ZADD', P .. 'sharing:' .. line.limit, 0, line.queue)
    elseif place == 'i' then
      call('ZADD', P .. 'resting:' .. line.queue, line.vtime, line.id)
    else
      if place == 'k' then
        call('ZADD', P .. 'parked:' .. line.queue, 0, line.id)
      else
        sleep(line.queue, 'l' .. line.id, due)
      end
      call('ZADD', held(line.queue, line.key), 0, line.id)
    end
    local key, name = line.key or '', line.limit or ''
    local flags = (line.key and 1 or 0) + (line.limit and 2 or 0)
    call('HSET', P .. 'lines:' .. line.queue, line.id,
      struct.pack('>c1BI8I8BH', place, line.priority, line.vtime, line.due, flags, #key) .. key .. name)
  end

  local function make_eligible(line)
    move(line, 'e', 0, math.max(line.vtime, lane_of(line.queue).vtime))
  end

  local function forget(line)
    leave(line)
    call('HDEL', P .. 'lines:' .. line.queue, line.id)
  end

  -- Makes the first line of a queue eligible that is parked at a named limit, if that has room by now, or whatever it has.
  local function pass_on(queue, name, whatever)
    local key = named(name, queue)
    for _ = 1, MOVED do
      local first = call('ZRANGE', key, 0, 0)[1]
      if not first then
        return
      end
      if not whatever then
        local scope, rule = 'n' .. name, rule_of('name:' .. name).whole
        if slots(scope, rule) <= 0 then
          return
        end
        local left, due = tokens(scope, rule)
        if left <= 0 then
          sleep(queue, 'a' .. name, due)
          return
        end
      end
      local line = read(queue, string.sub(first, 10))
      if line and line.place == 'n' and rank_of(line) == first then
        make_eligible(line)
        return
      end
      call('ZREM', key, first)
    end
  end

  local function wake_name(name)
    for _, queue in ipairs(all_of(P .. 'sharing:' .. name)) do
      pass_on(queue, name)
    end
  end

  -- Makes the lines of a key eligible that are parked at it. is_asleep: also those that wait for its rate.
  local function wake_key(queue, key, is_asleep)
    for _, id in ipairs(all_of(held(queue, key))) do
      local line = read(queue, id)
      if not line or (line.place ~= 'k' and line.place ~= 's') then
        call('ZREM', held(queue, key), id)
      elseif line.place == 'k' or is_asleep then
        make_eligible(line)
      end
    end
  end

  -- Makes lines of a queue eligible whose time has come, or whose limit was changed.
  local function rouse(lane)
    local asleep, due = P .. 'asleep:' .. lane.queue, nil
    if lane.waking == 1 then
      local parked = call('ZRANGE', P .. 'parked:' .. lane.queue, 0, MOVED - 1)
      due = call('ZRANGE', asleep, 0, MOVED - 1)
      if #parked < MOVED and #due < MOVED then
        lane.waking = 0
      end
      for _, id in ipairs(parked) do
        local line = read(lane.queue, id)
        if line and line.place == 'k' then
          make_eligible(line)
        else
          call('ZREM', P .. 'parked:' .. lane.queue, id)
        end
      end
    else
      due = call('ZRANGEBYSCORE', asleep, '-inf', now, 'LIMIT', 0, MOVED)
    end
    for _, what in ipairs(due) do
      local name = string.sub(what, 2)
      local line = string.sub(what, 1, 1) == 'l' and read(lane.queue, name)
      if line and line.place == 's' then
        make_eligible(line)
      else
        call('ZREM', asleep, what)
        if string.sub(what, 1, 1) == 'a' then
          -- Whether there is room the claim will see. An alarm that is set again would be roused again.
          pass_on(lane.queue, name, true)
        end
      end
    end
  end

  -- Tasks

  -- Notes that a line has more ready tasks. priority: the first byte of their places.
  local function arrive(queue, id, key, limit, priority)
    local new = arrived[id]
    if new then
      new.priority = math.min(new.priority, priority)
    else
      arrived[id] = { queue = queue, id = id, key = key, limit = limit, vtime = 0, priority = priority }
    end
  end

  local function settle_arrivals()
    for id, new in pairs(arrived) do
      local line = read(new.queue, id) or new
      if not line.place or line.place == 'i' or new.is_doubtful then
        move(line, 'e', 0, math.max(line.vtime, lane_of(line.queue).vtime), new.priority)
      elseif new.priority < line.priority then
        move(line, line.place, line.due, nil, new.priority)
      elseif line.place == 'e' then
        woken[line.queue] = true
      end
    end
    arrived = {}
  end

  -- Puts a ready task into its line.
  function made_limits.add(id, head, run)
    call('ZADD', P .. 'line:' .. head.line, 0, member(head, run, id))
    call('ZADD', P .. 'lined:' .. head.queue, run, id)
    arrive(head.queue, head.line, head.key, head.limit, head.place)
  end

  -- Has the line of a task that was just put there be eligible, wherever it stood: its places may be lost.
  function made_limits.restore(head)
    lane_of(head.queue)
    if arrived[head.line] then
      arrived[head.line].is_doubtful = true
    end
  end

  -- Takes note that a task of a line runs no longer.
  function made_limits.left(head)
    if head.key then
      local scope = of_key(head.queue, head.key)
      freed[scope] = (freed[scope] or 0) + 1
      keys[scope] = keys[scope] or { queue = head.queue, key = head.key }
    end
    if head.limit then
      local scope = 'n' .. head.limit
      freed[scope] = (freed[scope] or 0) + 1
      names[head.limit] = true
    end
  end

  -- Takes back the start of a task that was given back unstarted.
  function made_limits.give_back(head)
    given[#given + 1] = head
  end

  -- Takes note that tasks of a queue run no longer, whatever they are. lane: as it is stored.
  function made_limits.freed(queue, lane)
    lane_of(queue, lane)
    made_limits.unstall(queue)
    woken[queue] = true
  end

  -- Has those who wait for a slot or a token of a queue be found by whatever comes into it.
  function made_limits.unstall(queue)
    local stalled = P .. 'stalled:' .. queue
    local waiters = call('ZRANGE', stalled, 0, PAGE - 1, 'WITHSCORES')
    for i = 1, #waiters, 2 do
      call('ZADD', P .. 'idle:' .. queue, waiters[i + 1], waiters[i])
    end
    if #waiters > 0 then
      call('ZREMRANGEBYRANK', stalled, 0, #waiters / 2 - 1)
      call('EXPIRE', P .. 'idle:' .. queue, 60)
    end
  end

  -- Makes the scheduled tasks of a queue with a lane ready whose time has come.
  function made_limits.promote(queue)
    local key, ready = P .. 'scheduled:' .. queue, {}
    local due = call('ZRANGEBYSCORE', key, '-inf', now, 'LIMIT', 0, MOVED)
    for _, place in ipairs(due) do
      local id = string.sub(place, 16)
      local order = order_of(id)
      local head = order and head_of(order, 1)
      if head and head.line then
        made_limits.add(id, head, (struct.unpack('>I8', place, 2)))
      else
        ready[#ready + 1], ready[#ready + 2] = 0, place
      end
    end
    if #ready > 0 then
      apply('ZADD', P .. 'ready:' .. queue, ready)
    end
    if #due > 0 then
      call('ZREMRANGEBYRANK', key, 0, #due - 1)
    end
    settle_arrivals()
  end

  -- Claiming

  local function weight_of(line, rule)
    local weight = rule.weighs and line.key and call('HGET', P .. 'weights:' .. line.queue, line.key)
    weight = tonumber(weight or 1) or 1
    return weight >= 0.01 and weight <= 100 and weight or 1
  end

  -- Gives how many tasks of a line may start by the limits of its key and its name; if none, parks it.
  local function room_of(line, each, name)
    local room = UNLIMITED
    if line.key and each then
      local scope = of_key(line.queue, line.key)
      local free, left, due = slots(scope, each), tokens(scope, each)
      if free <= 0 then
        move(line, 'k')
        return 0
      elseif left <= 0 then
        move(line, 's', due)
        return 0
      end
      room = math.min(free, left)
    end
    if line.limit then
      local scope = 'n' .. line.limit
      local free, left = slots(scope, name), tokens(scope, name)
      if free <= 0 or left <= 0 then
        move(line, 'n')
        return 0
      end
      room = math.min(room, free, left)
    end
    return room
  end

  -- Gives the first tasks of a line that have one priority.
  local function first_of(key, most)
    local members = call('ZRANGE', key, 0, math.min(most, 1000) - 1)
    local alike = {}
    for i = 1, #members do
      if string.byte(members[i]) ~= string.byte(members[1]) then
        break
      end
      alike[i] = members[i]
    end
    return alike
  end

  -- Claims tasks of a line that is first, as far as its limits let; gives how many.
  local function take_line(line, lane, rule, most, take)
    local name = line.limit and rule_of('name:' .. line.limit).whole
    most = math.min(most, room_of(line, rule.each, name))
    if most > 0 then
      local members = first_of(P .. 'line:' .. line.id, most)
      if #members > 0 and string.byte(members[1]) > line.priority then
        move(line, 'e', 0, nil, string.byte(members[1]))  -- the first was cancelled, or has expired
        return 0
      end
      local taken, vtime = #members > 0 and take(members, line.id) or 0, line.vtime
      if taken > 0 then
        for _, scope in ipairs(scopes_of(line)) do
          count(scope, taken)
        end
        if line.key then
          spend(of_key(line.queue, line.key), rule.each, taken)
        end
        if line.limit then
          spend('n' .. line.limit, name, taken)
        end
        lane.vtime = math.max(lane.vtime, vtime)
        vtime = vtime + math.max(1, math.floor(taken * STEP / weight_of(line, rule)))
      end
      local first = call('ZRANGE', P .. 'line:' .. line.id, 0, 0)[1]
      if first then
        move(line, 'e', 0, vtime, string.byte(first))
      elseif vtime > lane.vtime then
        move(line, 'i', 0, vtime)
      else
        forget(line)
      end
      return taken
    end
    return 0
  end

  -- Claims tasks of the first line, or moves it; gives how many, nil if there is none.
  local function serve_first(lane, rule, room, take)
    local eligible = P .. 'eligible:' .. lane.queue
    local first, plain = {}, call('ZRANGE', P .. 'ready:' .. lane.queue, 0, 0)[1]
    for i, rank in ipairs(call('ZRANGE', eligible, 0, 1)) do
      if #rank < 10 then
        -- None of ours; a line that it may have been is found by the audit.
        call('ZREM', eligible, rank)
        return serve_first(lane, rule, room, take)
      end
      local priority, vtime = struct.unpack('>BI8', rank)
      first[i] = { priority = priority, vtime = vtime, rank = rank }
    end
    if plain then
      local own = { priority = string.byte(plain), vtime = math.max(lane.plain, lane.vtime) }
      local at = 1
      while first[at] and (first[at].priority < own.priority
        or (first[at].priority == own.priority and first[at].vtime <= own.vtime)) do
        at = at + 1
      end
      table.insert(first, at, own)
    end
    local next_, second = first[1], first[2]
    if not next_ then
      return nil
    end
    local line
    if next_.rank then
      line = read(lane.queue, string.sub(next_.rank, 10))
      if not line or line.place ~= 'e' or rank_of(line) ~= next_.rank then
        call('ZREM', eligible, next_.rank)
        return 0
      end
    end
    if second and second.priority == next_.priority then
      local weight = line and weight_of(line, rule) or 1
      room = math.min(room, math.max(1, math.ceil((second.vtime - next_.vtime) * weight / STEP)))
    end
    if not line then
      local taken = take(first_of(P .. 'ready:' .. lane.queue, room))
      if taken > 0 then
        lane.vtime = math.max(lane.vtime, next_.vtime)
        lane.plain = next_.vtime + taken * STEP
      end
      return taken
    end
    local taken = take_line(line, lane, rule, room, take)
    if line.limit and (line.place ~= 'n' or slots('n' .. line.limit, rule_of('name:' .. line.limit).whole) > 0) then
      pass_on(lane.queue, line.limit)
    end
    return taken
  end

  -- Claims tasks of a queue with a lane; gives how many.
  -- lane: as it is stored. take: claims some of a line, and gives how many they were and whether to go on.
  function made_limits.serve(queue, lane, wanted, take)
    local goes_on, taken, scope = true, 0, 'q' .. queue
    local rule = rule_of('queue:' .. queue)
    lane = lane_of(queue, lane)
    made_limits.promote(queue)
    local room = math.min(wanted, slots(scope, rule.whole), (tokens(scope, rule.whole)))
    if room <= 0 then
      if wanted <= 0 then
        woken[queue] = true  -- the one who was woken for this queue has taken others
      end
      return 0
    end
    rouse(lane)
    if lane.waking == 1 then
      -- Until all are roused none is parked again: it would stand before those that are not, at every claim.
      woken[queue] = true
      return 0
    end
    local function take_some(members, line)
      local number
      number, goes_on = take(members, line)
      return number
    end
    for _ = 1, math.min(MOVED + wanted, 2 * MOVED) do
      local some = goes_on and taken < room and serve_first(lane, rule, room - taken, take_some)
      if not some then
        break
      end
      taken = taken + some
    end
    spend(scope, rule.whole, taken)
    woken[queue] = true
    return taken
  end

  -- Tells whether a claim of a queue may find something, as far as the limit of the queue goes.
  local function has_work(queue)
    if lane_of(queue).waking == 1 or call('EXISTS', P .. 'ready:' .. queue, P .. 'eligible:' .. queue) > 0 then
      return true
    end
    local due = call('ZRANGE', P .. 'asleep:' .. queue, 0, 0, 'WITHSCORES')[2]
    return due ~= nil and tonumber(due) <= now, tonumber(due)
  end

  -- Gives whether a claim of a queue with a lane may find something now, when that may change by itself (nil: never), and
  -- whether another task would not change it.
  function made_limits.outlook(queue, lane)
    local scope, whole = 'q' .. queue, whole_of(queue)
    lane_of(queue, lane)
    if slots(scope, whole) <= 0 then
      return false, nil, true
    end
    made_limits.promote(queue)
    local left, due = tokens(scope, whole)
    local is_there, asleep = has_work(queue)
    if is_there then
      return left > 0, due, left <= 0
    end
    local head = tonumber(call('ZRANGE', P .. 'scheduled:' .. queue, 0, 0, 'WITHSCORES')[2])
    local moment = math.min(asleep or LATEST, head or LATEST)
    return false, (asleep or head) and math.max(moment, due), false
  end

  -- Forgets that a queue had a limit or lines, which it has no longer.
  function made_limits.forget_lane(queue)
    local lane = lane_of(queue)
    lanes[queue] = nil
    if lane.mark == 'p' then
      call('HSET', P .. 'lanes', queue, 'p')
    else
      call('HDEL', P .. 'lanes', queue)
    end
  end

  -- What follows

  -- Takes note that a limit was changed, of a queue or with a name.
  function made_limits.changed(queue, name)
    rules = {}
    if name then
      names[name] = true
    else
      lane_of(queue).waking = 1
      made_limits.freed(queue)
    end
  end

  -- Wakes one who waits for work in a queue if there is any, or has them all look when there will be.
  local function wake_for(queue)
    local scope, whole = 'q' .. queue, whole_of(queue)
    if slots(scope, whole) <= 0 then
      return
    end
    local left, due = tokens(scope, whole)
    local is_there, asleep = has_work(queue)
    if not is_there then
      due = soonest[queue] and asleep == soonest[queue] and math.max(asleep, due)
    elseif left > 0 then
      wake(queue)
      due = nil
    end
    if due then
      call('PUBLISH', P .. 'due', string.format('%.0f:', due) .. queue)
    end
  end

  -- Does what follows, and saves everything.
  function made_limits.close()
    settle_arrivals()
    for scope, number in pairs(freed) do
      count(scope, -number)
    end
    for _, head in ipairs(given) do
      local rule = rule_of('queue:' .. head.queue)
      spend('q' .. head.queue, rule.whole, -1)
      if head.key then
        local scope = of_key(head.queue, head.key)
        spend(scope, rule.each, -1)
        keys[scope] = { queue = head.queue, key = head.key, is_asleep = true }
      end
      if head.limit then
        spend('n' .. head.limit, rule_of('name:' .. head.limit).whole, -1)
        names[head.limit] = true
      end
    end
    for _, one in pairs(keys) do
      wake_key(one.queue, one.key, one.is_asleep)
    end
    for name in pairs(names) do
      wake_name(name)
    end
    freed, given, keys, names = {}, {}, {}, {}
    for queue in pairs(soonest) do
      woken[queue] = true
    end
    for queue in pairs(woken) do
      wake_for(queue)
    end
    woken, soonest = {}, {}
    for queue, lane in pairs(lanes) do
      local text = lane.mark .. struct.pack('>I8I8B', lane.vtime, lane.plain, lane.waking)
      if text ~= lane.was then
        call('HSET', P .. 'lanes', queue, text)
        lane.was = text
      end
    end
  end

  made_limits.sealed, made_limits.is_sound = sealed, is_sound
  made_limits.lane, made_limits.rule_of, made_limits.forget, made_limits.read = lane_of, rule_of, forget, read
  made_limits.running_in, made_limits.tokens, made_limits.of_key = running_in, tokens, of_key
  made_limits.named, made_limits.held, made_limits.arrive, made_limits.scopes_of = named, held, arrive, scopes_of
  return made_limits
end

-- Ends a script that may have changed what flows and limits wait for: does the first of what follows.
local function conclude()
  if made then
    made.close(200)
  end
  if made_limits then
    made_limits.close()
  end
end
