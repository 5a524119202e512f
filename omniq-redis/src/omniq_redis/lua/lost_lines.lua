--! base many wake due announce waiting limited running task endings corrupt flows limits
-- ARGV: queue and line of each of some lines. Gives the first task of each of them that has any and that no claim finds.
local found = {}
for at = 1, #ARGV, 2 do
  local queue, id = ARGV[at], ARGV[at + 1]
  local first = call('ZRANGE', P .. 'line:' .. id, 0, 0)[1]
  if first and not limits().stands(queue, id) then
    found[#found + 1] = string.sub(first, 16)
  end
end
return found
