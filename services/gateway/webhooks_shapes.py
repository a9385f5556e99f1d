"""What webhooks look like over HTTP: the words of requests and of answers."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta, Raw, Struct

from domain import catalogue, webhooks
from projections import webhooks as read
from services.gateway.dialects import Timestamp, timestamp_s

NAMES = ["*", *sorted({f"{name.partition('.')[0]}.*" for name in catalogue.PUBLIC}), *catalogue.PUBLIC]
URL_MAX = 2048

Url = Annotated[str, Meta(min_length=1, max_length=URL_MAX, extra_json_schema={"format": "uri"})]
Name = Annotated[str, Meta(min_length=1, max_length=100, extra_json_schema={"enum": NAMES})]
Names = Annotated[list[Name], Meta(min_length=1, max_length=100)]
Description = Annotated[str, Meta(max_length=webhooks.DESCRIPTION_MAX)]
Position = Annotated[int, Meta(ge=1, le=2**62)]
Overlap = Annotated[int, Meta(ge=0, le=86_400)]


class Subscribe(Struct):
    """`events` are names of the catalogue, `jobs.*` for all that begin so, or `*` for all."""

    url: Url
    events: Names
    description: Description = ""


class Change(Struct):
    """What is left out stays."""

    url: Url | None = None
    events: Names | None = None
    description: Description | None = None


class Rotate(Struct, rename="camel"):
    """For `overlapSeconds` what is sent is signed with both secrets; as long as the settings allow, where it is left
    out."""

    overlap_seconds: Overlap | None = None


class Replay(Struct, rename="camel"):
    """A range of positions or of times, ends included; to the end of the log where no end is named. `events` are those
    the webhook asked for where they are left out. `dryRun` only counts."""

    from_position: Position | None = None
    from_time: Timestamp | None = None
    until_position: Position | None = None
    until_time: Timestamp | None = None
    events: Names | None = None
    dry_run: bool = False


class Subscribed(Struct, rename="camel"):
    """`secret` is shown here, and nowhere else."""

    subscription_id: str
    url: str
    events: list[str]
    created_at: Timestamp
    secret: str


class Webhook(Struct, rename="camel"):
    """`disabledReason` is null while it is enabled. `previousSecretUntil` is when the secret before the present one
    stops, null where there was none."""

    subscription_id: str
    url: str
    events: list[str]
    description: str
    enabled: bool
    disabled_reason: str | None
    disabled_at: Timestamp | None
    previous_secret_until: Timestamp | None
    created_at: Timestamp
    updated_at: Timestamp


class Webhooks(Struct):
    webhooks: list[Webhook]
    total: int


class Deleted(Struct):
    success: bool
    deleted: str


class Rotated(Struct, rename="camel"):
    """`secret` is shown here, and nowhere else; the one before is good until `previousSecretUntil`."""

    subscription_id: str
    secret: str
    previous_secret_until: Timestamp


class Tested(Struct, rename="camel"):
    """What is sent has this `webhookId`."""

    success: bool
    webhook_id: str
    position: int


class Replayed(Struct, rename="camel"):
    """`count` messages of the events at these positions; `replayId` marks them, null for a dry run."""

    replay_id: str | None
    count: int
    from_position: int
    until_position: int
    dry_run: bool


class Delivery(Struct, rename="camel"):
    """`state` is pending, delivered, exhausted (given up) or dropped; `status` and `error` are those of the last
    attempt, `dueAt` is when the next one may begin."""

    seq: int
    position: int
    webhook_id: str
    name: str
    state: str
    attempts: int
    status: int | None
    error: str | None
    replay: str | None
    due_at: Timestamp | None
    first_attempt_at: Timestamp | None
    last_attempt_at: Timestamp | None
    took_ms: int | None


class Deliveries(Struct):
    """The newest first. `next` is the `before` of the following page, null on the last."""

    deliveries: list[Delivery]
    next: int | None


class Redelivered(Struct):
    success: bool
    seq: int
    state: str


class Message(Struct, rename="camel"):
    """`body` is, byte for byte, what was or will be posted under this `webhookId`; null where the event cannot be read
    any more."""

    seq: int
    position: int
    webhook_id: str
    name: str
    state: str
    replay: str | None
    body: Annotated[Raw, Meta(extra_json_schema={"type": ["object", "null"]})]


class Page(Struct):
    """`next` is the `after` of the following page, `first` the oldest number that is kept, `last` the last one given
    out; all in this `epoch`."""

    events: list[Message]
    next: int
    first: int
    last: int
    epoch: int


class Entry(Struct):
    """A public name, and the topics of the log whose events go out under it."""

    name: str
    topics: list[str]


class Catalogue(Struct):
    events: list[Entry]


def shape(row: read.Row) -> Webhook:
    return Webhook(
        subscription_id=row.id,
        url=row.url,
        events=list(row.events),
        description=row.description,
        enabled=row.reason is None,
        disabled_reason=row.reason,
        disabled_at=_time(row.disabled_at),
        previous_secret_until=_time(row.previous_until),
        created_at=timestamp_s(row.created_at),
        updated_at=timestamp_s(row.updated_at),
    )


def delivery(row: Any) -> Delivery:
    """Of a row of undrift.deliveries."""
    return Delivery(
        seq=row["seq"],
        position=row["position"],
        webhook_id=row["message"],
        name=row["name"],
        state=row["state"],
        attempts=row["attempts"],
        status=row["status"],
        error=row["error"],
        replay=row["replay"],
        due_at=_time(row["due"]) if row["state"] == "pending" else None,
        first_attempt_at=_time(row["first_at"]),
        last_attempt_at=_time(row["last_at"]),
        took_ms=row["took_ms"],
    )


def _time(at: Any) -> Timestamp | None:
    return None if at is None else timestamp_s(at)
