--! base many wake due announce waiting limited running task endings corrupt flows limits
-- ARGV: flow. Gives how many of its tasks are retried, in this step or in those to come.
local found = flows().retry_flow(ARGV[1])
conclude()
return found
