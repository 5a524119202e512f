-- Tells those who wait for the end of these tasks; tells whether there are any.
-- is_there: whether it is known that there are some who wait, for whatever tasks.
local function announce(ids, is_there)
  if #ids == 0 or not (is_there or call_any('EXISTS', P .. 'waiting') == 1) then
    return false
  end
  local told = false
  local waiting = fields(P .. 'waiting', ids)
  for i = 1, #ids do
    if waiting[i] then
      told = true
      call_any('HDEL', P .. 'waiting', ids[i])
      for channel in string.gmatch(waiting[i], '%S+') do
        call_any('PUBLISH', P .. 'to:' .. channel, 'e' .. ids[i])
      end
    end
  end
  return told
end
