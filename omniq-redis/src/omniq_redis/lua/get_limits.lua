--! base many
-- ARGV: ids; none: all. Gives ids, and what is stored of each.
local ids = #ARGV > 0 and ARGV or call('HKEYS', P .. 'limits')
return { ids, fields(P .. 'limits', ids) }
