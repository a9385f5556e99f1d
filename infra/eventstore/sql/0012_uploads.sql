-- Uploads under way: what their events do not need to say. The bytes are a file of their own.
create table undrift.uploads (
    id            text primary key,
    tenant        text not null,
    owner         text not null,
    size          bigint not null,
    chunk_size    integer not null,
    partial_bytes bigint not null default 0,
    last_activity timestamptz not null default clock_timestamp()
) with (fillfactor = 70);
create index uploads_owner on undrift.uploads (tenant, owner);
create index uploads_idle on undrift.uploads (last_activity);

-- A chunk belongs to whoever writes it first; it counts once `received_at` is set.
create table undrift.upload_chunks (
    upload      text not null references undrift.uploads (id) on delete cascade,
    index       integer not null,
    writer      uuid not null,
    blake3      text,
    received_at timestamptz,
    primary key (upload, index)
) with (fillfactor = 70);
