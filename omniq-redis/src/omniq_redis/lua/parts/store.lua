-- Stores new tasks: from ARGV[first] on three arguments each, id, head and body. A head says when and how:
--   flags 1 (1: run is from now, 2: run is a time, 4 and 8: the same of expires), run 8, expires 8, then the part of an
--   order from result_ttl to unique. Tasks of one kind have one head, which is read once.
local function instant(flags, relative, absolute, text)
  if math.floor(flags / relative) % 2 == 1 then
    local at = math.min(now + struct.unpack('>I8', text), LATEST)
    return at, struct.pack('>I8', at)
  elseif math.floor(flags / absolute) % 2 == 1 then
    return (struct.unpack('>I8', text)), text
  end
end

local function kind_of(text)
  local flags = struct.unpack('B', text)
  local place, queue_length, unique_length = struct.unpack('>BHH', text, 30)
  local kind = { queue = string.sub(text, 35, 34 + queue_length) }
  if unique_length > 0 then
    local word = string.sub(text, 35 + queue_length)
    kind.inner = 18 + queue_length  -- where in the rest of the head the word begins
    if string.byte(word) == 254 then
      local its = limited_of(word)
      kind.line, kind.key, kind.limit, kind.max_wait = its.line, its.key, its.limit, its.first
      kind.first_at = kind.inner + 22
      kind.inner = kind.inner + #word - #(its.word or '')
      word = its.word
    end
    if word and string.byte(word) == 255 then
      kind.word = word
    else
      kind.unique = word
    end
  end
  local run, run8 = now, now8
  local expires8 = NEVER
  if flags > 0 then
    local given, given8 = instant(flags, 1, 2, string.sub(text, 2, 9))
    if given and given > now then
      run, run8 = given, given8
    end
    kind.expires, expires8 = instant(flags, 4, 8, string.sub(text, 10, 17))
    expires8 = expires8 or NEVER
  end
  kind.run, kind.priority = run, place
  kind.place = string.char(place) .. struct.pack('>I8', run)
  kind.static = now8 .. run8 .. expires8 .. string.sub(text, 18)
  if kind.word or kind.max_wait then
    kind.flags, kind.expires8, kind.rest = flags, expires8, string.sub(text, 18)
  end
  return kind
end

local kinds = {}
local function kind_for(text)
  local kind = kinds[text]
  if not kind then
    kind = kind_of(text)
    kinds[text] = kind
  end
  return kind
end

-- Stores a debounced task, and tells whether it did; it does not if the id is stored already.
-- first: when the first of those was enqueued that took each other's places.
local function store_debounced(kind, id, seq8, body, first, queue)
  local run = kind.run
  if kind.max_wait > 0 then
    run = math.max(now, math.min(run, first + kind.max_wait))
  end
  local run8 = struct.pack('>I8', run)
  local rest = string.sub(kind.rest, 1, kind.first_at - 1) .. struct.pack('>I8', first) .. string.sub(kind.rest, kind.first_at + 8)
  if not call_any('SET', P .. 'o:' .. id, seq8 .. now8 .. run8 .. kind.expires8 .. rest .. body, 'NX') then
    return false
  end
  local place = string.char(kind.priority) .. run8 .. string.sub(seq8, 3) .. id
  if kind.line then
    limits().lane(kind.queue)
  end
  if run > now then
    call('ZADD', P .. 'scheduled:' .. kind.queue, run, place)
    queue.soonest = math.min(queue.soonest or run, run)
  elseif kind.line then
    call('ZADD', P .. 'line:' .. kind.line, 0, place)
    call('ZADD', P .. 'lined:' .. kind.queue, run, id)
    limits().arrive(kind.queue, kind.line, kind.key, kind.limit, kind.priority)
  else
    call('ZADD', P .. 'ready:' .. kind.queue, 0, place)
    queue.is_woken = true
  end
  return true
end

-- Stores a task of a kind that is not plain, and gives nothing; or gives the id of the task that is stored already.
local function store_special(kind, id, seq, seq8, body, queue)
  local first, holder = now, kind.unique and call('HGET', P .. 'unique', kind.unique)
  if holder and holder ~= id and call_any('EXISTS', P .. 'o:' .. id) == 0 and call_any('EXISTS', P .. 'o:' .. holder) == 1 then
    first = kind.max_wait and supersede(holder, id, body)
    if not first then
      return holder
    end
  end
  local is_stored
  if kind.max_wait then
    is_stored = store_debounced(kind, id, seq8, body, first, queue)
  else
    is_stored = call_any('SET', P .. 'o:' .. id, seq8 .. kind.static .. body, 'NX')
  end
  if not is_stored then
    return id
  end
  if kind.join then
    kind.join(id, seq, seq8)
  end
  if kind.unique then
    call('HSET', P .. 'unique', kind.unique, id)
  end
  if kind.expires and not kind.is_blocked then
    call('ZADD', P .. 'expiring', kind.expires, id)
  end
end

local function store(first)
  local sub, pack, orders = string.sub, struct.pack, P .. 'o:'
  local count = (#ARGV - first + 1) / 3
  local seq = call('INCRBY', P .. 'seq', count) - count
  local queues, refused, lined, has_lines = {}, {}, {}, false
  local blocks, block, block_end, filled = {}, {}, 0, 0

  -- Settles where tasks of a kind are put: kind.list, of places with a score before each.
  local function place_of(kind)
    local queue = of(queues, kind.queue)
    kind.is_plain = not (kind.unique or kind.expires or kind.max_wait or kind.join)
    kind.score = kind.run > now and kind.run or 0
    has_lines = has_lines or kind.line or kind.max_wait
    if kind.max_wait or kind.is_blocked then
      kind.list = {}  -- they are put elsewhere, each by itself
    elseif kind.line and kind.run <= now then
      kind.list = {}
      lined[#lined + 1] = kind
    else
      kind.list = kind.run > now and queue.scheduled or queue.ready
    end
    if kind.line and not kind.max_wait then
      limits().lane(kind.queue)
    end
  end

  for at = first, #ARGV, 3 do
    local id, text = ARGV[at], ARGV[at + 1]
    local kind = kinds[text] or kind_for(text)
    if not kind.list then
      place_of(kind)
    end
    seq = seq + 1
    local seq8, stored_instead = pack('>I8', seq), nil
    if not kind.is_plain then
      stored_instead = store_special(kind, id, seq, seq8, ARGV[at + 2], queues[kind.queue])
    elseif not call_any('SET', orders .. id, seq8 .. kind.static .. ARGV[at + 2], 'NX') then
      stored_instead = id
    end
    if stored_instead then
      refused[#refused + 1] = (at - first) / 3
      refused[#refused + 1] = stored_instead
    else
      local list = kind.list
      local size = list.size or 0
      list[size + 1] = kind.score
      list[size + 2] = kind.place .. sub(seq8, 3) .. id
      list.size = size + 2
      local number = seq % 100
      if seq >= block_end then
        block, block_end, filled = {}, seq - number + 100, 0
        blocks[(seq - number) / 100] = block
      end
      block[filled + 1] = number
      block[filled + 2] = id
      filled = filled + 2
    end
  end
  for its, entries in pairs(blocks) do
    call('HSET', P .. 'log:' .. its, unpack(entries))
    call('ZADD', P .. 'log', its, its)
  end
  for _, kind in ipairs(lined) do
    local list = kind.list
    if list.size then
      local ids = {}
      for i = 2, list.size, 2 do
        ids[i - 1], ids[i] = kind.run, sub(list[i], 16)
      end
      apply('ZADD', P .. 'line:' .. kind.line, list)
      apply('ZADD', P .. 'lined:' .. kind.queue, ids)
      limits().arrive(kind.queue, kind.line, kind.key, kind.limit, kind.priority)
    end
  end
  for name, queue in pairs(queues) do
    local ready, scheduled = queue.ready, queue.scheduled
    if ready.size or scheduled.size or has_lines then
      call('SADD', P .. 'queues', name)
    end
    if ready.size then
      apply('ZADD', P .. 'ready:' .. name, ready)
    end
    if ready.size or queue.is_woken then
      wake(name)
    end
    local soonest = queue.soonest
    if scheduled.size then
      apply('ZADD', P .. 'scheduled:' .. name, scheduled)
      for i = 1, scheduled.size, 2 do
        soonest = math.min(soonest or scheduled[i], scheduled[i])
      end
    end
    if soonest then
      announce_due(name, soonest)
    end
  end
  if has_lines then
    limits().close()
  end
  return refused
end
