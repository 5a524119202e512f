-- Makes the scheduled tasks of a queue ready whose time has come.
local function promote(queue)
  local key = P .. 'scheduled:' .. queue
  local due = call('ZRANGEBYSCORE', key, '-inf', now, 'LIMIT', 0, 1000)
  if #due > 0 then
    local ready = {}
    for i = 1, #due do
      ready[2 * i - 1] = 0
      ready[2 * i] = due[i]
    end
    apply('ZADD', P .. 'ready:' .. queue, ready)
    call_any('ZREMRANGEBYRANK', key, 0, #due - 1)
  end
end
