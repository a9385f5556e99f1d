-- The log and what its transactions need. What the application may do with it is in roles.sql.
create schema undrift;

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
    primary key (key, tenant, principal)
);
create index commands_at on undrift.commands using brin (at);

create table undrift.claims (
    tenant    text not null,
    kind      text not null,
    key       text not null,
    stream_id text not null,
    shared    boolean not null,
    pos       bigint not null,
    primary key (key, kind, tenant, stream_id)
);
create index claims_oldest on undrift.claims (pos) where kind like 'work/%';

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

-- Appends a group of commands, all of them or none. The lock is taken first and held to the commit, so positions are
-- gap-free and in commit order; the head and each stream's last version are read from the events' own indexes, so no
-- row is updated. Commands of one group share no stream, idempotency key or claimed name, so each is judged by itself;
-- `refused` names every obstacle by its place in its array, and null says that the group was stored.
-- Probes go by index whatever the statistics say: a plan made while a table was small must not outlive it.
create function undrift.append(
    e_tenant text[], e_stream text[], e_version int[], e_topic text[], e_schema int[], e_id uuid[], e_metadata text[],
    e_state bytea[], e_hash bytea[],
    w_stream text[], w_expected int[],
    k_tenant text[], k_principal text[], k_key text[], k_hash bytea[], k_before int[], k_n int[],
    t_tenant text[], t_kind text[], t_key text[], t_stream text[], t_shared boolean[], t_before int[],
    r_tenant text[], r_kind text[], r_key text[], r_stream text[],
    g_lease text[], g_owner text[], g_fence bigint[],
    out head bigint, out stamp timestamptz, out refused jsonb
) language plpgsql security definer
set search_path = pg_catalog set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off as $$
declare
    more jsonb;
begin
    perform pg_advisory_xact_lock(7305011221);
    select e.pos, greatest(clock_timestamp(), e.recorded_at) into head, stamp
        from undrift.events e order by e.pos desc limit 1;
    if head is null then
        head := 0;
        stamp := clock_timestamp();
    end if;

    if cardinality(k_key) > 0 then
        select jsonb_agg(jsonb_build_object('in', 'keys', 'nth', k.nth, 'first', c.first_pos, 'n', c.n, 'at', c.at,
                'why', case when c.request_hash = k.hash then 'replayed' else 'key_reused' end))
            into refused
            from unnest(k_tenant, k_principal, k_key, k_hash) with ordinality as k(tenant, principal, key, hash, nth)
            join undrift.commands c on c.tenant = k.tenant and c.principal = k.principal and c.key = k.key;
    end if;

    if cardinality(g_lease) > 0 then
        select jsonb_agg(jsonb_build_object('in', 'guards', 'nth', g.nth, 'why', 'guard')) into more
            from unnest(g_lease, g_owner, g_fence) with ordinality as g(lease, owner, fence, nth)
            left join undrift.leases l on l.name = g.lease and l.owner = g.owner and l.fence = g.fence
            where l.name is null;
        refused := coalesce(refused || more, refused, more);
    end if;

    select jsonb_agg(jsonb_build_object('in', 'writes', 'nth', w.nth, 'why', 'version', 'name', w.stream,
            'actual', w.actual))
        into more
        from (
            select w.nth, w.stream, w.expected,
                coalesce((select e.version from undrift.events e where e.stream_id = w.stream
                          order by e.version desc limit 1), 0) as actual
            from unnest(w_stream, w_expected) with ordinality as w(stream, expected, nth)
        ) w
        where w.actual <> greatest(w.expected, 0);
    refused := coalesce(refused || more, refused, more);

    if cardinality(t_key) > 0 then
        select jsonb_agg(jsonb_build_object('in', 'takes', 'nth', t.nth, 'why', 'claimed', 'kind', t.kind,
                'name', t.key, 'holder', h.stream_id))
            into more
            from unnest(t_tenant, t_kind, t_key, t_stream, t_shared) with ordinality
                as t(tenant, kind, key, stream, shared, nth)
            join undrift.claims h on h.tenant = t.tenant and h.kind = t.kind and h.key = t.key
            where h.stream_id <> t.stream and not (h.shared and t.shared)
              and not exists (
                  select from unnest(r_tenant, r_kind, r_key, r_stream) as r(tenant, kind, key, stream)
                  where r.tenant = t.tenant and r.kind = t.kind and r.key = t.key and r.stream = h.stream_id);
        refused := coalesce(refused || more, refused, more);
    end if;

    if refused is not null then
        return;
    end if;

    insert into undrift.events
        select head + e.nth, e.tenant, e.stream, e.version, e.topic, e.schema_version, e.id, e.metadata, e.state,
               e.hash, stamp
        from unnest(e_tenant, e_stream, e_version, e_topic, e_schema, e_id, e_metadata, e_state, e_hash)
            with ordinality as e(tenant, stream, version, topic, schema_version, id, metadata, state, hash, nth);

    if cardinality(k_key) > 0 then
        insert into undrift.commands
            select k.tenant, k.principal, k.key, k.hash, head + 1 + k.before, k.n, stamp
            from unnest(k_tenant, k_principal, k_key, k_hash, k_before, k_n)
                as k(tenant, principal, key, hash, before, n);
    end if;

    if cardinality(r_key) > 0 then
        delete from undrift.claims x
            using unnest(r_tenant, r_kind, r_key, r_stream) as r(tenant, kind, key, stream)
            where x.tenant = r.tenant and x.kind = r.kind and x.key = r.key and x.stream_id = r.stream;
    end if;

    if cardinality(t_key) > 0 then
        insert into undrift.claims
            select t.tenant, t.kind, t.key, t.stream, t.shared, head + 1 + t.before
            from unnest(t_tenant, t_kind, t_key, t_stream, t_shared, t_before)
                as t(tenant, kind, key, stream, shared, before)
            on conflict (tenant, kind, key, stream_id) do update set shared = excluded.shared;
    end if;

    perform pg_notify('undrift_log', head::text);
end $$;

revoke all on function undrift.append from public;
