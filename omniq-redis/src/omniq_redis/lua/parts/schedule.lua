-- A schedule is stored as its revision, 8 bytes, and a text that only clients read.
local function revision_of(id)
  local stored = call('HGET', P .. 'schedules', id)
  return stored and struct.unpack('>I8', stored) or 0
end

-- next_run: in microseconds, or '' if it is not to fire.
local function keep_schedule(id, next_run, text)
  local revision = revision_of(id) + 1
  call('HSET', P .. 'schedules', id, struct.pack('>I8', revision) .. text)
  if next_run == '' then
    call('ZREM', P .. 'schedules:due', id)
  else
    call('ZADD', P .. 'schedules:due', next_run, id)
    if call('ZRANK', P .. 'schedules:due', id) == 0 then
      call('PUBLISH', P .. 'due', next_run)
    end
  end
  return revision
end
