--! base schedule
-- ARGV: id, next_run, text, the expected revision or ''. Gives the new revision, or 0 if it is not the expected one.
local expected = ARGV[4]
if expected ~= '' and tonumber(expected) ~= revision_of(ARGV[1]) then
  return 0
end
return keep_schedule(ARGV[1], ARGV[2], ARGV[3])
