"""Which principal a token is: API keys, sessions of users, devices; and what ends them at once, everywhere."""

from __future__ import annotations

from domain import accounts, devices, keys, messages
from infra.db import Database
from infra.tail import Tail
from projections import accounts as accounts_read
from projections import devices as devices_read
from projections import keys as keys_read
from services.gateway.auth import Authenticator, Principal
from services.gateway.streams import Streams

_SESSION = (
    "select id, tenant, owner from undrift.sessions"
    " where token_sha256 = $1 and ended_at is null and expires_at > clock_timestamp()"
)
_CONTEXTS = frozenset({keys.STREAM, devices.STREAM, accounts.STREAM})


async def look_up(database: Database, token_sha256: str) -> Principal | None:
    """The principal whose token has this SHA-256 (hex)."""
    if (key := await keys_read.by_token(database, token_sha256)) is not None:
        return Principal(
            tenant=key.tenant,
            id=key.id,
            kind="key",
            name=key.name,
            scopes=frozenset(key.scopes),
            roots=key.roots,
            connections=key.connections,
        )
    if (device := await devices_read.by_token(database, token_sha256)) is not None:
        account = await accounts_read.get(database, device.tenant, device.owner)
        if account is None or not account.enabled:
            return None
        return Principal(tenant=device.tenant, id=device.id, kind="device", name=device.name, owner=device.owner)
    if (row := await database.fetchrow(_SESSION, token_sha256)) is not None:
        account = await accounts_read.get(database, row["tenant"], row["owner"])
        if account is None or not account.enabled:
            return None
        scopes = frozenset({"admin"}) if account.role == "admin" else frozenset[str]()
        return Principal(row["tenant"], row["id"], "user", account.name, account.id, scopes)
    return None


async def watch(tail: Tail, authenticator: Authenticator, streams: Streams) -> None:
    """What was revoked opens nothing from the moment its event is read, in this process and every other, and what it
    had opened ends. Serves until cancelled."""

    def hear(recorded: messages.Recorded) -> None:
        for credential in revoke(recorded, authenticator):
            streams.revoke(credential)

    await tail.follow(hear, _CONTEXTS)


def revoke(recorded: messages.Recorded, authenticator: Authenticator) -> list[str]:
    """Takes note of an event; answers the credentials whose streams end with it."""
    match recorded.event:
        case keys.Revoked():
            authenticator.revoke(recorded.id)
            return [f"key:{recorded.id}"]
        case devices.Deleted():
            authenticator.revoke(recorded.id)
            return [f"device:{recorded.id}"]
        case devices.TokenRegenerated(before_sha256=before):
            authenticator.revoke_token(before)
            return [f"device:{recorded.id}"]
        case devices.Changed(enabled=False):
            return [f"device:{recorded.id}"]
        case accounts.SessionEnded(session=session) if session is not None:
            authenticator.revoke(session)
            return [f"user:{session}"]
        case accounts.SessionEnded() | accounts.PasswordChanged():
            return authenticator.forget_owner(recorded.tenant, recorded.id, "user")
        case accounts.Disabled() | accounts.Deleted() | accounts.Erased() | accounts.RoleChanged():
            return authenticator.forget_owner(recorded.tenant, recorded.id)
        case _:
            return []
