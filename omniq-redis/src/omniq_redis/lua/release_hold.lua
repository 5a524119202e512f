--! base many wake due announce waiting limited running task endings corrupt flows limits
-- ARGV: flow, gate. Gives 1 if the gate was held.
local released = flows().release_hold(ARGV[1], tonumber(ARGV[2]))
conclude()
return released and 1 or 0
