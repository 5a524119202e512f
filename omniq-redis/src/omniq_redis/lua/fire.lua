--! base many wake due store schedule
-- ARGV: id, next_run, text, the expected revision, then the tasks as in enqueue. Gives 1, or 0 if nothing was stored.
local revision = revision_of(ARGV[1])
if revision == 0 or revision ~= tonumber(ARGV[4]) then
  return 0
end
if #ARGV > 4 then
  store(5)
end
keep_schedule(ARGV[1], ARGV[2], ARGV[3])
return 1
