--! base many wake due announce waiting limited running task endings corrupt flows limits schedule
-- ARGV: id. Gives 1, or 0 if it was not there.
local id, stored = ARGV[1], call('HGET', P .. 'limits', ARGV[1])
local revision = stored and limits().is_sound(stored) and revision_of(id, 'limits') or 0
if call('HDEL', P .. 'limits', id) == 0 then
  return 0
end
raise_revision_floor(revision)
local queue, name = string.match(id, '^queue:(.*)$'), string.match(id, '^name:(.*)$')
if queue then
  call('UNLINK', P .. 'weights:' .. queue)
end
limits().changed(queue, name)
conclude()
return 1
