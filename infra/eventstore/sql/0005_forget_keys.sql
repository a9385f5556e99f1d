-- Idempotency keys of clients are forgotten after a while, never before a day. The application may do that to them and
-- nothing else. What the system itself says under a key (principal `system:...`) may be said again by any replay.
create function undrift.forget_keys(keep interval, most int) returns bigint language sql security definer
set search_path = pg_catalog as $$
    with forgotten as (
        delete from undrift.commands where ctid = any (array(
            select c.ctid from undrift.commands c
            where c.at < clock_timestamp() - greatest(keep, interval '24 hours')
              and c.principal not like 'system:%' limit most))
        returning 1)
    select count(*) from forgotten
$$;

revoke all on function undrift.forget_keys from public;
