--! base waiting limited running
-- ARGV: id, delivery and the note of each.
for at = 1, #ARGV, 3 do
  local record = call('HGET', P .. 'running', ARGV[at])
  if is_held(record, tonumber(ARGV[at + 1])) then
    local stop = head_of(record, end_of_attempt(record, 1) + 1).stop
    call('HSET', P .. 'running', ARGV[at], string.sub(record, 1, stop - 1) .. ARGV[at + 2])
  end
end
