-- Secrets that integrations need, apart from the log: events hold only `sealed:<id>`. Each is encrypted under a key
-- derived from the master key, and bound to its tenant and id.
create table undrift_keys.secrets (
    tenant  text not null,
    id      text not null,
    sealed  bytea not null,
    made_at timestamptz not null default clock_timestamp(),
    primary key (tenant, id)
);
