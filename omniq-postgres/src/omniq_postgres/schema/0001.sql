-- tasks, schedules, workers
-- States are numbers: 0 blocked, 1 scheduled, 2 ready, 3 running, 4 succeeded, 5 failed, 6 cancelled; -1 is a ready one that
-- stands in a line, so that what is about others never meets it.

CREATE SEQUENCE {order};

-- The order of a producer: written once, never changed, until the task is deleted or pruned. Its key is what makes
-- enqueueing idempotent through a task's whole life.
CREATE TABLE {task} (
    id          uuid PRIMARY KEY,
    seq         bigint NOT NULL,                -- the order of enqueueing
    created_at  timestamptz NOT NULL,
    result_ttl  double precision NOT NULL,      -- seconds
    max_retries integer NOT NULL,
    priority    smallint NOT NULL,
    queue       text COLLATE "C" NOT NULL,
    name        text COLLATE "C" NOT NULL,
    unique_key  text COLLATE "C",
    tags        text[],
    member      text COLLATE "C",               -- JSON: the task's place in its flow
    body        bytea NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0.05, autovacuum_analyze_scale_factor = 0.05);

ALTER TABLE {task} ALTER COLUMN body SET STORAGE EXTERNAL;
CREATE INDEX {seq_index} ON {task} (seq);
CREATE INDEX {tagged_index} ON {task} USING gin (tags) WHERE tags IS NOT NULL;

-- Tasks that have not ended: what claim, finish and heartbeat change, and nothing else.
CREATE TABLE {live} (
    run_at      timestamptz NOT NULL,           -- when it became, or will become, ready: its place in the queue
    lease_until timestamptz,
    started_at  timestamptz,
    expires_at  timestamptz,
    result_ttl  double precision NOT NULL,
    seq         bigint NOT NULL,
    delivery    integer NOT NULL DEFAULT 0,     -- the fencing token
    attempt     integer NOT NULL DEFAULT 0,
    state       smallint NOT NULL,
    priority    smallint NOT NULL,
    cancel      boolean NOT NULL DEFAULT false, -- asked to stop
    id          uuid PRIMARY KEY,
    queue       text COLLATE "C" NOT NULL,
    worker      text COLLATE "C",
    key         text COLLATE "C",               -- of the unique key, cut to a length that an index can hold
    error       text COLLATE "C",               -- JSON
    attempt_log text COLLATE "C",               -- not looked into
    progress    text COLLATE "C",               -- JSON
    flow        uuid,
    behind      bigint,                         -- the gate of the flow behind which it stands
    line        text COLLATE "C",               -- the id of the line of tasks in which it stands, if it has limits of its own
    limit_key   text COLLATE "C",               -- its key, for the limits of the queue
    limit_name  text COLLATE "C",               -- the named limit that it shares with others
    debounced   boolean                         -- true, or NULL: it has its key until it is started
) WITH (
    fillfactor = 80,
    -- Rows live for moments here: what they leave behind is to go soon, and at full speed.
    autovacuum_vacuum_scale_factor = 0.01,
    autovacuum_vacuum_threshold = 500,
    autovacuum_vacuum_insert_scale_factor = 0.1,
    autovacuum_vacuum_cost_delay = 0,
    autovacuum_analyze_scale_factor = 0.05,
    autovacuum_analyze_threshold = 1000
);

-- Each partial index holds only the tasks of its states, so that claiming costs the same whatever else is stored.
CREATE INDEX {ready_index} ON {live} (queue, priority DESC, run_at, seq) WHERE state = 2;
-- One for two states: each index costs every statement that changes a row.
CREATE INDEX {scheduled_index} ON {live} (state, queue, run_at) WHERE state IN (-1, 1);
CREATE INDEX {running_index} ON {live} (lease_until) WHERE state = 3;
CREATE INDEX {expiry_index} ON {live} (expires_at) WHERE expires_at IS NOT NULL AND state IN (-1, 1, 2);
CREATE UNIQUE INDEX {key_index} ON {live} (key) WHERE key IS NOT NULL AND (debounced IS NULL OR delivery = 0);
CREATE INDEX {lined_index} ON {live} (line, priority DESC, run_at, seq) WHERE state = -1;
CREATE INDEX {key_slots_index} ON {live} (queue, limit_key) WHERE state = 3 AND limit_key IS NOT NULL;
CREATE INDEX {name_slots_index} ON {live} (limit_name) WHERE state = 3 AND limit_name IS NOT NULL;
CREATE INDEX {blocked_index} ON {live} (queue, seq) WHERE state = 0;
CREATE INDEX {waiting_index} ON {live} (flow, behind, seq) WHERE flow IS NOT NULL;

-- Tasks that have ended, until their result_ttl is over.
CREATE TABLE {ended} (
    run_at      timestamptz NOT NULL,
    started_at  timestamptz,
    finished_at timestamptz NOT NULL,
    delete_at   timestamptz NOT NULL,
    expires_at  timestamptz,
    seq         bigint NOT NULL,
    delivery    integer NOT NULL,
    attempt     integer NOT NULL,
    state       smallint NOT NULL,
    cancel      boolean NOT NULL,
    id          uuid PRIMARY KEY,
    queue       text COLLATE "C" NOT NULL,
    worker      text COLLATE "C",
    error       text COLLATE "C",
    attempt_log text COLLATE "C",
    progress    text COLLATE "C",
    flow        uuid,
    behind      bigint,
    uncounted   boolean NOT NULL DEFAULT false, -- in the gates of its flow: done under the flow's lock, in a next step
    result      bytea
) WITH (autovacuum_vacuum_scale_factor = 0.05, autovacuum_analyze_scale_factor = 0.05);

ALTER TABLE {ended} ALTER COLUMN result SET STORAGE EXTERNAL;
CREATE INDEX {history_index} ON {ended} (queue, state, seq);
-- Of a flow's tasks for ever: they go with it.
CREATE INDEX {retention_index} ON {ended} (delete_at);
CREATE INDEX {gone_index} ON {ended} (flow, behind, seq) WHERE flow IS NOT NULL;
CREATE INDEX {uncounted_index} ON {ended} (flow) WHERE uncounted;

-- Flows and their gates: JSON, as omniq.storage.rows writes them. They change only while their flow is locked.
CREATE TABLE {flow} (
    id    uuid PRIMARY KEY,
    due   timestamptz,                          -- when there is something to do about it
    ended boolean NOT NULL,
    key   text COLLATE "C",                     -- until it has ended, cut as that of a task
    body  text COLLATE "C" NOT NULL
) WITH (
    fillfactor = 50,
    autovacuum_vacuum_scale_factor = 0.05,
    autovacuum_vacuum_threshold = 200,
    autovacuum_vacuum_cost_delay = 0
);

CREATE INDEX {flow_due_index} ON {flow} (ended, due) WHERE due IS NOT NULL;
CREATE UNIQUE INDEX {flow_key_index} ON {flow} (key) WHERE key IS NOT NULL;

CREATE TABLE {gate} (
    flow uuid NOT NULL,
    n    bigint NOT NULL,
    body text COLLATE "C" NOT NULL,
    PRIMARY KEY (flow, n)
) WITH (
    fillfactor = 50,
    autovacuum_vacuum_scale_factor = 0.05,
    autovacuum_vacuum_threshold = 200,
    autovacuum_vacuum_cost_delay = 0
);

-- Limits, and the lines of tasks that wait at them: JSON, as omniq.storage.rows writes them. All of it is changed under
-- one lock, see sql/limits.sql, but for what is appended to "wake".
CREATE TABLE {limits} (id text COLLATE "C" PRIMARY KEY, body text COLLATE "C" NOT NULL);

CREATE TABLE {lane} (queue text COLLATE "C" PRIMARY KEY, body text COLLATE "C" NOT NULL) WITH (
    fillfactor = 50,
    autovacuum_vacuum_scale_factor = 0.05,
    autovacuum_vacuum_threshold = 200,
    autovacuum_vacuum_cost_delay = 0
);

CREATE TABLE {line} (
    id          text COLLATE "C" PRIMARY KEY,
    queue       text COLLATE "C" NOT NULL,
    limit_key   text COLLATE "C",
    place       text COLLATE "C" NOT NULL,
    first_rank  bigint NOT NULL,
    second_rank bigint NOT NULL,
    body        text COLLATE "C" NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_threshold = 200, autovacuum_vacuum_cost_delay = 0);

CREATE INDEX {place_index} ON {line} (queue, place, first_rank, second_rank);
CREATE INDEX {named_place_index} ON {line} (place, queue);
CREATE INDEX {limit_key_index} ON {line} (queue, limit_key) WHERE limit_key IS NOT NULL;

CREATE TABLE {bucket} (id text COLLATE "C" PRIMARY KEY, at_rest bigint NOT NULL) WITH (
    fillfactor = 50,
    autovacuum_vacuum_scale_factor = 0.05,
    autovacuum_vacuum_threshold = 200,
    autovacuum_vacuum_cost_delay = 0
);

CREATE INDEX {rest_index} ON {bucket} (at_rest);

-- What stopped running, and what it held is free: the next to have the lock wakes what waits for that.
CREATE TABLE {wake} (
    queue      text COLLATE "C" NOT NULL,
    limit_key  text COLLATE "C",
    limit_name text COLLATE "C",
    released   boolean NOT NULL DEFAULT false   -- it was given back unstarted
) WITH (autovacuum_vacuum_scale_factor = 0.1, autovacuum_vacuum_threshold = 200, autovacuum_vacuum_cost_delay = 0);

-- How many tasks each queue has in each state. No change waits for a counter: it appends what it adds and takes
-- away to "delta", and from time to time some of that is summed up into "counter".
CREATE TABLE {delta} (
    scheduled integer NOT NULL,
    ready     integer NOT NULL,
    running   integer NOT NULL,
    succeeded integer NOT NULL,
    failed    integer NOT NULL,
    cancelled integer NOT NULL,
    queue     text COLLATE "C" NOT NULL,
    blocked   integer NOT NULL DEFAULT 0
) WITH (autovacuum_vacuum_scale_factor = 0.1, autovacuum_vacuum_threshold = 500, autovacuum_vacuum_cost_delay = 0);

CREATE TABLE {counter} (
    queue     text COLLATE "C" PRIMARY KEY,
    scheduled bigint NOT NULL,
    ready     bigint NOT NULL,
    running   bigint NOT NULL,
    succeeded bigint NOT NULL,
    failed    bigint NOT NULL,
    cancelled bigint NOT NULL,
    blocked   bigint NOT NULL DEFAULT 0
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.1, autovacuum_vacuum_threshold = 200);

CREATE TABLE {paused} (queue text COLLATE "C" PRIMARY KEY);

CREATE TABLE {worker} (
    id      text COLLATE "C" PRIMARY KEY,
    seen_at timestamptz NOT NULL,
    until   timestamptz NOT NULL,
    about   text                                -- what it tells about itself, not looked into
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.1, autovacuum_vacuum_threshold = 200);

CREATE TABLE {schedule} (
    id       text COLLATE "C" PRIMARY KEY,
    revision bigint NOT NULL,
    next_run timestamptz,
    paused   boolean NOT NULL,
    body     text NOT NULL                      -- JSON
);
-- One row: the largest revision of any schedule that was deleted. New ones begin above it.
CREATE TABLE {revision} (floor bigint NOT NULL);
INSERT INTO {revision} VALUES (0);

CREATE INDEX {due_index} ON {schedule} (next_run) WHERE next_run IS NOT NULL AND NOT paused;

-- Enqueueing for programs in other languages, and what it is made of. What is refused has the SQLSTATE 22023, and the
-- message names it.

-- The statement with which OmniQ's own producers store a task that may be there, under a plan that a session keeps.
CREATE FUNCTION {enqueue_store}(
    uuid[], text[], text[], bytea[], smallint[], integer[], timestamptz[], interval[], timestamptz[], interval[],
    double precision[], text[], text[], text[]
) RETURNS TABLE (asked text, created boolean, was_there boolean, holder text, seconds double precision)
LANGUAGE plpgsql AS $omniq$
#variable_conflict use_column
BEGIN
    RETURN QUERY
    {guarded};
END
$omniq$;

-- A number among options, "preset" if it is not there or null.
CREATE FUNCTION {enqueue_number}(
    options jsonb, option text, lowest numeric, highest numeric, whole boolean, preset numeric
) RETURNS numeric LANGUAGE plpgsql IMMUTABLE AS $omniq$
DECLARE
    given CONSTANT jsonb := nullif(options -> option, 'null');
BEGIN
    IF given IS NULL THEN
        RETURN preset;
    END IF;
    IF jsonb_typeof(given) = 'number' THEN
        IF given::numeric BETWEEN lowest AND highest AND NOT (whole AND given::numeric % 1 <> 0) THEN
            RETURN round(given::numeric, 6);
        END IF;
    END IF;
    RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value', MESSAGE = format(
        '%s must be a %s from %s to %s, not %s',
        option, CASE WHEN whole THEN 'whole number' ELSE 'number of seconds' END, lowest, highest, left(given::text, 100)
    );
END
$omniq$;

-- A short text.
CREATE FUNCTION {enqueue_text}(given jsonb, meaning text) RETURNS text
LANGUAGE plpgsql IMMUTABLE AS $omniq$
DECLARE
    value CONSTANT text := given #>> ARRAY[]::text[];
BEGIN
    IF jsonb_typeof(given) = 'string' AND length(value) BETWEEN 1 AND 500 THEN
        RETURN value;
    END IF;
    RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value', MESSAGE = format(
        '%s must be a text of 1 to 500 characters, not %s', meaning, coalesce(left(given::text, 100), 'NULL')
    );
END
$omniq$;

-- A point in time among options: ISO 8601 with an offset, so that it depends on no setting of the session.
CREATE FUNCTION {enqueue_time}(options jsonb, option text) RETURNS timestamptz
LANGUAGE plpgsql STABLE AS $omniq$
DECLARE
    given CONSTANT text := options ->> option;
BEGIN
    IF given IS NULL THEN
        RETURN NULL;
    END IF;
    IF jsonb_typeof(options -> option) = 'string' AND given ~ (
        '^[0-9][0-9][0-9][0-9]-[0-9][0-9]-[0-9][0-9][T ][0-9][0-9]:[0-9][0-9](:[0-9][0-9]([.][0-9]+)?)?'
        '(Z|[+-][0-9][0-9](:?[0-9][0-9])?)$'
    ) THEN
        BEGIN
            -- Within what every reader's calendar has.
            RETURN greatest(
                least(given::timestamptz, '9999-12-31 23:59:59.999999+00'), '0001-01-01 00:00:00+00'::timestamptz
            );
        EXCEPTION WHEN data_exception THEN
            NULL;  -- such as the 30th of February
        END;
    END IF;
    RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value', MESSAGE = format(
        '%s must be a time in ISO 8601 with an offset, such as "2030-01-02T03:04:05Z"%s, not %s',
        option, CASE WHEN option = 'expires' THEN ', or seconds from now' ELSE '' END,
        left((options -> option)::text, 100)
    );
END
$omniq$;

CREATE FUNCTION {enqueue}(
    queue text,
    name text,
    args jsonb DEFAULT jsonb_build_array(),
    kwargs jsonb DEFAULT jsonb_build_object(),
    options jsonb DEFAULT jsonb_build_object()
) RETURNS uuid LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $omniq$
DECLARE
    known CONSTANT text[] := ARRAY[
        'delay', 'expires', 'headers', 'id', 'max_retries', 'priority', 'result_ttl', 'retry', 'run_at', 'tags',
        'timeout', 'unique'
    ];
    longest CONSTANT numeric := 3153600000;  -- seconds: a hundred years
    problem text;
    header jsonb := jsonb_build_object();
    content text;
    given jsonb;
    of_id uuid;
    delay numeric;
    expires numeric;
    dies_at timestamptz;
    tags text[];
    unique_key text;
    stamp bigint;
    result record;
BEGIN
    args := coalesce(args, jsonb_build_array());
    kwargs := coalesce(kwargs, jsonb_build_object());
    options := coalesce(options, jsonb_build_object());
    problem := CASE
        WHEN queue IS NULL OR length(queue) > 100 OR queue !~ '^[A-Za-z0-9][A-Za-z0-9_.-]*$' THEN format(
            'queue %s cannot be used: take 1 to 100 letters, digits, dots, hyphens and underscores, the first a letter '
            'or digit', coalesce(to_jsonb(left(queue, 200))::text, 'NULL')
        )
        WHEN jsonb_typeof(args) <> 'array' THEN 'args must be a JSON array, not ' || jsonb_typeof(args)
        WHEN jsonb_typeof(kwargs) <> 'object' THEN 'kwargs must be a JSON object, not ' || jsonb_typeof(kwargs)
        WHEN jsonb_typeof(options) <> 'object' THEN 'options must be a JSON object, not ' || jsonb_typeof(options)
    END;
    IF problem IS NULL THEN
        SELECT format('there is no option %s; there are: %s', to_jsonb(left(o, 100)), array_to_string(known, ', '))
        INTO problem FROM jsonb_object_keys(options) AS o WHERE o <> ALL (known) LIMIT 1;
    END IF;
    IF problem IS NULL AND options ->> 'delay' IS NOT NULL AND options ->> 'run_at' IS NOT NULL THEN
        problem := 'give either delay or run_at, not both';
    END IF;
    name := {enqueue_text}(to_jsonb(name), 'name');

    -- What no store looks into: the header of the body.
    given := nullif(options -> 'timeout', 'null');
    IF given IS NOT NULL THEN
        PERFORM {enqueue_number}(options, 'timeout', 0.000001, longest, false, NULL);
        header := header || jsonb_build_object('timeout', given);
    END IF;
    given := nullif(options -> 'retry', 'null');
    IF jsonb_typeof(given) = 'object' AND jsonb_typeof(given -> 'kind') = 'string' THEN
        header := header || jsonb_build_object('retry', given::text);
    ELSIF given IS NOT NULL THEN
        problem := coalesce(problem, 'retry must be a JSON object with a text "kind", not ' || left(given::text, 100));
    END IF;
    given := nullif(options -> 'headers', 'null');
    IF jsonb_typeof(given) <> 'object' THEN
        problem := coalesce(problem, 'headers must be a JSON object of texts, not ' || left(given::text, 100));
    ELSIF given IS NOT NULL THEN
        SELECT coalesce(problem, CASE
            WHEN count(*) > 32 THEN 'headers must be 32 at most, not ' || count(*)
            WHEN bool_or(jsonb_typeof(value) <> 'string') THEN 'headers must be a JSON object of texts'
            WHEN bool_or(length(key) > 64 OR key !~ '^[a-z0-9][a-z0-9_.-]*$') THEN
                'headers must have names of 1 to 64 lower-case letters, digits, dots, hyphens and underscores, the '
                'first a letter or digit'
            WHEN sum(octet_length(convert_to(key || (value #>> ARRAY[]::text[]), 'UTF8'))) > 8192 THEN
                'headers must take 8192 bytes at most'
        END) INTO problem FROM jsonb_each(given);
        header := header || jsonb_build_object('headers', given);
    END IF;
    IF octet_length(convert_to(header::text, 'UTF8')) > 65536 THEN
        problem := coalesce(problem, 'retry, timeout and headers must take 65536 bytes at most');
    END IF;
    content := header::text || chr(10) || jsonb_build_array(args, kwargs)::text;

    -- And what they do.
    IF jsonb_typeof(options -> 'expires') = 'string' THEN
        dies_at := {enqueue_time}(options, 'expires');
    ELSE
        expires := {enqueue_number}(options, 'expires', 0, longest, false, NULL);
    END IF;
    delay := {enqueue_number}(options, 'delay', 0, longest, false, NULL);
    given := nullif(options -> 'tags', 'null');
    IF jsonb_typeof(given) = 'array' THEN
        SELECT array_agg(tag ORDER BY first) INTO tags FROM (
            SELECT {enqueue_text}(value, 'a tag') AS tag, min(position) AS first
            FROM jsonb_array_elements(given) WITH ORDINALITY AS one (value, position) GROUP BY 1
        ) AS once;
        IF cardinality(tags) > 50 THEN
            problem := coalesce(problem, 'tags must be 50 at most, not ' || cardinality(tags));
        END IF;
    ELSIF given IS NOT NULL THEN
        problem := coalesce(problem, 'tags must be a JSON array of texts, not ' || left(given::text, 100));
    END IF;
    given := nullif(options -> 'unique', 'null');
    IF given IS NOT NULL THEN
        unique_key := {enqueue_text}(given, 'unique');
    END IF;
    given := nullif(options -> 'id', 'null');
    IF given IS NULL THEN
        -- A UUID of version 7: 48 bits of milliseconds, 12 of the fraction of one, and the rest of a random UUID.
        stamp := floor(extract(epoch FROM clock_timestamp()) * 4096000);
        of_id := (
            lpad(to_hex(stamp >> 12), 12, '0') || '7' || lpad(to_hex(stamp & 4095), 3, '0')
            || substr(replace(gen_random_uuid()::text, '-', ''), 17)
        )::uuid;
    ELSIF jsonb_typeof(given) = 'string' AND length(replace(options ->> 'id', '-', '')) = 32
        AND replace(options ->> 'id', '-', '') ~ '^[0-9A-Fa-f]+$' THEN
        of_id := replace(options ->> 'id', '-', '')::uuid;
    ELSE
        problem := coalesce(problem, 'id must be a UUID as text, not ' || left(given::text, 100));
    END IF;
    IF problem IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value', MESSAGE = problem;
    END IF;

    -- What was not stored, though nothing says why, met a task that has ended again by now.
    LOOP
        SELECT * INTO result FROM {enqueue_store}(
            ARRAY[of_id],
            ARRAY[queue],
            ARRAY[name],
            ARRAY[convert_to('1' || chr(10) || content, 'UTF8')],
            ARRAY[{enqueue_number}(options, 'priority', -100, 100, true, 0)::smallint],
            ARRAY[{enqueue_number}(options, 'max_retries', 0, 1000000, true, 3)::integer],
            ARRAY[{enqueue_time}(options, 'run_at')],
            ARRAY[make_interval(secs => delay::double precision)],
            ARRAY[dies_at],
            ARRAY[make_interval(secs => expires::double precision)],
            ARRAY[{enqueue_number}(options, 'result_ttl', 0, longest, false, 86400)::double precision],
            ARRAY[tags::text],
            ARRAY[unique_key],
            -- As the index has it: an index cannot hold keys of any length.
            ARRAY[CASE
                WHEN length(unique_key) > {longest_key} THEN
                    left(unique_key, {kept_of_key}) || encode(sha256(convert_to(unique_key, 'UTF8')), 'hex')
                ELSE unique_key
            END]
        );
        IF result.created THEN
            -- As omniq_postgres.notifier tells it; heard once the caller commits.
            PERFORM pg_notify('omniq_{mark}_work', jsonb_build_object(queue, greatest(result.seconds, 0))::text);
            RETURN of_id;
        ELSIF result.was_there THEN
            RETURN of_id;
        ELSIF result.holder IS NOT NULL THEN
            RETURN result.holder::uuid;
        END IF;
    END LOOP;
END
$omniq$;
