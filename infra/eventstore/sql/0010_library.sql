-- Bytes that a library holds, by owner: nobody learns from another's what is stored. Either hash names them.
create table undrift.stored (
    tenant    text not null,
    owner     text not null,
    blake3    text not null,
    sha256    text not null,
    size      bigint not null,
    stored_at timestamptz not null default clock_timestamp(),
    primary key (owner, blake3, tenant)
);
create index stored_sha256 on undrift.stored (owner, sha256, tenant);
create index stored_blake3 on undrift.stored (blake3);

-- How far each device has come in its owner's feed; positions, so a row costs nothing in the log.
create table undrift.device_state (
    device        text primary key,
    tenant        text not null,
    owner         text not null,
    delivered_pos bigint not null default 0,
    acked_pos     bigint not null default 0,
    last_seen_at  timestamptz,
    last_sync_at  timestamptz
) with (fillfactor = 50);
create index device_state_owner on undrift.device_state (tenant, owner);
