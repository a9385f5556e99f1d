"""The read model of webhooks is true to the domain, after any sequence of events."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from domain import errors, messages, webhooks
from projections import webhooks as read

T0 = datetime(2026, 1, 1, tzinfo=UTC)


def recorded(position: int, event: messages.Event) -> messages.Recorded:
    return messages.Recorded(
        position=position,
        tenant="main",
        stream="webhooks/main/wh-1",
        version=position,
        event_id=UUID(int=position),
        event=event,
        metadata=messages.Metadata(),
        recorded_at=T0 + timedelta(seconds=position),
    )


def command(pick: random.Random, state: webhooks.Endpoint) -> webhooks.Command:
    names = pick.choice((("*",), ("jobs.*", "sync.failed")))
    url = f"https://example.org/{pick.randrange(3)}"
    wanted: list[webhooks.Command] = [
        webhooks.Subscribe(url, names, "mine", "sealed:1", pick.randrange(4)),
        webhooks.Change(url=url),
        webhooks.Change(events=names, description=f"d{pick.randrange(3)}"),
        webhooks.Rotate(f"sealed:{state.secrets + 1}", state.secrets + 1, T0 + timedelta(days=pick.randrange(9))),
        webhooks.Disable(f"reason {pick.randrange(3)}"),
        webhooks.Enable(),
        webhooks.Replay("rp-1", 1, 2, names, 3),
        webhooks.Test(),
    ]
    if pick.random() < 0.05:
        wanted.append(webhooks.Delete())
    return pick.choice(wanted)


@pytest.mark.parametrize("seed", range(20))
def test_it_is_what_the_events_come_to(seed: int) -> None:
    pick = random.Random(seed)
    state, row, position = webhooks.initial, None, 0
    for _ in range(60):
        try:
            events = webhooks.decide(command(pick, state), state)
        except errors.Error:
            continue
        for event in events:
            position += 1
            state = webhooks.evolve(state, event)
            row = read.fold(row, recorded(position, event))
            if state.deleted:
                assert row is None
                return
            assert row is not None
            assert (row.url, row.events, row.description) == (state.url, state.events, state.description)
            assert (row.secrets, row.previous_until, row.slot) == (state.secrets, state.previous_until, state.slot)
            assert (row.reason, row.reason is None) == (state.reason, state.enabled)
            assert (row.disabled_at is None, row.position) == (state.enabled, position)
    assert position > 10


def test_what_was_never_subscribed_cannot_change() -> None:
    with pytest.raises(LookupError):
        read.fold(None, recorded(1, webhooks.Enabled()))
