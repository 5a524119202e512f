--! base many wake due announce waiting running task endings corrupt flows
-- ARGV: flow. Gives 1 if it was live and not cancelled.
local cancelled = flows().cancel(ARGV[1])
close_flows()
return cancelled and 1 or 0
