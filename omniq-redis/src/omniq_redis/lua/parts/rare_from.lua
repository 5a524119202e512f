-- What stands between here and rare_to is made at its first use: scripts that run all the time seldom need it, and the
-- server makes each function of a script anew whenever that runs.
local function make_rare()
