-- What stands between here and rare_to is made at its first use: scripts that run all the time seldom need it, and the
-- server makes each function of a script anew whenever that runs. What it uses of other parts stands there, too, even if
-- the script has them once more: a function is the dearer to make the more it uses of what is around it.
local function make_rare()
