--! base many wake due announce waiting running task endings corrupt flows
-- ARGV: flow, behind which sequence number to go on, how many tasks to look at. Gives how many were retried, and where to
-- go on (0: these were all).
local flow, retried = flows().open(ARGV[1]), 0
if not flow or flows().has_lost_key(flow) then
  return { 0, 0 }
end
if ARGV[2] == '0' then
  flow.cancelled, flow.cancelling = 0, 0
end
local ids, last = flows().tasks_behind(flow, tonumber(ARGV[2]), tonumber(ARGV[3]))
for _, id in ipairs(ids) do
  local order, past = order_of(id), past_of_task(id)
  local head = order and past and head_of(order, 1)
  if head and head.member and string.find(past, '^[fc]') and call('HEXISTS', P .. 'running', id) == 0
    and flows().retry(id, order, past, head) then
    retried = retried + 1
  end
end
close_flows()
return { retried, #ids == tonumber(ARGV[3]) and last or 0 }
