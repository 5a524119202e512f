--! base many wake due announce waiting running task endings corrupt flows
-- ARGV: flow. Gives how many of its tasks are retried, in this step or in those to come.
local found = flows().retry_flow(ARGV[1])
close_flows()
return found
