"""Users over HTTP: who they are, their sessions, and their administration."""

from __future__ import annotations

import asyncio
import hmac
import os
import unicodedata
import uuid
from base64 import urlsafe_b64encode
from collections.abc import Sequence
from datetime import datetime, timedelta
from functools import cache
from typing import Annotated, Any

import asyncpg
from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from msgspec import Meta, Struct
from msgspec.structs import replace

from domain import accounts, errors
from infra import secrets
from infra.eventstore.recorder import Claimed
from infra.eventstore.store import Wish
from projections import accounts as accounts_read
from services import tokens
from services.gateway.dialects import PINAKES, Reply, Timestamp, timestamp_ms
from services.gateway.routes import Call, Route

Name = Annotated[str, Meta(min_length=1, max_length=64)]
Password = Annotated[str, Meta(min_length=8, max_length=1024)]

#: Users are administered by a key with `admin`, too: somebody has to make the first one.
_ADMINISTERED = replace(PINAKES, admits=frozenset({"user", "key"}))
_PASSWORDS = PasswordHasher()
#: Hashing takes a processor and 64 MiB; more at once would only starve everybody else.
_HASHING = asyncio.Semaphore(2)


class Login(Struct):
    username: Annotated[str, Meta(max_length=255)]
    password: Annotated[str, Meta(max_length=1024)]


class User(Struct):
    id: str
    username: str
    role: str
    enabled: bool
    created_at: Timestamp


class Session(Struct):
    """`token` is shown to whoever has just logged in, or holds it."""

    token: str
    expires_at: Timestamp
    user: User


class OpenSession(Struct):
    id: str
    client: str
    created_at: Timestamp
    last_seen_at: Timestamp
    expires_at: Timestamp
    current: bool


class Ended(Struct):
    revoked: int


class NewUser(Struct):
    username: Name
    password: Password
    role: accounts.Role = "user"


class ChangedUser(Struct):
    password: Password | None = None
    role: accounts.Role | None = None
    enabled: bool | None = None


def name_key(master: bytes, tenant: str, name: str) -> str:
    """What a name is claimed by: it says nothing without the key, and does not tell case."""
    key = secrets.derive(master, "account names", tenant)
    return hmac.new(key, unicodedata.normalize("NFC", name).casefold().encode(), "sha256").hexdigest()


@cache
def _nobodys() -> str:
    return _PASSWORDS.hash("nobody's")


async def _hash(password: str) -> str:
    async with _HASHING:
        return await asyncio.to_thread(_PASSWORDS.hash, password)


async def _matches(hash: str, password: str) -> bool:
    async with _HASHING:
        try:
            return await asyncio.to_thread(_PASSWORDS.verify, hash, password)
        except (VerificationError, InvalidHashError):
            return False


def _user(row: accounts_read.Row) -> User:
    return User(row.id, row.name, row.role, row.enabled, timestamp_ms(row.created_at))


# Sessions.


async def login(call: Call) -> Any:
    body = await call.body(Login)
    process = call.api.process
    row = await accounts_read.by_name(process.db, "main", name_key(process.master, "main", body.username))
    hash = None
    if row is not None:
        hash = await process.db.fetchval(
            "select hash from undrift_keys.passwords where tenant = $1 and owner = $2", row.tenant, row.id
        )
    # An unknown name takes as long as a wrong password.
    fits = await _matches(hash or _nobodys(), body.password)
    if row is None or hash is None or not fits or not row.enabled:
        raise errors.Unauthenticated("The name or the password is wrong")
    id = str(uuid.uuid4())
    token = f"uds_{id}_{urlsafe_b64encode(os.urandom(32)).decode().rstrip('=')}"
    expires = await process.db.fetchval(
        "insert into undrift.sessions (id, tenant, owner, token_sha256, client, expires_at)"
        " values ($1, $2, $3, $4, $5, clock_timestamp() + $6) returning expires_at",
        id,
        row.tenant,
        row.id,
        tokens.digest(token),
        _client(call),
        timedelta(days=process.settings.auth.session_days),
    )
    return call.reply(Session(token, timestamp_ms(expires), _user(row)), call.api.reads.position)


def _client(call: Call) -> str:
    said = call.fields.get(b"user-agent", b"")[:200].decode("latin-1")
    return "".join(letter for letter in said if letter.isprintable())


async def me(call: Call) -> Any:
    position = await call.caught_up(accounts.STREAM)
    return call.reply(_user(await _account(call, call.principal.owner)), position)


async def refresh(call: Call) -> Any:
    process = call.api.process
    expires: datetime | None = await process.db.fetchval(
        "update undrift.sessions set expires_at = greatest(expires_at, clock_timestamp() + $2),"
        " last_seen_at = clock_timestamp() where id = $1 and ended_at is null returning expires_at",
        _session(call),
        timedelta(days=process.settings.auth.session_days),
    )
    if expires is None:
        raise errors.Unauthenticated
    user = _user(await _account(call, call.principal.owner))
    token = call.fields[b"authorization"].partition(b" ")[2].strip().decode("ascii")
    return call.reply(Session(token, timestamp_ms(expires), user), call.api.reads.position)


def _session(call: Call) -> str:
    if call.principal.kind != "user":
        raise errors.Forbidden("This needs a user's session")
    return call.principal.id


async def sessions(call: Call) -> Any:
    current = _session(call)
    rows = await call.api.process.db.fetch(
        "select * from undrift.sessions where tenant = $1 and owner = $2 and ended_at is null"
        " and expires_at > clock_timestamp() order by created_at",
        call.tenant,
        call.principal.owner,
    )
    return call.reply([_open(row, current) for row in rows], call.api.reads.position)


def _open(row: asyncpg.Record, current: str) -> OpenSession:
    return OpenSession(
        id=row["id"],
        client=row["client"],
        created_at=timestamp_ms(row["created_at"]),
        last_seen_at=timestamp_ms(row["last_seen_at"]),
        expires_at=timestamp_ms(row["expires_at"]),
        current=row["id"] == current,
    )


async def logout(call: Call) -> Any:
    return call.reply(Ended(await _end(call, call.principal.owner, _session(call))), call.api.reads.position)


async def revoke_all(call: Call) -> Any:
    _session(call)
    return call.reply(Ended(await _end(call, call.principal.owner, None)), call.api.reads.position)


async def end_session(call: Call) -> Any:
    _session(call)
    if not await _end(call, call.principal.owner, call.path("session_id")):
        raise errors.NotFound("There is no such session", kind="session")
    return Reply(204)


async def _end(call: Call, owner: str, session: str | None) -> int:
    """Ends one session or all, first in the rows, then by an event that every gateway hears."""
    ended = await call.api.process.db.fetch(
        "update undrift.sessions set ended_at = clock_timestamp() where tenant = $1 and owner = $2"
        " and ($3::text is null or id = $3) and ended_at is null returning id",
        call.tenant,
        owner,
        session,
    )
    for row in ended:
        call.api.authenticator.revoke(row["id"])
        call.api.live.streams.revoke(f"user:{row['id']}")
    if ended:
        await _execute(call, owner, accounts.EndSession(session))
    return len(ended)


# Administration.


async def _account(call: Call, id: str) -> accounts_read.Row:
    row = await accounts_read.get(call.api.process.db, call.tenant, id)
    if row is None:
        raise errors.NotFound("There is no such user", kind="user")
    return row


async def _execute(call: Call, owner: str, command: accounts.Command, *, fresh: bool = False) -> int:
    """Under the user's own key for what is personal, whoever asks."""
    metadata = replace(call.metadata(), owner=owner, subject=owner)
    wish = Wish(accounts, owner, command, fresh=fresh)
    try:
        done = await call.api.process.store.execute_all([wish], tenant=call.tenant, metadata=metadata)
    except Claimed:
        raise errors.AlreadyExists("There is a user of that name") from None
    call.api.reads.wrote(call.principal.actor, done.position, accounts.STREAM)
    return done.position


async def list_(call: Call) -> Any:
    position = await call.caught_up(accounts.STREAM)
    rows = await accounts_read.list_(call.api.process.db, call.tenant)
    return call.reply([_user(row) for row in rows], position)


async def create(call: Call) -> Any:
    body = await call.body(NewUser)
    accounts.check_name(body.username)
    process, id = call.api.process, str(uuid.uuid4())
    await _keep_password(call, id, await _hash(body.password))
    key = name_key(process.master, call.tenant, body.username)
    position = await _execute(call, id, accounts.Create(body.username, key, body.role), fresh=True)
    await call.api.reads.reached(position, process.settings.gateway.read_wait_s)
    return call.reply(_user(await _account(call, id)), position)


async def _keep_password(call: Call, owner: str, hash: str) -> None:
    await call.api.process.db.execute(
        "insert into undrift_keys.passwords (tenant, owner, hash) values ($1, $2, $3)"
        " on conflict (tenant, owner) do update set hash = excluded.hash, changed_at = clock_timestamp()",
        call.tenant,
        owner,
        hash,
    )


async def show(call: Call) -> Any:
    position = await call.caught_up(accounts.STREAM)
    return call.reply(_user(await _account(call, call.path("user_id"))), position)


async def change(call: Call) -> Any:
    body = await call.body(ChangedUser)
    id = call.path("user_id")
    await call.caught_up(accounts.STREAM)
    await _account(call, id)
    position = call.api.reads.position
    if body.role is not None:
        position = await _execute(call, id, accounts.ChangeRole(body.role))
    if body.enabled is not None:
        position = await _execute(call, id, accounts.Enable() if body.enabled else accounts.Disable())
    if body.password is not None:
        await _keep_password(call, id, await _hash(body.password))
        position = await _execute(call, id, accounts.ChangePassword())
        await _end(call, id, None)
    await call.api.reads.reached(position, call.api.process.settings.gateway.read_wait_s)
    return call.reply(_user(await _account(call, id)), position)


async def delete(call: Call) -> Any:
    id = call.path("user_id")
    await call.caught_up(accounts.STREAM)
    await _account(call, id)
    await _end(call, id, None)
    position = await _execute(call, id, accounts.Delete())
    await call.api.process.db.execute(
        "delete from undrift_keys.passwords where tenant = $1 and owner = $2", call.tenant, id
    )
    return Reply(204, b"", [(b"undrift-position", b"%d" % position)])


_OPEN = (400, 401, 413, 415, 503)
_READ = (400, 401, 403, 404, 503)
_WRITE = (400, 401, 403, 404, 409, 413, 415, 422, 503)
_AUTH = "/api/v1/auth"
_USERS = "/api/v1/admin/users"
_ONE = _USERS + "/{user_id:str}"


def _admin(method: str, path: str, handler: Any, summary: str, answer: Any, body: Any = None) -> Route:
    status = 204 if answer is None else 200
    failures = _READ if method == "GET" else _WRITE
    return Route(
        method,
        path,
        handler,
        _ADMINISTERED,
        summary,
        needs="admin",
        body=body,
        answers={status: answer},
        errors=failures,
    )


ROUTES: Sequence[Route] = (
    Route(
        "POST",
        _AUTH + "/login",
        login,
        PINAKES,
        "Open a session",
        open=True,
        body=Login,
        answers={200: Session},
        errors=_OPEN,
    ),
    Route("GET", _AUTH + "/me", me, PINAKES, "Who this is", answers={200: User}, errors=_READ),
    Route("POST", _AUTH + "/refresh", refresh, PINAKES, "Extend the session", answers={200: Session}, errors=_READ),
    Route("POST", _AUTH + "/logout", logout, PINAKES, "End this session", answers={200: Ended}, errors=_WRITE),
    Route("POST", _AUTH + "/revoke-all", revoke_all, PINAKES, "End all sessions", answers={200: Ended}, errors=_WRITE),
    Route(
        "GET", _AUTH + "/sessions", sessions, PINAKES, "Open sessions", answers={200: list[OpenSession]}, errors=_READ
    ),
    Route(
        "DELETE",
        _AUTH + "/sessions/{session_id:str}",
        end_session,
        PINAKES,
        "End a session",
        answers={204: None},
        errors=_WRITE,
    ),
    _admin("GET", _USERS, list_, "List users", list[User]),
    _admin("POST", _USERS, create, "Add a user", User, NewUser),
    _admin("GET", _ONE, show, "One user", User),
    _admin("PUT", _ONE, change, "Change password or role, enable or disable", User, ChangedUser),
    _admin("DELETE", _ONE, delete, "Remove a user", None),
)
