--! base many
-- ARGV: ids; none: all. Gives ids, what is stored of each, and the weights of its keys.
local ids, weights = #ARGV > 0 and ARGV or call('HKEYS', P .. 'limits'), {}
for i, id in ipairs(ids) do
  local queue = string.match(id, '^queue:(.*)$')
  weights[i] = queue and call('HGETALL', P .. 'weights:' .. queue) or {}
end
return { ids, fields(P .. 'limits', ids), weights }
