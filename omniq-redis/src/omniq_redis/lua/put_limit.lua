--! base many wake due announce waiting limited running task endings corrupt flows limits schedule
-- ARGV: id, the expected revision or '', its numbers, its text, then key and weight of each key that has one. Gives the new
-- revision, or 0 if it is not the expected one.
local id, expected = ARGV[1], ARGV[2]
local stored = call('HGET', P .. 'limits', id)
-- One that cannot be read counts as absent.
local revision = stored and limits().is_sound(stored) and revision_of(id, 'limits') or 0
if expected ~= '' and tonumber(expected) ~= revision then
  return 0
end
revision = (revision > 0 and revision or revision_floor()) + 1
call('HSET', P .. 'limits', id, limits().sealed(revision, ARGV[3] .. ARGV[4]))
local queue, name, weights = string.match(id, '^queue:(.*)$'), string.match(id, '^name:(.*)$'), {}
for i = 5, #ARGV do
  weights[#weights + 1] = ARGV[i]
end
if queue then
  call('UNLINK', P .. 'weights:' .. queue)
  if #weights > 0 then
    apply('HSET', P .. 'weights:' .. queue, weights)
  end
end
limits().changed(queue, name)
conclude()
return revision
