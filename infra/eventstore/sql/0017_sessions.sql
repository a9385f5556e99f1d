-- When a sync session was last named, and the furthest progress that anybody was told of it. Where there is no row:
-- when it was started, and nothing.
create table undrift.session_leases (
    tenant   text not null,
    id       text not null,
    named_at timestamptz not null default clock_timestamp(),
    progress smallint not null default 0,
    primary key (tenant, id)
) with (fillfactor = 50);

-- Up to which position a device's acks have been judged for whether it has caught up.
alter table undrift.device_state add column judged_pos bigint not null default 0;
