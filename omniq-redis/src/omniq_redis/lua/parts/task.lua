-- What is stored of a task. Numbers are big-endian; a time is microseconds since the epoch, 0: none.
--   o:ID, the order: sequence 8, created 8, run 8, expires 8, result_ttl 8, max_retries 4, 100 - priority 1,
--     length of queue 2, length of unique + 1 2, queue, unique, body. Written once.
--   An attempt: delivery 4, attempt 4, started 8, run 8, expires 8, flags 1 (1: asked to stop), length of worker 2, worker.
--   running[ID], while it runs: the attempt, the order's head up to its body, progress.
--   h:ID, what has become of it (absent while nothing has): state 1, finished 8, the latest attempt, lengths of error 4
--     and progress 4, error, progress, result.
local CANCEL_REQUESTED = '\1'

local function free(unique, id)
  if call('HGET', P .. 'unique', unique) == id then
    call('HDEL', P .. 'unique', unique)
  end
end

-- Reads the head of an order, wherever it begins.
local function head_of(text, at)
  local ttl, retries, place, queue_length, unique_length = struct.unpack('>I8I4BHH', text, at + 32)
  local head = { ttl = ttl, max_retries = retries, place = place, seq = string.sub(text, at + 2, at + 7) }
  local from = at + 49
  head.queue = string.sub(text, from, from + queue_length - 1)
  from = from + queue_length
  if unique_length > 0 then
    head.unique = string.sub(text, from, from + unique_length - 2)
    from = from + unique_length - 1
  end
  head.stop = from
  return head
end

local function order_of(id)
  local order = call('GETRANGE', P .. 'o:' .. id, 0, 511)
  if order == '' then
    return false
  end
  local queue_length, unique_length = struct.unpack('>HH', order, 46)
  if 49 + queue_length + unique_length > 512 then
    order = call('GETRANGE', P .. 'o:' .. id, 0, 49 + queue_length + unique_length)
  end
  return order
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

-- Gives the error of the attempt before the one that runs.
local function latest_error(id)
  local past = call('GET', P .. 'h:' .. id)
  if past then
    local _, err = split(past)
    return err
  end
  return ''
end
