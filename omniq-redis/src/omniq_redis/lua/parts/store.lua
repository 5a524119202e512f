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
    if string.byte(word) == 255 then
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
  kind.run = run
  kind.place = string.char(place) .. struct.pack('>I8', run)
  kind.static = now8 .. run8 .. expires8 .. string.sub(text, 18)
  if kind.word then
    kind.flags, kind.expires8, kind.rest, kind.queue_length = flags, expires8, string.sub(text, 18), queue_length
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

local function store(first)
  local count = (#ARGV - first + 1) / 3
  local seq = call('INCRBY', P .. 'seq', count) - count
  local queues, refused = {}, {}
  local blocks, block, number, filled = {}, {}, -1, 0
  local orders = P .. 'o:'
  for at = first, #ARGV, 3 do
    local id, text = ARGV[at], ARGV[at + 1]
    local kind = kind_for(text)
    if not kind.list then
      local queue = of(queues, kind.queue)
      kind.list = kind.run > now and queue.scheduled or queue.ready
      kind.score = kind.run > now and kind.run or 0
    end
    seq = seq + 1
    local holder = kind.unique and call('HGET', P .. 'unique', kind.unique)
    if holder and holder ~= id and call('EXISTS', orders .. id) == 0 and call('EXISTS', orders .. holder) == 1 then
      refused[#refused + 1] = (at - first) / 3
      refused[#refused + 1] = holder
    else
      local seq8 = struct.pack('>I8', seq)
      if call('SET', orders .. id, seq8 .. kind.static .. ARGV[at + 2], 'NX') then
        if kind.join then
          kind.join(id, seq, seq8)
        end
        if not kind.is_blocked then
          local list, size = kind.list, kind.list.size or 0
          list[size + 1] = kind.score
          list[size + 2] = kind.place .. string.sub(seq8, 3) .. id
          list.size = size + 2
        end
        local its = math.floor(seq / 100)
        if its ~= number then
          block, number, filled = {}, its, 0
          blocks[its] = block
        end
        block[filled + 1] = seq % 100
        block[filled + 2] = id
        filled = filled + 2
        if kind.unique then
          call('HSET', P .. 'unique', kind.unique, id)
        end
        if kind.expires and not kind.is_blocked then
          call('ZADD', P .. 'expiring', kind.expires, id)
        end
      else
        refused[#refused + 1] = (at - first) / 3
        refused[#refused + 1] = id
      end
    end
  end
  for its, entries in pairs(blocks) do
    call('HSET', P .. 'log:' .. its, unpack(entries))
    call('ZADD', P .. 'log', its, its)
  end
  for name, queue in pairs(queues) do
    local ready, scheduled = queue.ready, queue.scheduled
    if ready.size or scheduled.size then
      call('SADD', P .. 'queues', name)
    end
    if ready.size then
      apply('ZADD', P .. 'ready:' .. name, ready)
      wake(name)
    end
    if scheduled.size then
      apply('ZADD', P .. 'scheduled:' .. name, scheduled)
      local soonest = scheduled[1]
      for i = 3, scheduled.size, 2 do
        soonest = math.min(soonest, scheduled[i])
      end
      announce_due(name, soonest)
    end
  end
  return refused
end
