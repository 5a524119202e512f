--! base rare_from many wake due announce waiting limited running task endings corrupt flows limits rare_to of_rare many wake due limited store
-- ARGV: id, head, body of each task. Gives the position and the stored task's id for each that was not stored.
return store(1)
