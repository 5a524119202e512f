--! base many
-- ARGV: ids; none: all. Gives what is stored of those that are there.
if #ARGV == 0 then
  return call('HVALS', P .. 'schedules')
end
return fields(P .. 'schedules', ARGV)
