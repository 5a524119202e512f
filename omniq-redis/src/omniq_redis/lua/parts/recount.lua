-- Counts anew how many tasks of each queue, key and named limit run, and wakes what the old counts may have held back.
local function recount()
  local found = { counts = {}, slots = {} }
  local function add(key, field)
    found[key][field] = (found[key][field] or 0) + 1
  end
  for _, record in ipairs(call('HVALS', P .. 'running')) do
    if is_running(record) then
      local head = head_of(record, end_of_attempt(record, 1) + 1)
      add('counts', head.queue)
      for _, scope in ipairs(head.line and limits().scopes_of(head) or {}) do
        add('slots', scope)
      end
    end
  end
  call('UNLINK', P .. 'recount', P .. 'counts', P .. 'slots')
  for key, fields_ in pairs(found) do
    local words = {}
    for field, number in pairs(fields_) do
      words[#words + 1], words[#words + 2] = field, number
    end
    if #words > 0 then
      apply('HSET', P .. key, words)
    end
  end
  for _, id in ipairs(call('HKEYS', P .. 'limits')) do
    local queue, name = string.match(id, '^queue:(.*)$'), string.match(id, '^name:(.*)$')
    if queue or name then
      limits().changed(queue, name)
    end
  end
end
