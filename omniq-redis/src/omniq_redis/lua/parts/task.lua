-- What is stored of a task. Numbers are big-endian; a time is microseconds since the epoch, 0: none.
--   o:ID, the order: sequence 8, created 8, run 8, expires 8, result_ttl 8, max_retries 4, 100 - priority 1,
--     length of queue 2, length of unique + 1 2, queue, unique, body. Written once. A task of a flow has no unique key;
--     what its place in the flow is stands there instead, see member_of. So does what stands for a key or a named limit,
--     see limited_of.
--   An attempt: delivery 4, attempt 4, started 8, run 8, expires 8, flags 1 (1: asked to stop), length of worker 2, worker.
--   running[ID], while it runs: the attempt, the order's head up to its body, progress.
--   h:ID, what has become of it (absent while nothing has): state 1 (w: it waits, b: blocked, s, f, c), finished 8, the
--     latest attempt, lengths of error 4 and progress 4, error, progress, result. What is called its error is two things:
--     the error's own text, which has no line's end in it, and, if there is one, a line's end and the attempt log.
-- Those that failed or were cancelled stand once more, by their sequence numbers: in this order they are listed.
-- So do those that are blocked, which stand nowhere else.
local IN_ORDER = { f = 'order:failed:', c = 'order:cancelled:', b = 'blocked:' }

-- What follows in flows and at limits from the end of a task; the parts of these names set them, wherever tasks end.
local flows, limits

-- Gives the head of an order, or false and whether there is one that cannot be read.
local function order_of(id)
  local order = redis.pcall('GETRANGE', P .. 'o:' .. id, 0, 511)
  if type(order) == 'table' or (order ~= '' and #order < 49) then
    return false, true
  elseif order == '' then
    return false, call('EXISTS', P .. 'o:' .. id) == 1
  end
  local queue_length, unique_length = struct.unpack('>HH', order, 46)
  if 49 + queue_length + unique_length > 512 then
    order = call('GETRANGE', P .. 'o:' .. id, 0, 49 + queue_length + unique_length)
  end
  if has_head(order, 1) then
    return order, true
  end
  return false, true
end

local function run_of(order, past)
  if past then
    return (struct.unpack('>I8', past, 26))
  end
  return (struct.unpack('>I8', order, 17))
end

-- Has a task that ended be listed with those of its state, the letter of which is given, or no longer.
local function list_ended(letter, id, head)
  call('ZADD', P .. IN_ORDER[letter] .. head.queue, score_of(head), id)
end

local function unlist_ended(letter, id, queue)
  if IN_ORDER[letter] then
    call('ZREM', P .. IN_ORDER[letter] .. queue, id)
  end
end

-- Tells whether a task waits for others: it is behind a gate, and nothing has become of it or it does so again.
local function is_blocked(past, head)
  return head.member ~= nil and head.member.behind ~= nil and (not past or string.sub(past, 1, 1) == 'b')
end

-- Tells whether a task that has not ended has its unique key, if it has one: a debounced one only until it is started.
local function holds_key(past, head)
  return head.unique ~= nil and not (head.first and past and struct.unpack('>I4', past, 10) > 0)
end

-- Puts a task among those that are ready, and tells of its queue whether one who waits for work is to be woken.
local function make_ready(id, head, run)
  if head.line then
    limits().add(id, head, run)
    return false
  end
  call('ZADD', P .. 'ready:' .. head.queue, 0, member(head, run, id))
  return true
end

-- Puts one among those that are scheduled.
local function make_scheduled(id, head, run)
  call('ZADD', P .. 'scheduled:' .. head.queue, run, member(head, run, id))
  if head.line then
    limits().lane(head.queue)
  end
end

-- Gives until when a task that ends is kept. Those of a flow are kept as long as that.
local function kept_until(head)
  if head.member and flows().is_there(head.member.flow) then
    return LATEST
  end
  return now + head.ttl
end
