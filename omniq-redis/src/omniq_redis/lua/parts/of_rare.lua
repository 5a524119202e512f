-- What store needs for tasks with a key, a named limit or a debounce, in scripts in which that is made at its first use.
local function limits()
  return rare().limits()
end

local function supersede(...)
  return rare().supersede(...)
end
