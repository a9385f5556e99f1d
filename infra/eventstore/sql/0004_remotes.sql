-- What each remote said of its patience, shared by all workers: `name` is a keyed hash of address and credential.
create table undrift.remotes (
    name       text primary key,
    remaining  bigint,
    reset_at   timestamptz,
    not_before timestamptz,
    in_flight  integer not null default 0,
    wait_s     double precision not null default 0,
    updated_at timestamptz not null default clock_timestamp()
) with (fillfactor = 50);

-- Which integration heard from which remote.
create table undrift.remote_uses (
    tenant      text not null,
    integration text not null,
    remote      text not null references undrift.remotes (name) on delete cascade,
    primary key (tenant, integration, remote)
);
