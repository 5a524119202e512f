--! base many wake due announce waiting limited running task endings corrupt flows limits
-- ARGV: queue and line of each of some lines. Gives the first task of each of them that has any and that no claim finds.
-- Entries of tasks that are not there are passed over, up to a bound.
local MOST = 1000
local found = {}
for at = 1, #ARGV, 2 do
  local queue, line = ARGV[at], ARGV[at + 1]
  if not limits().stands(queue, line) then
    for _, place in ipairs(call('ZRANGE', P .. 'line:' .. line, 0, MOST - 1)) do
      local id = string.sub(place, 16)
      if call_any('EXISTS', P .. 'o:' .. id) == 1 then
        found[#found + 1] = id
        break
      end
    end
  end
end
return found
