-- How many requests each caller was let through in the last minute, by all gateways together: `at` in milliseconds of
-- this server's clock, ascending, and how many then. What a crash takes begins anew.
create unlogged table undrift.allowances (
    caller  text primary key,
    at      bigint[] not null default '{}',
    counts  integer[] not null default '{}',
    seen_at timestamptz not null default clock_timestamp()
) with (fillfactor = 50);

-- For each caller as many of the wanted as its limit still leaves, how many are used then, and in how many milliseconds
-- the oldest of them is a minute ago. Callers come each once and in ascending order, so that two who ask never wait for
-- each other in a circle. Moments are rounded up to tenths of a second: never more than the limit in any minute.
create function undrift.allow(callers text[], wanted integer[], limits integer[])
returns table (granted integer, used integer, reset_ms bigint)
language plpgsql as $$
declare
    minute constant bigint := 60000;
    step constant bigint := 100;
    known undrift.allowances;
    now_ms bigint;
    slot bigint;
    last integer;
begin
    for n in 1 .. cardinality(callers) loop
        select * into known from undrift.allowances a where a.caller = callers[n] for update;
        if not found then
            insert into undrift.allowances (caller) values (callers[n]) on conflict do nothing;
            select * into known from undrift.allowances a where a.caller = callers[n] for update;
        end if;
        -- Looked at with the row locked: whoever waited for it comes later.
        now_ms := floor(extract(epoch from clock_timestamp()) * 1000);
        select coalesce(array_agg(u.moment order by u.moment), '{}'), coalesce(array_agg(u.n order by u.moment), '{}'),
            coalesce(sum(u.n), 0)::integer
        into known.at, known.counts, used
        from unnest(known.at, known.counts) as u(moment, n)
        where u.moment > now_ms - minute and u.moment <= now_ms + minute;  -- a clock may have been set back
        granted := least(wanted[n], greatest(limits[n] - used, 0));
        last := cardinality(known.at);
        if granted > 0 then
            slot := greatest((now_ms + step - 1) / step * step, coalesce(known.at[last], 0));
            if known.at[last] = slot then
                known.counts[last] := known.counts[last] + granted;
            else
                known.at := known.at || slot;
                known.counts := known.counts || granted;
            end if;
            used := used + granted;
        end if;
        update undrift.allowances a set at = known.at, counts = known.counts, seen_at = clock_timestamp()
        where a.caller = callers[n];
        reset_ms := coalesce(known.at[1] + minute - now_ms, 0);
        return next;
    end loop;
end $$;
