"""Credentials for consumers outside, who read the tenant's events from NATS."""

from __future__ import annotations

import secrets as random
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

from msgspec import Meta, Struct

from domain import consumers, errors, messages
from infra import permissions, secrets, subjects
from infra.eventstore.store import Wish
from projections import consumers as consumers_read
from services import tokens
from services.gateway import topics
from services.gateway.dialects import OURS, Reply, Timestamp, timestamp_ms
from services.gateway.routes import Call, Route

_STREAM = "EVENTS"
_YEARS = 10

Name = Annotated[str, Meta(min_length=1, max_length=255)]


class Issue(Struct, rename="camel"):
    """`expiresIn` is in seconds; without it the credential lasts until it is revoked. No `topics` are all."""

    name: Name
    topics: Annotated[list[Annotated[str, Meta(max_length=255)]], Meta(max_length=consumers.MOST_TOPICS)] = []
    expires_in: Annotated[int, Meta(ge=1, le=_YEARS * 366 * 86400)] | None = None
    tenant: str | None = None


class Credential(Struct, rename="camel"):
    """`subjects` are what it reads."""

    id: str
    name: str
    topics: list[str]
    subjects: list[str]
    created_at: Timestamp
    expires_at: Timestamp | None
    revoked_at: Timestamp | None


class Issued(Struct, rename="camel"):
    """`password` is shown here and nowhere else. A client connects to `url` as `user`, with `inboxPrefix`, asks
    JetStream in its `domain`, and calls its consumers what begins with `consumerPrefix`; those in `durables` may last
    and acknowledge."""

    credential: Credential
    url: str
    user: str
    password: str
    stream: str
    domain: str
    api_prefix: str
    inbox_prefix: str
    consumer_prefix: str
    durables: list[str]
    subjects: list[str]


class Credentials(Struct):
    credentials: list[Credential]


def _shape(row: consumers_read.Row) -> Credential:
    return Credential(
        id=row.id,
        name=row.name,
        topics=list(row.topics),
        subjects=list(subjects.events_of(row.tenant, row.topics)),
        created_at=timestamp_ms(row.created_at),
        expires_at=None if row.expires_at is None else timestamp_ms(row.expires_at),
        revoked_at=None if row.revoked_at is None else timestamp_ms(row.revoked_at),
    )


def _token(call: Call, id: str) -> str:
    """Derived, so that a retry shows the same one and nothing keeps it."""
    return f"udn_{id}_{secrets.token(call.api.process.master, 'consumer', id)}"


async def issue(call: Call) -> Any:
    body = await call.body(Issue)
    if not call.api.process.settings.nats.public_url:
        raise errors.Unavailable("No consumers are let in here: nats.public_url and nats.issuer are not set")
    if body.tenant not in (None, call.tenant):
        raise errors.NotFound("There is no such tenant", kind="tenant")
    wanted = topics.check(body.topics)
    done = await call.earlier(consumers)
    if done is None:
        id = f"nc{random.token_hex(9)}"
        until = None
        if body.expires_in is not None:
            until = datetime.now(UTC) + timedelta(seconds=body.expires_in)
        command = consumers.Issue(body.name, tokens.digest(_token(call, id)), wanted, until)
        done = await call.execute([Wish(consumers, id, command, fresh=True)])
    # The token opens something once the read model knows it.
    await call.api.reads.reached(done.position, call.api.process.settings.gateway.read_wait_s)
    return call.reply(_issued(call, done.events[0]), done.position)


def _issued(call: Call, first: messages.Recorded) -> Issued:
    event = first.event
    assert isinstance(event, consumers.Issued)
    row = consumers_read.Row(
        first.tenant, first.id, event.name, "", event.topics, first.recorded_at, expires_at=event.expires_at
    )
    credential = _shape(row)
    return Issued(
        credential=credential,
        url=call.api.process.settings.nats.public_url,
        user=first.id,
        password=_token(call, first.id),
        stream=_STREAM,
        domain=first.id,
        api_prefix=f"$JS.{first.id}.API",
        inbox_prefix=permissions.inbox(first.id),
        consumer_prefix=first.id,
        durables=list(permissions.acknowledging(first.id)),
        subjects=credential.subjects,
    )


async def list_(call: Call) -> Any:
    position = await call.caught_up(consumers.STREAM)
    rows = await consumers_read.list_(call.api.process.db, call.tenant)
    return call.reply(Credentials([_shape(row) for row in rows]), position)


async def show(call: Call) -> Any:
    position = await call.caught_up(consumers.STREAM)
    return call.reply(_shape(await _own(call)), position)


async def revoke(call: Call) -> Any:
    """What it had opened ends within seconds, and its consumers are deleted."""
    done = await call.earlier(consumers)
    if done is None:
        await call.caught_up(consumers.STREAM)
        await _own(call)
        done = await call.execute([Wish(consumers, call.path("credential_id"), consumers.Revoke())])
    return Reply(204, b"", [(b"undrift-position", b"%d" % done.position)])


async def _own(call: Call) -> consumers_read.Row:
    row = await consumers_read.get(call.api.process.db, call.tenant, call.path("credential_id"))
    if row is None:
        raise errors.NotFound("There is no such credential", kind="credential")
    return row


_BASE = "/api/v1/feeds/credentials"
_ONE = _BASE + "/{credential_id:str}"
_READ = (400, 401, 403, 503)
_WRITE = (400, 401, 403, 404, 409, 413, 415, 422, 503)

ROUTES: Sequence[Route] = (
    Route(
        "GET",
        _BASE,
        list_,
        OURS,
        "List the credentials of consumers outside",
        needs="feeds:read",
        answers={200: Credentials},
        errors=_READ,
    ),
    Route(
        "POST",
        _BASE,
        issue,
        OURS,
        "Issue a credential with which a NATS consumer reads the tenant's events, and nothing else",
        needs="feeds:write",
        body=Issue,
        answers={200: Issued},
        errors=_WRITE,
    ),
    Route("GET", _ONE, show, OURS, "One credential", needs="feeds:read", answers={200: Credential}, errors=_READ),
    Route("DELETE", _ONE, revoke, OURS, "Revoke a credential", needs="feeds:write", answers={204: None}, errors=_WRITE),
)
