"""A device whose ack reaches the head of the library, after something new to it, has caught up: once."""

from __future__ import annotations

from typing import Any

import pytest

from tests.journeys.libraries import Device, user
from tests.journeys.system import System, at_once


def said(system: System, device: Device) -> list[dict[str, Any]]:
    """What was said of the device's catching up."""
    subject = f"devices/main/{device.id}"
    found = [one for one in system.events() if one["subject"] == subject and one["type"] == "devices.caught_up"]
    return [one["data"] for one in found]


@pytest.fixture
def pair(system: System) -> tuple[Device, Device]:
    one, other = user(system).pair()
    return one, other


def test_an_ack_at_the_head_is_said_once(system: System, pair: tuple[Device, Device]) -> None:
    one, other = pair
    for name in "abc":
        one.upload(name, name.encode())
    assert len(other.follow()) == 3
    [first] = said(system, other)
    assert first["changes"] == 3
    other.ack()
    other.follow()
    assert said(system, other) == [first]
    one.upload("d", b"d")
    other.follow()
    [_, second] = said(system, other)
    assert (second["changes"], second["acked"] > first["acked"]) == (1, True)


def test_an_ack_short_of_the_head_says_nothing(system: System, pair: tuple[Device, Device]) -> None:
    one, other = pair
    for name in "abc":
        one.upload(name, name.encode())
    for left in (2, 1, 0):
        at = "" if other.cursor is None else f"&cursor={other.cursor}"
        other.cursor = other.ok("GET", f"/api/v1/sync/changes?limit=1{at}")["cursor"]
        other.ack()
        assert len(said(system, other)) == (not left)
    assert said(system, other)[0]["changes"] == 3


def test_a_devices_own_changes_are_not_new_to_it(system: System, pair: tuple[Device, Device]) -> None:
    one, other = pair
    for name in "ab":
        one.upload(name, name.encode())
        one.follow()
    assert said(system, one) == []
    other.upload("c", b"c")
    one.upload("d", b"d")
    one.follow()
    assert [event["changes"] for event in said(system, one)] == [1]


def test_an_empty_library_is_nothing_to_catch_up_with(system: System, pair: tuple[Device, Device]) -> None:
    one, _ = pair
    one.cursor = one.ok("GET", "/api/v1/sync/snapshot")["cursor"]
    one.ack()
    assert said(system, one) == []


def test_many_acks_at_once_are_one(system: System, pair: tuple[Device, Device]) -> None:
    one, other = pair
    one.upload("a", b"a")
    other.changes()
    at_once(8, lambda _: other.ack())
    assert len(said(system, other)) == 1


def test_what_was_lost_between_an_ack_and_its_event_is_said_when_it_is_repeated(
    system: System, pair: tuple[Device, Device]
) -> None:
    """As if it had been killed after either of the two rows that stand around the event."""
    one, other = pair
    one.upload("a", b"a")
    other.changes()
    acked = "update undrift.device_state set acked_pos = delivered_pos where device = %s returning acked_pos"
    assert system.sql(acked, other.id)[0][0] > 0
    assert said(system, other) == []
    other.ack()
    assert len(said(system, other)) == 1
    judged = "update undrift.device_state set judged_pos = 0 where device = %s returning judged_pos"
    assert system.sql(judged, other.id) == [(0,)]
    other.ack()
    assert len(said(system, other)) == 1
