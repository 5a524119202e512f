--! base many wake due announce waiting limited running task endings corrupt flows limits
-- ARGV: how many tasks at most. Gives how many were moved.
local moved = flows().settle(tonumber(ARGV[1]))
conclude()
return moved
