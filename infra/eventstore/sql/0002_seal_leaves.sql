-- The first four bytes of each leaf under a seal's root: they say which position differs when the root does.
alter table undrift.seals add column leaves bytea not null default '';
