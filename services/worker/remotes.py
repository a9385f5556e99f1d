"""What remotes allow: one row each, so that all workers together, also after a restart, ask no more than they may."""

from __future__ import annotations

import math
from datetime import datetime

from msgspec import Struct

from infra import secrets
from infra.db import Database

#: However long a remote asks us to wait, it is asked again after this.
LONGEST_S = 3600.0
_MOST = 1_000_000_000

# One statement, so whoever asks next sees what this one took. While something forbids it nothing is taken; when the
# window has passed, nothing is known until the next answer. `now()` is the time before the row's lock was waited for:
# a wait may come out longer than needed, never shorter.
_PERMIT = f"""\
insert into undrift.remotes as r (name, in_flight) values ($1, 1)
on conflict (name) do update set
    wait_s = coalesce(greatest(extract(epoch from
        greatest(r.not_before, case when r.remaining <= 0 then r.reset_at end) - now()), 0), 0),
    remaining = case
        when r.remaining is null or r.reset_at <= now() then null
        when r.not_before > now() then r.remaining
        else greatest(r.remaining - 1, 0) end,
    reset_at = case when r.reset_at > now() then r.reset_at end,
    in_flight = case
        when r.not_before > now() or (r.remaining <= 0 and r.reset_at > now()) then r.in_flight
        when r.reset_at <= now() or r.updated_at < now() - interval '{LONGEST_S} seconds' then 1
        else least(r.in_flight + 1, 64) end,
    updated_at = now()
returning wait_s
"""

# What the remote counted does not include what is still on its way to it. Answers come in any order: one about a
# window that is not newer than the one known cannot raise what remains.
_LEARN = f"""\
with said as (
    select $2::bigint as remaining,
        case when $3::timestamptz is not null then least($3, now() + interval '{LONGEST_S} seconds') end as reset_at,
        now() + $4 * interval '1 second' as not_before
), heard as (
    insert into undrift.remotes as r (name, remaining, reset_at, not_before)
    select $1, remaining, reset_at, not_before from said
    on conflict (name) do update set
        in_flight = greatest(r.in_flight - 1, 0),
        remaining = case
            when excluded.remaining is null then r.remaining
            when excluded.reset_at <= r.reset_at
                then least(r.remaining, greatest(excluded.remaining - greatest(r.in_flight - 1, 0), 0))
            else greatest(excluded.remaining - greatest(r.in_flight - 1, 0), 0) end,
        reset_at = greatest(r.reset_at, excluded.reset_at),
        not_before = greatest(r.not_before, excluded.not_before),
        updated_at = now()
    returning name
)
insert into undrift.remote_uses (tenant, integration, remote)
select $5, $6, name from heard where $6::text is not null on conflict do nothing
"""

_QUOTAS = """\
select distinct on (u.integration) u.integration, r.remaining, r.reset_at, r.not_before
from undrift.remote_uses u join undrift.remotes r on r.name = u.remote
where u.tenant = $1 and ($2::text is null or u.integration = $2) order by u.integration, r.updated_at desc
"""


class Quota(Struct, frozen=True):
    """What is known: requests left until `reset_at`, and the time before which nothing may be asked."""

    remaining: int | None
    reset_at: datetime | None
    not_before: datetime | None


class Remotes:
    """`remote` is whatever tells address and credential apart, such as a hash of both; it is kept only as a keyed
    hash. All times are the database's."""

    def __init__(self, database: Database, master: bytes) -> None:
        self._database, self._master = database, master

    def _name(self, remote: str) -> str:
        return secrets.derive(self._master, "remotes", remote).hex()[:32]

    async def permit(self, remote: str) -> float:
        """Seconds to wait before asking again for a permit; 0 for go, which takes one request from what is left."""
        return float(await self._database.fetchval(_PERMIT, self._name(remote)))

    async def learn(
        self,
        remote: str,
        remaining: int | None,
        reset_at: datetime | None,
        retry_after: float | None,
        *,
        tenant: str = "main",
        integration: str | None = None,
    ) -> None:
        """What an answer said: how many requests are left until `reset_at`, or after how many seconds to come back.

        To be called for every answer, also one that says neither, after each permit.
        """
        wait = None if retry_after is None or math.isnan(retry_after) else min(max(retry_after, 0.0), LONGEST_S)
        left = None if remaining is None else min(max(remaining, 0), _MOST)
        await self._database.execute(_LEARN, self._name(remote), left, reset_at, wait, tenant, integration)

    async def quotas(self, tenant: str, integration: str | None = None) -> dict[str, Quota]:
        """By integration, of all or that one: what the remote allows that it heard from last."""
        rows = await self._database.fetch(_QUOTAS, tenant, integration)
        return {row["integration"]: Quota(row["remaining"], row["reset_at"], row["not_before"]) for row in rows}
