  return { end_waiting = end_waiting, end_corrupt = end_corrupt, close_flows = close_flows }
end

local made_rare
local function rare()
  made_rare = made_rare or make_rare()
  return made_rare
end

function flows()
  rare()  -- which sets what is called here
  return flows()
end
