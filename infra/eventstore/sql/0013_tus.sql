-- What the bytes of an upload turned out to be, noted before they are moved: found again however that ended.
-- `partial_bytes` counts from the beginning of the file; it is good within the first chunk that has not come whole,
-- whose row holds the BLAKE3 of what has.
alter table undrift.uploads add column blake3 text, add column sha256 text;
create index uploads_blake3 on undrift.uploads (blake3) where blake3 is not null;

-- Bytes that no version needs any more: out of `stored`, so that nothing new can name them, and about to be deleted.
create table undrift.dropped (
    tenant     text not null,
    owner      text not null,
    blake3     text not null,
    sha256     text not null,
    size       bigint not null,
    dropped_at timestamptz not null default clock_timestamp(),
    primary key (owner, blake3, tenant)
);
