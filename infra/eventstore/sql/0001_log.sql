-- The log and what its transactions need. Runs as the owner; the application's role may read and append, never change.
create schema undrift;

do $$
begin
    if not exists (select from pg_roles where rolname = 'undrift_app') then
        create role undrift_app nologin;
    end if;
end $$;

create table undrift.epochs (
    epoch             integer primary key,
    from_pos          bigint not null,
    system_identifier text not null,
    timeline          integer not null,
    database          oid not null,
    opened_at         timestamptz not null default clock_timestamp()
);

create table undrift.events (
    pos            bigint primary key,
    tenant         text not null,
    stream_id      text not null,
    version        integer not null,
    topic          text not null,
    schema_version integer not null,
    event_id       uuid not null,
    metadata       text not null,
    state          bytea not null,
    hash           bytea not null,
    recorded_at    timestamptz not null,
    unique (stream_id, version)
);

-- Idempotency: the answer to a command is a function of the events first_pos .. first_pos + n - 1.
create table undrift.commands (
    tenant       text not null,
    principal    text not null,
    key          text not null,
    request_hash bytea not null,
    first_pos    bigint not null,
    n            integer not null,
    at           timestamptz not null,
    primary key (tenant, principal, key)
);
create index commands_at on undrift.commands (at);

create table undrift.claims (
    tenant    text not null,
    kind      text not null,
    key       text not null,
    stream_id text not null,
    shared    boolean not null,
    pos       bigint not null,
    primary key (tenant, kind, key, stream_id)
);
create index claims_oldest on undrift.claims (kind, pos);

create table undrift.leases (
    name  text primary key,
    owner text,
    fence bigint not null,
    beat  bigint not null default 0
) with (fillfactor = 50);

create table undrift.tracking (
    projection text not null,
    generation integer not null,
    pos        bigint not null,
    primary key (projection, generation)
) with (fillfactor = 50);

-- Every seal_every positions share a Merkle root over (position, time, content hash) that can be anchored outside.
create table undrift.seals (
    first_pos bigint primary key,
    last_pos  bigint not null unique,
    root      bytea not null,
    sealed_at timestamptz not null default clock_timestamp()
);

-- Events that a projection could not read or apply, with the later events of the same stream.
create table undrift.parked (
    projection text not null,
    generation integer not null,
    pos        bigint not null,
    stream_id  text not null,
    reason     text not null,
    parked_at  timestamptz not null default clock_timestamp(),
    primary key (projection, generation, pos)
);
create index parked_stream on undrift.parked (projection, generation, stream_id);

-- Work rows: heartbeats, log lines and running checkpoints are rows, never events.
create table undrift.job_progress (
    job        text primary key,
    tenant     text not null,
    fence      bigint not null,
    progress   text not null,
    checkpoint bytea,
    updated_at timestamptz not null default clock_timestamp()
) with (fillfactor = 50);

create table undrift.job_logs (
    job     text not null,
    seq     bigint not null,
    tenant  text not null,
    at      timestamptz not null default clock_timestamp(),
    level   text not null,
    message text not null,
    primary key (job, seq)
);

-- What a pair of folders looked like after its last sync: the record is a blob.
create table undrift.file_records (
    tenant     text not null,
    pair       text not null,
    blob       text not null,
    job        text not null,
    updated_at timestamptz not null default clock_timestamp(),
    primary key (tenant, pair)
);

-- Keys of persons, apart from the log so that they have their own backup and can be destroyed.
create schema undrift_keys;
create table undrift_keys.subjects (
    tenant    text not null,
    subject   text not null,
    wrapped   bytea,
    made_at   timestamptz not null default clock_timestamp(),
    erased_at timestamptz,
    primary key (tenant, subject)
);

-- Appends a group of commands. The lock is taken first and held to the commit, so positions are gap-free and in
-- commit order; the head and each stream's last version are read from the events' own indexes, so no row is updated.
-- Commands of one group share no stream, idempotency key or claimed name, so each is judged by itself, set-based:
-- what is refused is listed, the rest is carried out. Positions follow from the head in the order of the events.
create function undrift.append(
    e_command int[], e_tenant text[], e_stream text[], e_version int[], e_topic text[], e_schema int[], e_id uuid[],
    e_metadata text[], e_state bytea[], e_hash bytea[],
    w_command int[], w_stream text[], w_expected int[],
    k_command int[], k_tenant text[], k_principal text[], k_key text[], k_hash bytea[],
    c_command int[], c_tenant text[], c_kind text[], c_key text[], c_stream text[], c_shared boolean[], c_take boolean[],
    g_command int[], g_lease text[], g_owner text[], g_fence bigint[],
    out head bigint, out stamp timestamptz, out refused jsonb
) language plpgsql security definer set search_path = pg_catalog as $$
declare
    bad int[] := '{}';
    more int[];
    rows jsonb;
begin
    perform pg_advisory_xact_lock(7305011221);
    select e.pos, greatest(clock_timestamp(), e.recorded_at) into head, stamp
        from undrift.events e order by e.pos desc limit 1;
    if head is null then
        head := 0;
        stamp := clock_timestamp();
    end if;
    refused := '[]';

    if cardinality(k_command) > 0 then
        select array_agg(k.command), jsonb_agg(jsonb_build_object(
                'command', k.command, 'first', c.first_pos, 'n', c.n, 'at', c.at,
                'why', case when c.request_hash = k.hash then 'replayed' else 'key_reused' end))
            into more, rows
            from unnest(k_command, k_tenant, k_principal, k_key, k_hash) as k(command, tenant, principal, key, hash)
            join undrift.commands c
              on c.tenant = k.tenant and c.principal = k.principal and c.key = k.key;
        if more is not null then
            bad := bad || more;
            refused := refused || rows;
        end if;
    end if;

    if cardinality(g_command) > 0 then
        select array_agg(g.command), jsonb_agg(jsonb_build_object('command', g.command, 'why', 'guard', 'name', g.lease))
            into more, rows
            from unnest(g_command, g_lease, g_owner, g_fence) as g(command, lease, owner, fence)
            left join undrift.leases l on l.name = g.lease and l.owner = g.owner and l.fence = g.fence
            where l.name is null and g.command <> all (bad);
        if more is not null then
            bad := bad || more;
            refused := refused || rows;
        end if;
    end if;

    select array_agg(w.command), jsonb_agg(jsonb_build_object(
            'command', w.command, 'why', 'version', 'name', w.stream, 'actual', w.actual))
        into more, rows
        from (
            select w.command, w.stream, w.expected,
                coalesce((select e.version from undrift.events e where e.stream_id = w.stream
                          order by e.version desc limit 1), 0) as actual
            from unnest(w_command, w_stream, w_expected) as w(command, stream, expected)
        ) w
        where w.actual <> greatest(w.expected, 0) and w.command <> all (bad);
    if more is not null then
        bad := bad || more;
        refused := refused || rows;
    end if;

    if cardinality(c_command) > 0 then
        select array_agg(c.command), jsonb_agg(jsonb_build_object(
                'command', c.command, 'why', 'claimed', 'kind', c.kind, 'name', c.key, 'holder', h.stream_id))
            into more, rows
            from unnest(c_command, c_tenant, c_kind, c_key, c_stream, c_shared, c_take)
                as c(command, tenant, kind, key, stream, shared, take)
            join undrift.claims h on h.tenant = c.tenant and h.kind = c.kind and h.key = c.key
            where c.take and h.stream_id <> c.stream and not (h.shared and c.shared) and c.command <> all (bad)
              and not exists (
                  select from unnest(c_command, c_tenant, c_kind, c_key, c_stream, c_take)
                      as r(command, tenant, kind, key, stream, take)
                  where not r.take and r.command = c.command and r.tenant = c.tenant and r.kind = c.kind
                    and r.key = c.key and r.stream = h.stream_id);
        if more is not null then
            bad := bad || more;
            refused := refused || rows;
        end if;
    end if;

    insert into undrift.events
        select head + row_number() over (order by e.nth), e.tenant, e.stream, e.version, e.topic, e.schema_version,
               e.id, e.metadata, e.state, e.hash, stamp
        from unnest(e_command, e_tenant, e_stream, e_version, e_topic, e_schema, e_id, e_metadata, e_state, e_hash)
            with ordinality as e(command, tenant, stream, version, topic, schema_version, id, metadata, state, hash, nth)
        where e.command <> all (bad);

    if cardinality(k_command) > 0 then
        insert into undrift.commands
            select k.tenant, k.principal, k.key, k.hash,
                   head + 1 + (select count(*) from unnest(e_command) e where e < k.command and e <> all (bad)),
                   (select count(*) from unnest(e_command) e where e = k.command), stamp
            from unnest(k_command, k_tenant, k_principal, k_key, k_hash) as k(command, tenant, principal, key, hash)
            where k.command <> all (bad);
    end if;

    if cardinality(c_command) > 0 then
        delete from undrift.claims x
            using unnest(c_command, c_tenant, c_kind, c_key, c_stream, c_take)
                as c(command, tenant, kind, key, stream, take)
            where not c.take and c.command <> all (bad)
              and x.tenant = c.tenant and x.kind = c.kind and x.key = c.key and x.stream_id = c.stream;
        insert into undrift.claims
            select c.tenant, c.kind, c.key, c.stream, c.shared,
                   head + 1 + (select count(*) from unnest(e_command) e where e < c.command and e <> all (bad))
            from unnest(c_command, c_tenant, c_kind, c_key, c_stream, c_shared, c_take)
                as c(command, tenant, kind, key, stream, shared, take)
            where c.take and c.command <> all (bad)
            on conflict do nothing;
    end if;

    perform pg_notify('undrift_log', head::text);
end $$;

revoke all on function undrift.append from public;
grant execute on function undrift.append to undrift_app;
grant usage on schema undrift, undrift_keys to undrift_app;
grant select on undrift.events, undrift.commands, undrift.claims to undrift_app;
grant select, insert on undrift.epochs, undrift.seals to undrift_app;
grant select, insert, update, delete on undrift.leases, undrift.tracking, undrift.parked, undrift.job_progress,
    undrift.job_logs, undrift.file_records, undrift_keys.subjects to undrift_app;
do $$
begin
    execute format('grant create on database %I to undrift_app', current_database());
    execute format('grant undrift_app to %I', session_user);
end $$;
