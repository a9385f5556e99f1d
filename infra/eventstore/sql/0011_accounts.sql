-- Sessions of users: only the SHA-256 of a token is kept.
create table undrift.sessions (
    id           text primary key,
    tenant       text not null,
    owner        text not null,
    token_sha256 text not null unique,
    client       text not null default '',
    created_at   timestamptz not null default clock_timestamp(),
    last_seen_at timestamptz not null default clock_timestamp(),
    expires_at   timestamptz not null,
    ended_at     timestamptz
);
create index sessions_owner on undrift.sessions (tenant, owner, created_at);

-- Argon2id; apart from the log, so that a changed password is gone.
create table undrift_keys.passwords (
    tenant     text not null,
    owner      text not null,
    hash       text not null,
    changed_at timestamptz not null default clock_timestamp(),
    primary key (tenant, owner)
);
