--! base many wake due announce waiting limited running task endings corrupt flows limits recount
-- Puts tasks back where they are to be found, as a key of another type stood in the place of one of ours and was put aside:
-- a queue, say, or all that ran. Goes on where the last call stopped, the latest tasks first. Gives 1 if there are more, 2
-- if these were the last, 0 if there was nothing to do.
local STEP = 50
local ENDED = { s = 'succeeded:', f = 'failed:', c = 'cancelled:' }
local before = call('GET', P .. 'restoring')
if not before then
  if call('EXISTS', P .. 'recount') == 1 then
    recount()
    conclude()
  end
  return 0
end
if not tonumber((string.gsub(before, '^%(', ''))) then
  before = '+inf'
end
-- Whether a task ran is not known. Of who may hold it still, no delivery is as large as the seconds since 2023.
local floor = math.floor(now / 1000000) - 1700000000

local function put_back(id, order, past, head)
  local attempt, err, progress, result = string.rep('\0', 16) .. string.sub(order, 17, 32) .. '\0\0\0', '', '', ''
  if past then
    attempt, err, progress, result = split(past)
  end
  attempt = struct.pack('>I4', math.max(floor, (struct.unpack('>I4', attempt)))) .. string.sub(attempt, 5)
  call('SET', P .. 'h:' .. id, past_of('w', NEVER, attempt, err, progress, result))
  local run = run_of(order, past)
  if run > now then
    make_scheduled(id, head, run)
  elseif make_ready(id, head, run) then
    wake(head.queue)
  end
end

local function restore(id, order, past)
  local head = head_of(order, 1)
  local letter = past and string.sub(past, 1, 1)
  local ended = ENDED[letter]
  call('SADD', P .. 'queues', head.queue)
  if head.member then
    flows().restore(id, order, past, head)
  end
  if is_blocked(past, head) then
    return
  elseif ended then
    if not call('ZSCORE', P .. ended .. head.queue, id) then
      call('ZADD', P .. ended .. head.queue, kept_until(head), id)
    end
    if IN_ORDER[letter] then
      list_ended(letter, id, head)
    end
    return
  end
  local runs = call('HEXISTS', P .. 'running', id) == 1
  if holds_key(past, head) and not (head.first and runs) then
    call('HSETNX', P .. 'unique', head.unique, id)
  end
  if not runs then
    local expires8 = expires_of(order, past)
    if expires8 ~= NEVER then
      call('ZADD', P .. 'expiring', (struct.unpack('>I8', expires8)), id)
    end
    local key = waits_in(id, order, past, head)
    if not key then
      put_back(id, order, past, head)
    elseif head.line and key == P .. 'line:' .. head.line then
      limits().add(id, head, run_of(order, past))
    end
    if head.line then
      limits().restore(head)
    end
  end
end

local chunks = call('ZREVRANGEBYSCORE', P .. 'log', before, '-inf', 'WITHSCORES', 'LIMIT', 0, STEP)
for at = 1, #chunks, 2 do
  for _, id in ipairs(call('HVALS', P .. 'log:' .. chunks[at])) do
    local order, past = order_of(id), past_of_task(id)
    if order and past ~= false then
      restore(id, order, past)
    end
  end
end
conclude()
if #chunks == 2 * STEP then
  call('SET', P .. 'restoring', '(' .. chunks[#chunks])
  return 1
end
call('UNLINK', P .. 'restoring')
recount()
conclude()
return 2
