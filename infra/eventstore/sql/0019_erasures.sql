-- Persons whose erasure is complete. The list of all who are to be erased is a file beside the master key, which no dump
-- takes back: whoever is on it and not here is erased again.
create table undrift.erasures (
    tenant    text not null,
    subject   text not null,
    position  bigint not null,
    erased_at timestamptz not null default clock_timestamp(),
    primary key (tenant, subject)
);

-- Idempotency keys that these principals gave, whatever their age: keys are the clients' own words.
create function undrift.forget_principals(of_tenant text, principals text[]) returns bigint
language sql security definer set search_path = pg_catalog as $$
    with forgotten as (
        delete from undrift.commands c where c.tenant = of_tenant and c.principal = any (principals)
        returning 1)
    select count(*) from forgotten
$$;

revoke all on function undrift.forget_principals from public;
