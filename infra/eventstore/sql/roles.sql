-- The application's role: it may read and append, never change the log. Neither roles nor rights to a database are part
-- of its dump, so this is run whenever something of it is missing.
do $$
begin
    if to_regrole('undrift_app') is null then
        create role undrift_app nologin;
    end if;
exception when duplicate_object or unique_violation then
    null; -- roles belong to the server: another database was prepared at the same moment
end $$;

do $$
declare
    restored name;
begin
    execute format('grant undrift_app to %I', session_user);
    execute format('grant create on database %I to undrift_app', current_database());
    -- Read models that a restore gave to somebody else are made anew from the log.
    for restored in select nspname from pg_namespace
            where nspname like 'rm\_%' and nspowner <> to_regrole('undrift_app') loop
        execute format('drop schema %I cascade', restored);
    end loop;
end $$;

grant execute on function undrift.append, undrift.forget_keys, undrift.allow to undrift_app;
grant select, insert, update, delete on undrift.allowances to undrift_app;
grant execute on function undrift.forget_principals to undrift_app;
grant select, insert, update on undrift.erasures to undrift_app;
grant usage on schema undrift, undrift_keys to undrift_app;
grant select on undrift.events, undrift.commands, undrift.claims to undrift_app;
grant select, insert on undrift.epochs, undrift.seals to undrift_app;
grant select, insert, update, delete on undrift.leases, undrift.tracking, undrift.parked, undrift.job_progress,
    undrift.job_logs, undrift.file_records, undrift_keys.subjects to undrift_app;
grant select, insert, update, delete on undrift.remotes, undrift.remote_uses to undrift_app;
grant select, insert, delete on undrift_keys.secrets to undrift_app;
grant select, insert, update, delete on undrift.stored, undrift.device_state, undrift.sessions,
    undrift_keys.passwords, undrift.uploads, undrift.upload_chunks, undrift.dropped to undrift_app;
grant select, insert, update, delete on undrift.session_leases to undrift_app;
grant select, insert, update, delete on undrift.deliveries, undrift.endpoints, undrift.replays to undrift_app;
