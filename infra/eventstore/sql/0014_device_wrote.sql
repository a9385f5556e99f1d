-- Where in the log a device's own last change is, whichever gateway took it: what it knew cannot be told before that.
alter table undrift.device_state add column wrote_pos bigint not null default 0;
