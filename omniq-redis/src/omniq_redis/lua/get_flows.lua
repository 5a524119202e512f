--! base
-- ARGV: ids. Gives the fields of each flow, the number of its blocked and that of its scheduled tasks.
local found = {}
for i, id in ipairs(ARGV) do
  found[i] = { call('HGETALL', P .. 'f:' .. id), call('ZCARD', P .. 'fb:' .. id),
    call('ZCOUNT', P .. 'fl:' .. id, string.format('(%.0f', now), '+inf') }
end
return found
