"""Webhooks: who is told of events, and the secret that each of them verifies with."""

from __future__ import annotations

import base64
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

from domain import catalogue, errors, messages, webhooks
from infra import egress, secrets
from infra.eventstore.recorder import Claimed
from infra.eventstore.store import Done, Wish
from infra.vault import Vault
from projections import webhooks as read
from services import deliverable
from services.gateway import webhooks_shapes as shapes
from services.gateway.dialects import timestamp_s
from services.gateway.routes import Call


def _secret(call: Call, id: str, number: int) -> str:
    """Derived, so that a retry shows the same one; kept only in the vault."""
    raw = secrets.derive(call.api.process.master, "webhook secret", call.tenant, id, str(number))
    return f"whsec_{base64.b64encode(raw).decode()}"


def _vault(call: Call) -> Vault:
    return Vault(call.api.process.db, call.api.process.master)


async def own(call: Call) -> read.Row:
    """The webhook of the path. Raises errors.NotFound."""
    await call.caught_up(webhooks.STREAM)
    row = await read.get(call.api.process.db, call.tenant, call.path("webhook_id"))
    if row is None:
        raise errors.NotFound("There is no such webhook", kind="webhook")
    return row


async def execute(call: Call, command: webhooks.Command) -> Done:
    """What the request's key did before, or a command for the webhook of the path."""
    return await call.earlier(webhooks) or await call.execute([Wish(webhooks, call.path("webhook_id"), command)])


async def subscribe(call: Call) -> Any:
    body = await call.body(shapes.Subscribe)
    done = await call.earlier(webhooks)
    if done is None:
        names = catalogue.check(body.events)
        egress.check_url(body.url, call.api.process.settings.webhooks)
        done = await _subscribe(call, webhooks.Subscribe(body.url, names, body.description, "", 0))
    first = done.events[0]
    assert isinstance(first.event, webhooks.Subscribed)
    made = shapes.Subscribed(
        subscription_id=first.id,
        url=first.event.url,
        events=list(first.event.events),
        created_at=timestamp_s(first.recorded_at),
        secret=_secret(call, first.id, 1),
    )
    return call.reply(made, done.position)


async def _subscribe(call: Call, command: webhooks.Subscribe) -> Done:
    """Takes the first free place; somebody else may take it at the same moment."""
    webhooks.decide(command, webhooks.initial)  # before anything is sealed
    id = f"wh-{uuid.uuid4().hex}"
    reference = await _vault(call).seal(call.tenant, _secret(call, id, 1), f"webhooks/{id}")
    await call.caught_up(webhooks.STREAM)
    taken = {row.slot for row in await read.list_(call.api.process.db, call.tenant)}
    for slot in range(call.api.process.settings.webhooks.endpoints_per_tenant):
        if slot in taken:
            continue
        wanted = webhooks.Subscribe(command.url, command.events, command.description, reference, slot)
        try:
            done = await call.execute([Wish(webhooks, id, wanted, fresh=True)])
        except Claimed:
            continue
        if done.replayed:  # the same request, at the same moment
            await _vault(call).forget(call.tenant, [reference])
        return done
    await _vault(call).forget(call.tenant, [reference])
    raise errors.InvalidState(f"There are {len(taken)} webhooks, and no place for more")


async def list_(call: Call) -> Any:
    position = await call.caught_up(webhooks.STREAM)
    rows = await read.list_(call.api.process.db, call.tenant)
    return call.reply(shapes.Webhooks([shapes.shape(row) for row in rows], len(rows)), position)


async def show(call: Call) -> Any:
    row = await own(call)
    return call.reply(shapes.shape(row), await call.caught_up(webhooks.STREAM))


async def _changed(call: Call, done: Done) -> Any:
    """The webhook as it is with what was done."""
    await call.api.reads.reached(done.position, call.api.process.settings.gateway.read_wait_s)
    return call.reply(shapes.shape(await own(call)), done.position)


async def change(call: Call) -> Any:
    body = await call.body(shapes.Change)
    names = None if body.events is None else catalogue.check(body.events)
    if body.url is not None:
        egress.check_url(body.url, call.api.process.settings.webhooks)
    return await _changed(call, await execute(call, webhooks.Change(body.url, names, body.description)))


async def enable(call: Call) -> Any:
    return await _changed(call, await execute(call, webhooks.Enable()))


async def delete(call: Call) -> Any:
    done = await execute(call, webhooks.Delete())
    if not done.replayed:
        state = done.state
        await _vault(call).forget(call.tenant, [one for one in (state.secret, state.previous) if one])
    return call.reply(shapes.Deleted(True, done.events[0].id), done.position)


async def rotate(call: Call) -> Any:
    body = await call.optional_body(shapes.Rotate) or shapes.Rotate()
    most_s = call.api.process.settings.webhooks.rotation_hours * 3600
    overlap_s = most_s if body.overlap_seconds is None else body.overlap_seconds
    if overlap_s > most_s:
        raise errors.Invalid(f"overlapSeconds is at most {most_s:g}")
    done = await call.earlier(webhooks) or await _rotate(call, timedelta(seconds=overlap_s))
    first = done.events[0]
    assert isinstance(first.event, webhooks.SecretRotated)
    until = timestamp_s(first.event.previous_until)
    return call.reply(shapes.Rotated(first.id, _secret(call, first.id, first.event.number), until), done.position)


async def _rotate(call: Call, overlap: timedelta) -> Done:
    """The secret before the last one is destroyed: at most two are good at a time."""
    id = call.path("webhook_id")
    while True:
        before = (await call.api.process.store.load(webhooks, messages.stream(webhooks.STREAM, call.tenant, id))).state
        number = before.secrets + 1
        webhooks.decide(webhooks.Rotate("", number, datetime.now(UTC)), before)  # before anything is sealed
        reference = await _vault(call).seal(call.tenant, _secret(call, id, number), f"webhooks/{id}")
        command = webhooks.Rotate(reference, number, datetime.now(UTC) + overlap)
        try:
            done = await call.execute([Wish(webhooks, id, command)])
        except errors.Conflict:  # somebody else did at the same moment
            continue
        if before.previous is not None and not done.replayed:
            await _vault(call).forget(call.tenant, [before.previous])
        return done


async def test(call: Call) -> Any:
    done = await execute(call, webhooks.Test())
    message = deliverable.message_id(done.events[0], catalogue.TEST)
    return call.reply(shapes.Tested(True, message, done.events[0].position), done.position)


async def names(call: Call) -> Any:
    """What a webhook may ask for."""
    listed = [shapes.Entry(name, [messages.topic(kind) for kind in kinds]) for name, kinds in catalogue.PUBLIC.items()]
    return call.reply(shapes.Catalogue(listed), await call.caught_up())
