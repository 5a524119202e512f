-- Removes everything that is stored of a task that is in no queue any more.
-- letter: of the state in which it was; one that had not ended counts in its flow as cancelled.
local function remove(id, order, head, letter)
  if head.member then
    flows().removed(id, order, head, letter)
  end
  call('UNLINK', P .. 'o:' .. id, P .. 'h:' .. id)
  call('ZREM', P .. 'expiring', id)
  if head.unique then
    free(head.unique, id)
  end
  local seq = struct.unpack('>I8', order)
  local chunk = math.floor(seq / 100)
  local key = P .. 'log:' .. chunk
  call('HDEL', key, seq % 100)
  if call('EXISTS', key) == 0 then
    call('ZREM', P .. 'log', chunk)
  end
  announce({ id })
end
