--! base many wake due announce waiting running task endings corrupt flows
-- ARGV: how many tasks at most. Gives how many were moved.
return flows().settle(tonumber(ARGV[1]))
