"""Webhooks: an endpoint's life, and the public names that it may ask for."""

from __future__ import annotations

from datetime import UTC, datetime

import msgspec
import pytest
from msgspec import Raw
from msgspec.structs import replace

from domain import catalogue, errors, events, jobs, library, messages, webhooks
from tests.domain.given import given, held

AT = datetime(2026, 1, 1, tzinfo=UTC)
SUBSCRIBE = webhooks.Subscribe("https://example.org/hook", ("sync.completed",), "mine", "sealed:1", 3)
SUBSCRIBED = webhooks.Subscribed("https://example.org/hook", ("sync.completed",), "mine", "sealed:1", 3)
DISABLED = webhooks.Disabled("it answered 410")
DELETED = webhooks.Deleted(3)
OTHERS = (
    webhooks.Change(description="x"),
    webhooks.Rotate("sealed:2", 2, AT),
    webhooks.Disable("x"),
    webhooks.Enable(),
    webhooks.Delete(),
    webhooks.Replay("rp-1", 1, 2, ("*",), 0),
    webhooks.Test(),
)


def test_an_endpoint_is_subscribed_once() -> None:
    given(webhooks).when(SUBSCRIBE).then(SUBSCRIBED)
    given(webhooks, SUBSCRIBED).when(SUBSCRIBE).then()
    given(webhooks).when(replace(SUBSCRIBE, description="x" * 1001)).refused(errors.Invalid)
    given(webhooks).when(replace(SUBSCRIBE, description="a\nb")).refused(errors.Invalid)


@pytest.mark.parametrize("command", OTHERS, ids=lambda one: type(one).__name__)
def test_what_is_not_there_is_not_found(command: webhooks.Command) -> None:
    given(webhooks).when(command).refused(errors.NotFound)
    given(webhooks, SUBSCRIBED, DELETED).when(command).refused(errors.NotFound)


def test_what_is_left_out_of_a_change_stays() -> None:
    changed = webhooks.Changed("https://example.org/hook", ("jobs.*",), "mine")
    given(webhooks, SUBSCRIBED).when(webhooks.Change(events=("jobs.*",))).then(changed)
    given(webhooks, SUBSCRIBED).when(webhooks.Change()).then()
    given(webhooks, SUBSCRIBED, changed).when(webhooks.Change(events=("jobs.*",))).then()


def test_a_secret_follows_the_last_one() -> None:
    rotated = webhooks.SecretRotated("sealed:2", 2, "sealed:1", AT)
    given(webhooks, SUBSCRIBED).when(webhooks.Rotate("sealed:2", 2, AT)).then(rotated)
    given(webhooks, SUBSCRIBED, rotated).when(webhooks.Rotate("sealed:2", 2, AT)).refused(errors.Conflict)
    again = webhooks.SecretRotated("sealed:3", 3, "sealed:2", AT)
    given(webhooks, SUBSCRIBED, rotated).when(webhooks.Rotate("sealed:3", 3, AT)).then(again)


def test_what_is_disabled_is_sent_nothing_new() -> None:
    given(webhooks, SUBSCRIBED).when(webhooks.Disable("it answered 410")).then(DISABLED)
    given(webhooks, SUBSCRIBED, DISABLED).when(webhooks.Disable("again")).then()
    given(webhooks, SUBSCRIBED, DISABLED).when(webhooks.Test()).refused(errors.InvalidState)
    given(webhooks, SUBSCRIBED, DISABLED).when(webhooks.Replay("rp-1", 1, 2, ("*",), 2)).refused(errors.InvalidState)
    given(webhooks, SUBSCRIBED, DISABLED).when(webhooks.Enable()).then(webhooks.Enabled())
    given(webhooks, SUBSCRIBED).when(webhooks.Enable()).then()


def test_tests_are_counted_and_replays_are_as_they_were_asked_for() -> None:
    given(webhooks, SUBSCRIBED).when(webhooks.Test()).then(webhooks.Tested(1))
    given(webhooks, SUBSCRIBED, webhooks.Tested(1)).when(webhooks.Test()).then(webhooks.Tested(2))
    replayed = webhooks.Replayed("rp-1", 5, 9, ("jobs.*",), 4)
    given(webhooks, SUBSCRIBED).when(webhooks.Replay("rp-1", 5, 9, ("jobs.*",), 4)).then(replayed)


def test_a_place_is_held_until_the_end() -> None:
    assert held(webhooks, [SUBSCRIBED, DISABLED]) == {("webhooks.slot", "3")}
    assert held(webhooks, [SUBSCRIBED, DELETED]) == set()


# The catalogue.


def ended(kind: str) -> jobs.Completed:
    return jobs.Completed(jobs.Ticket("j", kind, "full_sync", "later"), jobs.Counters(), Raw(b"{}"), 5)


def failed(kind: str) -> jobs.Failed:
    return jobs.Failed(jobs.Ticket("j", kind, "full_sync", "later"), "sync_failed", "no", jobs.Counters())


def test_the_names_that_the_contract_gives_are_there() -> None:
    named = {"sync.completed", "sync.failed", "sync.overdue", "sync.held", "device.stale", "endpoint.disabled"}
    assert named <= catalogue.PUBLIC.keys()
    assert jobs.Completed in catalogue.PUBLIC["sync.completed"]
    assert catalogue.PUBLIC["library.moved"] == (library.Moved,)


def test_only_what_says_so_is_public() -> None:
    for topic, kind in events.REGISTRY.items():
        assert (topic in catalogue.names(kind)) == kind.PUBLIC
        assert (topic in catalogue.PUBLIC) == kind.PUBLIC
    assert {"keys.added", "accounts.created", "webhooks.subscribed"}.isdisjoint(catalogue.PUBLIC)


def test_the_end_of_a_sync_has_two_names_and_that_of_another_job_one() -> None:
    assert catalogue.names_of(ended("files")) == ("jobs.completed", "sync.completed")
    assert catalogue.names_of(failed("network")) == ("jobs.failed", "sync.failed")
    assert catalogue.names_of(ended("revert")) == ("jobs.completed",)
    assert catalogue.names_of(failed("revert")) == ("jobs.failed",)
    assert catalogue.names_of(messages.Unreadable("jobs.completed", "newer")) == ()


@pytest.mark.parametrize(
    ("wanted", "name", "matched"),
    [
        ("*", "jobs.completed", True),
        ("jobs.*", "jobs.completed", True),
        ("jobs.*", "sync.completed", False),
        ("job.*", "jobs.completed", False),
        ("jobs.completed", "jobs.completed", True),
        ("jobs.complete", "jobs.completed", False),
        ("jobs.*ed", "jobs.completed", False),
    ],
)
def test_what_a_name_or_a_pattern_means(wanted: str, name: str, matched: bool) -> None:
    assert catalogue.matches([wanted], name) is matched
    assert not catalogue.matches([], name)


def test_what_is_asked_for_is_kept_once_in_its_order() -> None:
    assert catalogue.check(["sync.failed", "jobs.*", "sync.failed"]) == ("sync.failed", "jobs.*")


@pytest.mark.parametrize(
    "names",
    [[], ["sync.finished"], ["sync.completed", "x"], ["keys.added"], [".*"], ["**"], ["jobs.completed.*"], [""]],
)
def test_what_no_event_is_called_is_refused(names: list[str]) -> None:
    with pytest.raises(errors.Invalid):
        catalogue.check(names)


def test_no_field_of_a_public_event_stands_in_the_way_of_what_each_body_says() -> None:
    for kinds in catalogue.PUBLIC.values():
        for kind in kinds:
            fields = {field.name for field in msgspec.structs.fields(kind)}
            assert fields.isdisjoint({"position", "context", "id", "actor", "owner", "replay"}), kind
