-- What finish needs of every task, beside the parts named waiting and limited.
local CANCEL_REQUESTED = '\1'

local function free(unique, id)
  if call('HGET', P .. 'unique', unique) == id then
    call('HDEL', P .. 'unique', unique)
  end
end

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
  local from = at + 49 + queue_length
  -- All fields at once: a table that grows is made anew.
  local head = { ttl = ttl, max_retries = retries, place = place, seq = string.sub(text, at + 2, at + 7),
    queue = string.sub(text, at + 49, from - 1), stop = from }
  if unique_length > 0 then
    local word = string.sub(text, from, from + unique_length - 2)
    local mark = string.byte(word)
    if mark == 254 then
      local its = limited_of(word)
      head.line, head.key, head.limit, head.first = its.line, its.key, its.limit, its.first
      word, mark = its.word, its.word and string.byte(its.word)
    end
    if mark == 255 then
      head.member = member_of(word)
    else
      head.unique = word
    end
    head.stop = from + unique_length - 1
  end
  return head
end

local function is_running(record)
  return #record >= 35 and has_head(record, 36 + struct.unpack('>H', record, 34))
end

local function is_held(record, delivery)
  return record and is_running(record) and struct.unpack('>I4', record) == delivery
end

-- The place of a waiting task in its queue: priority, the time at which it is ready, sequence, id.
local function member(head, run, id)
  return struct.pack('>BI8', head.place, run) .. head.seq .. id
end

-- Gives the sequence number of a task as a score.
local function score_of(head)
  return (struct.unpack('>I8', '\0\0' .. head.seq))
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

-- Gives an error's own text, and the attempt log behind it with the line's end before it.
local function split_error(err)
  local at = string.find(err, '\n', 1, true)
  if at then
    return string.sub(err, 1, at - 1), string.sub(err, at)
  end
  return err, ''
end

-- Gives the past of a task, nil if it has none, and false if it cannot be read.
local function past_of_task(id)
  local past = redis.pcall('GET', P .. 'h:' .. id)
  if not past then
    return nil
  end
  return type(past) == 'string' and is_past(past) and past
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
  local past = past_of_task(id)
  if past then
    local _, err = split(past)
    return err
  end
  return ''
end
