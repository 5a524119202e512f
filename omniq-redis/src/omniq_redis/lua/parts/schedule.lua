-- A schedule is stored as its revision, 8 bytes, and a text that only clients read. The revision of what is not there is
-- 0, and that of what cannot be read, so that another can be stored in its place.
-- The same is true of a limit. key: where it stands, if it is none of a schedule.
local function revision_of(id, key)
  local stored = call('HGET', P .. (key or 'schedules'), id)
  local revision = stored and #stored >= 8 and struct.unpack('>I8', stored) or 0
  return revision < 2 ^ 53 and revision or 0
end

-- The largest revision of anything that was deleted: new ones begin above it.
local function revision_floor()
  return tonumber(call('HGET', P .. 'meta', 'revision_floor') or 0) or 0
end

local function raise_revision_floor(revision)
  if revision > revision_floor() then
    call('HSET', P .. 'meta', 'revision_floor', string.format('%.0f', revision))
  end
end

-- next_run: in microseconds, or '' if it is not to fire.
local function keep_schedule(id, next_run, text)
  local revision = revision_of(id)
  revision = (revision > 0 and revision or revision_floor()) + 1
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
