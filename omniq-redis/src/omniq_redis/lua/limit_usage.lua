--! base many wake due announce waiting limited running task endings corrupt flows limits
-- ARGV: of each scope a letter (q: a queue, k: a key of one, n: a name), the queue or the name, and the key or ''. Gives of
-- each what is stored of its limit, the weights of its keys, how many tasks run, when its rate lets the next one start (0:
-- now), and of how many keys tasks are held back.
local MOST = 1000

local function first_lines(queue, key, skip)
  local found = {}
  for i, place in ipairs(call('ZRANGE', key, 0, MOST - 1)) do
    found[i] = limits().read(queue, string.sub(place, skip)) or {}
  end
  return found
end

local function held_lines(letter, name, key)
  local held = {}
  local function add(lines, places)
    for _, line in ipairs(lines) do
      if line.place and string.find(places, line.place, 1, true) then
        held[#held + 1] = line
      end
    end
  end
  if letter == 'q' then
    add(first_lines(name, P .. 'parked:' .. name, 1), 'k')
    add(first_lines(name, P .. 'asleep:' .. name, 2), 's')
  elseif letter == 'k' then
    add(first_lines(name, limits().held(name, key), 1), 'ks')
  else
    for _, queue in ipairs(call('ZRANGE', P .. 'sharing:' .. name, 0, MOST - 1)) do
      add(first_lines(queue, limits().named(name, queue), 10), 'n')
    end
  end
  return held
end

local found = {}
for at = 1, #ARGV, 3 do
  local letter, name, key = ARGV[at], ARGV[at + 1], ARGV[at + 2]
  local id = (letter == 'n' and 'name:' or 'queue:') .. name
  local rule, scope = limits().rule_of(id), letter .. name
  local limit = rule.whole
  if letter == 'k' then
    scope, limit = limits().of_key(name, key), rule.each
  end
  local left, due = limits().tokens(scope, limit)
  local seen, number = {}, 0
  for _, line in ipairs(held_lines(letter, name, key)) do
    local whose = line.queue .. '\0' .. (line.key and 'k' .. line.key or '')
    number = number + (seen[whose] and 0 or 1)
    seen[whose] = true
  end
  local weights = letter == 'q' and call('HGETALL', P .. 'weights:' .. name) or {}
  local stored, running = call('HGET', P .. 'limits', id), limits().running_in(scope)
  found[#found + 1] = { stored, weights, running, left <= 0 and due or 0, number }
end
return found
