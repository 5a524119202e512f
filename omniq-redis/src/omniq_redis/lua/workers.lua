--! base
-- Gives name and time of each worker, then id and worker of each running task, then name and own words of each worker.
local found, owners = {}, {}
local workers = call('HGETALL', P .. 'workers')
for i = 1, #workers, 2 do
  if #workers[i + 1] == 16 then
    local seen, gone = struct.unpack('>I8I8', workers[i + 1])
    if gone > now then
      found[#found + 1] = workers[i]
      found[#found + 1] = seen
    end
  end
end
local running = call('HGETALL', P .. 'running')
for i = 1, #running, 2 do
  if #running[i + 1] >= 35 then
    owners[#owners + 1] = running[i]
    owners[#owners + 1] = string.sub(running[i + 1], 36, 35 + struct.unpack('>H', running[i + 1], 34))
  end
end
return { found, owners, call('HGETALL', P .. 'about') }
