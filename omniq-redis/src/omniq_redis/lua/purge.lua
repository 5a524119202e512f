--! base many wake due announce waiting running task endings corrupt flows promote remove
-- ARGV: queue, limit, the states to remove. Gives how many were removed, and how many are left.
local queue, limit = ARGV[1], tonumber(ARGV[2])
promote(queue)
local removed, left = 0, 0
for at = 3, #ARGV do
  local key, letter = P .. ARGV[at] .. ':' .. queue, string.sub(ARGV[at], 1, 1)
  local waits = ARGV[at] == 'ready' or ARGV[at] == 'scheduled'
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
close_flows()
for at = 3, #ARGV do
  left = left + call('ZCARD', P .. ARGV[at] .. ':' .. queue)
end
return { removed, left }
