--! base many wake due announce waiting limited running task endings corrupt flows limits
-- ARGV: flow. Gives 1 if it was live and not cancelled.
local cancelled = flows().cancel(ARGV[1])
conclude()
return cancelled and 1 or 0
