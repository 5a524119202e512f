--! base many records
-- ARGV: ids. Gives the time, then what is stored of each task.
return records(ARGV)
