--! base many wake due announce waiting limited running task endings corrupt flows limits remove
-- ARGV: ids. Gives '1' for each task that was removed, '0' for the others.
local ENDED = { s = 'succeeded:', f = 'failed:', c = 'cancelled:' }
local answers = {}
for i, id in ipairs(ARGV) do
  answers[i] = '0'
  local order, there = order_of(id)
  local record, past = call('HGET', P .. 'running', id), past_of_task(id)
  if not there or (order and record and is_running(record)) then
    answers[i] = '0'
  elseif not order or record or past == false then
    -- What cannot be read. Its places in queues and orders go when they are come upon and it is not there.
    if record then
      call('HDEL', P .. 'running', id)
      call('ZREM', P .. 'leased', id)
      if order then
        count_running(head_of(order, 1).queue, -1)
      end
      call('SET', P .. 'recount', '1')
    end
    call('UNLINK', P .. 'o:' .. id, P .. 'h:' .. id)
    call('ZREM', P .. 'expiring', id)
    local head = order and head_of(order, 1)
    if head and head.member then
      flows().doubt(head)
    end
    announce({ id })
    answers[i] = '1'
  else
    local head = head_of(order, 1)
    local letter = past and string.sub(past, 1, 1)
    local kept = ENDED[letter]
    if kept then
      call('ZREM', P .. kept .. head.queue, id)
      unlist_ended(letter, id, head.queue)
    else
      local key, place = waits_in(id, order, past, head)
      if key then
        take_out(key, place, id, head)
      end
    end
    remove(id, order, head, letter)
    answers[i] = '1'
  end
end
conclude()
return table.concat(answers)
