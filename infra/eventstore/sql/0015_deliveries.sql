-- One row for each message of each endpoint, in log order: `seq` is dense per endpoint. Rows are made in the
-- transaction that moves the notifier's place, so each event is fanned out once. `state` is pending, delivered, exhausted
-- (given up) or dropped (the endpoint was deleted). `due` is when the next attempt may begin; `asked` says that somebody
-- wants it once more, so that it is found behind what is already done.
create table undrift.deliveries (
    tenant   text not null,
    endpoint text not null,
    seq      bigint not null,
    position bigint not null,
    name     text not null,
    stream   text not null,
    message  text not null,
    replay   text,
    state    text not null default 'pending',
    attempts integer not null default 0,
    due      timestamptz not null default clock_timestamp(),
    status   integer,
    error    text,
    first_at timestamptz,
    last_at  timestamptz,
    took_ms  integer,
    asked    boolean not null default false,
    made_at  timestamptz not null default clock_timestamp(),
    primary key (tenant, endpoint, seq)
) with (autovacuum_vacuum_scale_factor = 0.05);
-- What waits, by stream; what was tried and waits for its time; what somebody asked for; what was given up.
create index deliveries_pending on undrift.deliveries (tenant, endpoint, stream, seq) where state = 'pending';
create index deliveries_due on undrift.deliveries (tenant, endpoint, due) where state = 'pending' and attempts > 0;
create index deliveries_asked on undrift.deliveries (tenant, endpoint, seq) where state = 'pending' and asked;
create index deliveries_exhausted on undrift.deliveries (tenant, endpoint, seq) where state = 'exhausted';

-- The last number given out for each endpoint, and how it fares: failures since the last success, since when, and
-- until when it wants to be left alone.
create table undrift.endpoints (
    tenant        text not null,
    endpoint      text not null,
    seq           bigint not null default 0,
    failures      integer not null default 0,
    failing_since timestamptz,
    held_until    timestamptz,
    primary key (tenant, endpoint)
) with (fillfactor = 50);

-- Replays under way: the events behind `pos`, to `until`, are still to be fanned out.
create table undrift.replays (
    tenant   text not null,
    endpoint text not null,
    replay   text not null,
    pos      bigint not null,
    until    bigint not null,
    names    text[] not null,
    primary key (tenant, endpoint, replay)
);
