--! base
return now
