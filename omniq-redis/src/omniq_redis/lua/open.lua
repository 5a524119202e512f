--! base
-- ARGV: the layout's version, a new epoch, the epoch that was known before ('': none). Gives the version that the store
-- has, its epoch, and 1 if the store that was known has been lost.
local meta = P .. 'meta'
local layout, epoch = call('HGET', meta, 'layout'), call('HGET', meta, 'epoch')
if not layout then
  layout, epoch = ARGV[1], ARGV[2]
  call('HSET', meta, 'layout', layout, 'epoch', epoch, 'born', string.format('%.0f', now))
end
local lost = ARGV[3] ~= '' and ARGV[3] ~= epoch
if lost and call('HGET', meta, 'lost') ~= ARGV[3] then
  call('HSET', meta, 'lost', ARGV[3], 'lost_at', string.format('%.0f', now))
end
return { layout, epoch, lost and 1 or 0 }
