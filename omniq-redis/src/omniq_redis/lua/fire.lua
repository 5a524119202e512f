--! base rare_from many wake due announce waiting limited running task endings corrupt flows limits rare_to of_rare many wake due limited store schedule
-- ARGV: id, next_run, text, the expected revision, then the tasks as in enqueue. Gives what enqueue gives, or nil if nothing was stored.
local revision = revision_of(ARGV[1])
if revision == 0 or revision ~= tonumber(ARGV[4]) then
  return false
end
local refused = #ARGV > 4 and store(5) or {}
keep_schedule(ARGV[1], ARGV[2], ARGV[3])
return refused
