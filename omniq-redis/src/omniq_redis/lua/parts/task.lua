-- What is stored of a task. Numbers are big-endian; a time is microseconds since the epoch, 0: none.
--   o:ID, the order: sequence 8, created 8, run 8, expires 8, result_ttl 8, max_retries 4, 100 - priority 1,
--     length of queue 2, length of unique + 1 2, queue, unique, body. Written once. A task of a flow has no unique key;
--     what its place in the flow is stands there instead, see member_of.
--   An attempt: delivery 4, attempt 4, started 8, run 8, expires 8, flags 1 (1: asked to stop), length of worker 2, worker.
--   running[ID], while it runs: the attempt, the order's head up to its body, progress.
--   h:ID, what has become of it (absent while nothing has): state 1 (w: it waits, b: blocked, s, f, c), finished 8, the
--     latest attempt, lengths of error 4 and progress 4, error, progress, result. What is called its error is two things:
--     the error's own text, which has no line's end in it, and, if there is one, a line's end and the attempt log.
-- Those that failed or were cancelled stand once more, by their sequence numbers: in this order they are listed.
-- So do those that are blocked, which stand nowhere else.
local IN_ORDER = { f = 'order:failed:', c = 'order:cancelled:', b = 'blocked:' }
local CANCEL_REQUESTED = '\1'

local function free(unique, id)
  if call('HGET', P .. 'unique', unique) == id then
    call('HDEL', P .. 'unique', unique)
  end
end

-- What follows in flows from the end of a task; the part of this name sets it, wherever tasks end.
local flows

-- Reads the place of a task in its flow, which begins with a byte that no text has: flags 1 (1: it is behind a gate, 2: a
-- delay counts from the opening of that), gate 4, delay 8, length of the flow's id 2, the id, then 4 for each gate that it
-- feeds: twice its number, and 1 if that needs success. Tasks of one kind have one such word, which is read once.
local members = {}
local function member_of(word)
  local member = members[word]
  if member == nil then
    member = false
    if #word >= 16 then
      local flags, behind, delay, length = struct.unpack('>BI4I8H', word, 2)
      if #word >= 16 + length and (#word - 16 - length) % 4 == 0 then
        member = { flow = string.sub(word, 17, 16 + length), feeds = {} }
        member.behind = flags % 2 == 1 and behind or nil
        member.delay = flags >= 2 and delay or nil
        for at = 17 + length, #word, 4 do
          local feed = struct.unpack('>I4', word, at)
          member.feeds[#member.feeds + 1] = { gate = math.floor(feed / 2), needs_success = feed % 2 == 1 }
        end
      end
    end
    members[word] = member
  end
  return member or nil
end

-- Reads the head of an order, wherever it begins.
local function head_of(text, at)
  local ttl, retries, place, queue_length, unique_length = struct.unpack('>I8I4BHH', text, at + 32)
  local head = { ttl = ttl, max_retries = retries, place = place, seq = string.sub(text, at + 2, at + 7) }
  local from = at + 49
  head.queue = string.sub(text, from, from + queue_length - 1)
  from = from + queue_length
  if unique_length > 0 then
    local word = string.sub(text, from, from + unique_length - 2)
    if string.byte(word) == 255 then
      head.member = member_of(word)
    else
      head.unique = word
    end
    from = from + unique_length - 1
  end
  head.stop = from
  return head
end

-- Whoever can write to the server can write anything: these tell whether a record has all that the scripts read of it.
-- The rest is looked at by the clients.
local function has_head(text, at)
  if #text < at + 48 then
    return false
  end
  local queue_length, unique_length = struct.unpack('>HH', text, at + 45)
  return #text >= at + 48 + queue_length + math.max(unique_length - 1, 0)
end

local function is_past(past)
  if #past < 52 or not string.find(past, '^[wbsfc]') then
    return false
  end
  local at = 45 + struct.unpack('>H', past, 43)
  if #past < at + 7 then
    return false
  end
  local err, progress = struct.unpack('>I4I4', past, at)
  return #past >= at + 7 + err + progress
end

local function is_running(record)
  return #record >= 35 and has_head(record, 36 + struct.unpack('>H', record, 34))
end

local function is_held(record, delivery)
  return record and is_running(record) and struct.unpack('>I4', record) == delivery
end

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

-- Gives the past of a task, nil if it has none, and false if it cannot be read.
local function past_of_task(id)
  local past = redis.pcall('GET', P .. 'h:' .. id)
  if not past then
    return nil
  end
  return type(past) == 'string' and is_past(past) and past
end

-- The place of a waiting task in its queue: priority, the time at which it is ready, sequence, id.
local function member(head, run, id)
  return struct.pack('>BI8', head.place, run) .. head.seq .. id
end

local function run_of(order, past)
  if past then
    return (struct.unpack('>I8', past, 26))
  end
  return (struct.unpack('>I8', order, 17))
end

-- Gives the sequence number of a task as a score.
local function score_of(head)
  return (struct.unpack('>I8', '\0\0' .. head.seq))
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

-- Gives until when a task that ends is kept. Those of a flow are kept as long as that.
local function kept_until(head)
  if head.member and flows().is_there(head.member.flow) then
    return LATEST
  end
  return now + head.ttl
end

local function expires_of(order, past)
  if past then
    return string.sub(past, 34, 41)
  end
  return string.sub(order, 25, 32)
end

-- Gives the end of the attempt in a running record, or in a past without its first nine bytes.
local function end_of_attempt(text, from)
  return from + 34 + struct.unpack('>H', text, from + 33)
end

local function is_cancel_requested(record)
  return string.sub(record, 33, 33) == CANCEL_REQUESTED
end

-- Gives an attempt with another number, run and expires, and not asked to stop.
local function renewed(attempt, number, run, expires)
  return string.sub(attempt, 1, 4) .. struct.pack('>I4', number) .. string.sub(attempt, 9, 16)
    .. struct.pack('>I8', run) .. expires .. '\0' .. string.sub(attempt, 34)
end

-- Counts the running tasks of a queue. What is no number is counted from 0 again.
local function count_running(queue, change)
  local counted = redis.pcall('HINCRBY', P .. 'counts', queue, change)
  if type(counted) == 'table' then
    call('HSET', P .. 'counts', queue, math.max(change, 0))
  end
end

local function past_of(state, finished, attempt, err, progress, result)
  return state .. finished .. attempt .. struct.pack('>I4I4', #err, #progress) .. err .. progress .. result
end

local function split(past)
  local stop = end_of_attempt(past, 10)
  local err, progress = struct.unpack('>I4I4', past, stop + 1)
  local at = stop + 9
  return string.sub(past, 10, stop),
    string.sub(past, at, at + err - 1),
    string.sub(past, at + err, at + err + progress - 1),
    string.sub(past, at + err + progress)
end

-- Gives an error's own text, and the attempt log behind it with the line's end before it.
local function split_error(err)
  local at = string.find(err, '\n', 1, true)
  if at then
    return string.sub(err, 1, at - 1), string.sub(err, at)
  end
  return err, ''
end

-- Gives the error of the attempt before the one that runs.
local function latest_error(id)
  local past = past_of_task(id)
  if past then
    local _, err = split(past)
    return err
  end
  return ''
end
