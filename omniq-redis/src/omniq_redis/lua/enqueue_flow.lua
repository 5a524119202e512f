--! base many wake due announce waiting limited running task endings corrupt flows limits store build
-- ARGV: the flow's id, 1 if it is given, unique (behind a k, or ''), hold_ttl, result_ttl, gates, then id, head, body of
-- each task. Gives what build gives.
local given
if ARGV[2] == '1' then
  given = { unique = ARGV[3], hold_ttl = tonumber(ARGV[4]), ttl = tonumber(ARGV[5]), gates = ARGV[6] }
end
return build(ARGV[1], 7, given)
