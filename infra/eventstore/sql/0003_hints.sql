-- As before, but the hint says in which contexts the log has grown, so that whoever waits for others sleeps on.
create or replace function undrift.append(
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

    if cardinality(e_topic) > 0 then
        perform pg_notify('undrift_log', head || ' ' || string_agg(distinct split_part(topic, '.', 1), ' '))
            from unnest(e_topic) as e(topic);
    end if;
end $$;

