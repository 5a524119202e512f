  return { end_waiting = end_waiting, end_corrupt = end_corrupt, conclude = conclude, flows = flows, limits = limits,
    head_of = head_of, member_of = member_of, kept_until = kept_until, free = free, supersede = supersede }
end

local made_rare
local function rare()
  made_rare = made_rare or make_rare()
  return made_rare
end
