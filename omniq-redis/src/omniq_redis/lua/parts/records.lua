-- Gives all that is stored of tasks: order, past, running record and lease for each.
local function records(ids)
  local orders, pasts, running = strings('o:', ids), strings('h:', ids), fields(P .. 'running', ids)
  local found = { now }
  for i = 1, #ids do
    local at = 4 * i - 2
    found[at] = orders[i]
    if not orders[i] and call('EXISTS', P .. 'o:' .. ids[i]) == 1 then
      found[at] = ''  -- of another type: there, and not to be read
    end
    found[at + 1] = pasts[i]
    found[at + 2] = running[i]
    found[at + 3] = running[i] and call('ZSCORE', P .. 'leased', ids[i])
  end
  return found
end
