-- name: server
SELECT current_setting('server_version'),
       pg_is_in_recovery(),
       current_setting('default_transaction_read_only') = 'on',
       current_setting('fsync') = 'on',
       current_setting('synchronous_commit'),
       current_setting('full_page_writes') = 'on',
       current_setting('autovacuum') = 'on',
       current_setting('max_connections')::integer - current_setting('superuser_reserved_connections')::integer,
       (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend')::integer,
       clock_timestamp()

-- name: tables
-- What vacuum has to do, and when it did. The counts are of the last moments, not of this one.
SELECT c.relname,
       coalesce(s.n_live_tup, 0)::bigint,
       coalesce(s.n_dead_tup, 0)::bigint,
       extract(epoch FROM clock_timestamp() - greatest(s.last_vacuum, s.last_autovacuum))::double precision,
       coalesce('autovacuum_enabled=false' = ANY (c.reloptions), false),
       pg_total_relation_size(c.oid)::bigint
FROM pg_class AS c
JOIN pg_namespace AS n ON n.oid = c.relnamespace
LEFT JOIN pg_stat_all_tables AS s ON s.relid = c.oid
WHERE n.nspname = $1 AND c.relname = ANY ($2::text[]) AND c.relkind = 'r'

-- name: indexes
-- The indexes that are there and can be used.
SELECT c.relname
FROM pg_index AS i
JOIN pg_class AS c ON c.oid = i.indexrelid
JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE n.nspname = $1 AND i.indisvalid AND i.indisready

-- name: oldest
-- Who keeps vacuum from removing what is dead: a transaction, a prepared one, a replication slot.
SELECT kind, name, state, seconds, age
FROM (
    SELECT 'transaction' AS kind,
           pid::text || coalesce(' (' || nullif(application_name, '') || ')', '') AS name,
           coalesce(state, '') AS state,
           extract(epoch FROM clock_timestamp() - xact_start)::double precision AS seconds,
           age(backend_xmin)::bigint AS age
    FROM pg_stat_activity
    WHERE backend_xmin IS NOT NULL AND pid <> pg_backend_pid() AND xact_start IS NOT NULL
    UNION ALL
    SELECT 'prepared transaction', gid, '', extract(epoch FROM clock_timestamp() - prepared)::double precision,
           age(transaction)::bigint
    FROM pg_prepared_xacts
    UNION ALL
    SELECT 'replication slot', slot_name::text, CASE WHEN active THEN 'active' ELSE 'inactive' END, NULL,
           age(coalesce(xmin, catalog_xmin))::bigint
    FROM pg_replication_slots WHERE coalesce(xmin, catalog_xmin) IS NOT NULL
) AS holders
ORDER BY seconds DESC NULLS LAST LIMIT 3
