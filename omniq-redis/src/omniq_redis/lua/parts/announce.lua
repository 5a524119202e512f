-- Tells those who wait for the end of these tasks.
local function announce(ids)
  if #ids == 0 or call('EXISTS', P .. 'waiting') == 0 then
    return
  end
  local waiting = fields(P .. 'waiting', ids)
  for i = 1, #ids do
    if waiting[i] then
      call('HDEL', P .. 'waiting', ids[i])
      for channel in string.gmatch(waiting[i], '%S+') do
        call('PUBLISH', P .. 'to:' .. channel, 'e' .. ids[i])
      end
    end
  end
end
