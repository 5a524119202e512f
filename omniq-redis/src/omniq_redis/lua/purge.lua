--! base many wake due announce waiting limited running task endings corrupt flows limits promote remove
-- ARGV: queue, limit, the states to remove. Gives how many were removed, and how many are left.
local queue, limit = ARGV[1], tonumber(ARGV[2])
local lane = call('HGET', P .. 'lanes', queue)
if lane and #lane > 1 then
  limits().promote(queue)
else
  promote(queue)
end
local removed, left = 0, 0

-- Removes ready tasks that stand in lines.
local function purge_lines()
  for _, id in ipairs(call('ZRANGE', P .. 'lined:' .. queue, 0, limit - removed - 1)) do
    local order = order_of(id)
    if order then
      local head = head_of(order, 1)
      local key, place = waits_in(id, order, past_of_task(id) or nil, head)
      if head.line and key == P .. 'line:' .. head.line then
        take_out(key, place, id, head)
        remove(id, order, head, nil)
        removed = removed + 1
      end
    end
    call('ZREM', P .. 'lined:' .. queue, id)
  end
end

for at = 3, #ARGV do
  local key = P .. ARGV[at] .. ':' .. queue
  local waits = ARGV[at] == 'ready' or ARGV[at] == 'scheduled'
  local letter = waits and 'w' or string.sub(ARGV[at], 1, 1)  -- succeeded begins as scheduled does
  local members = {}
  if removed < limit then
    members = call('ZRANGE', key, 0, limit - removed - 1)
  end
  for _, place in ipairs(members) do
    local id = waits and string.sub(place, 16) or place
    local order = order_of(id)
    if order then
      remove(id, order, head_of(order, 1), letter)
      removed = removed + 1
    end
    unlist_ended(letter, id, queue)
  end
  if #members > 0 then
    call('ZREMRANGEBYRANK', key, 0, #members - 1)
  end
end
for at = 3, #ARGV do
  if ARGV[at] == 'ready' and removed < limit then
    purge_lines()
  end
end
conclude()
for at = 3, #ARGV do
  left = left + call('ZCARD', P .. ARGV[at] .. ':' .. queue)
  if ARGV[at] == 'ready' then
    left = left + call('ZCARD', P .. 'lined:' .. queue)
  end
end
return { removed, left }
