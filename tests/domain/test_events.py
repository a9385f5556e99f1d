"""What must stay true of every event: its name, its place, its shape."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from types import ModuleType, UnionType
from typing import Any, get_args, get_type_hints

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Raw, Struct

from domain import errors, events, jobs, messages

TOPICS = {
    "accounts.created",
    "accounts.deleted",
    "accounts.disabled",
    "accounts.enabled",
    "accounts.erased",
    "accounts.password_changed",
    "accounts.role_changed",
    "accounts.session_ended",
    "answers.given",
    "collections.observed",
    "consumers.issued",
    "consumers.revoked",
    "devices.caught_up",
    "devices.changed",
    "devices.deleted",
    "devices.registered",
    "devices.stale",
    "devices.token_regenerated",
    "integrations.changed",
    "integrations.created",
    "integrations.deleted",
    "integrations.overdue",
    "integrations.started",
    "integrations.stopped",
    "items.created",
    "items.deleted",
    "items.updated",
    "jobs.checkpointed",
    "jobs.completed",
    "jobs.deleted",
    "jobs.failed",
    "jobs.held",
    "jobs.paused",
    "jobs.progressed",
    "jobs.queued",
    "jobs.resumed",
    "jobs.started",
    "jobs.stop_requested",
    "jobs.stopped",
    "keys.added",
    "keys.revoked",
    "library.conflict_found",
    "library.conflict_reopened",
    "library.conflict_resolved",
    "library.created",
    "library.deleted",
    "library.modified",
    "library.moved",
    "library.restored",
    "library.touched",
    "network.parity_designated",
    "nodes.token_renewed",
    "servers.added",
    "servers.allocations_changed",
    "servers.crash_detection_changed",
    "servers.crashed",
    "servers.deleted",
    "servers.environment_changed",
    "servers.files_restricted",
    "servers.limits_changed",
    "servers.mounts_changed",
    "servers.power_asked",
    "servers.power_changed",
    "servers.process_changed",
    "servers.renamed",
    "servers.rolled_back",
    "servers.start_failed",
    "servers.startup_changed",
    "servers.suspended",
    "servers.tokens_denied",
    "servers.unsuspended",
    "servers.user_deauthorized",
    "sessions.attached",
    "sessions.cancelled",
    "sessions.completed",
    "sessions.completion_requested",
    "sessions.failed",
    "sessions.started",
    "tenants.added",
    "uploads.cancelled",
    "uploads.completed",
    "uploads.expired",
    "uploads.failed",
    "uploads.joined",
    "uploads.opened",
    "webhooks.changed",
    "webhooks.deleted",
    "webhooks.disabled",
    "webhooks.enabled",
    "webhooks.replayed",
    "webhooks.secret_rotated",
    "webhooks.subscribed",
    "webhooks.tested",
}
ALIASES = {
    "devices.stale": "device.stale",
    "integrations.overdue": "sync.overdue",
    "jobs.held": "sync.held",
    "jobs.completed": "sync.completed",
    "jobs.failed": "sync.failed",
    "webhooks.disabled": "endpoint.disabled",
}


def defined(context: ModuleType) -> list[type[messages.Event]]:
    found = [one for one in vars(context).values() if isinstance(one, type) and issubclass(one, messages.Event)]
    return list(dict.fromkeys(found))


def snake(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()


def test_no_name_is_ever_changed_or_dropped() -> None:
    assert set(events.REGISTRY) >= TOPICS
    assert {topic: kind.ALIAS for topic, kind in events.REGISTRY.items() if kind.ALIAS}.items() >= ALIASES.items()


def test_this_list_is_complete() -> None:
    assert set(events.REGISTRY) == TOPICS


@pytest.mark.parametrize("context", events.CONTEXTS, ids=lambda context: context.STREAM)
def test_every_event_of_a_context_is_in_its_union_and_in_the_registry(context: Any) -> None:
    union = get_args(context.Event) if isinstance(context.Event, UnionType) else (context.Event,)
    assert set(defined(context)) == set(union)
    assert set(union) <= set(events.REGISTRY.values())
    assert context.__name__ == f"domain.{context.STREAM}"


def test_topics_are_unique() -> None:
    assert len(events.REGISTRY) == sum(len(defined(context)) for context in events.CONTEXTS)


@pytest.mark.parametrize(("topic", "kind"), events.REGISTRY.items())
def test_a_topic_is_its_context_and_its_name(topic: str, kind: type[messages.Event]) -> None:
    context = kind.__module__.rpartition(".")[2]
    assert topic == f"{context}.{snake(kind.__name__)}" == messages.topic(kind)


@pytest.mark.parametrize("kind", events.REGISTRY.values())
def test_an_event_is_frozen_and_tagged(kind: type[messages.Event]) -> None:
    assert kind.__struct_config__.frozen
    assert kind.__struct_config__.tag_field == "event"
    assert kind.SCHEMA >= 1


@pytest.mark.parametrize("kind", events.REGISTRY.values())
def test_personal_fields_can_say_that_they_were_erased(kind: type[messages.Event]) -> None:
    for name in kind.PERSONAL:
        assert msgspec.convert("erased", get_type_hints(kind)[name]) == "erased"


@pytest.mark.parametrize("kind", events.REGISTRY.values())
def test_only_what_is_public_has_an_alias(kind: type[messages.Event]) -> None:
    assert kind.PUBLIC or kind.ALIAS is None


def examples(kind: type[messages.Event]) -> st.SearchStrategy[Any]:
    hints = {name: hint for name, hint in get_type_hints(kind).items() if name in kind.__struct_fields__}
    return st.builds(kind, **{name: values(hint) for name, hint in hints.items()})


def values(hint: Any) -> st.SearchStrategy[Any]:
    if hint is Raw:
        return st.sampled_from([Raw(b"{}"), Raw(b'{"a":[1,null,"\xc3\xa9"]}')])
    if hint is datetime:
        return st.datetimes(timezones=st.just(UTC))
    if hint == dict[str, Any]:
        return st.dictionaries(st.text(max_size=5), st.integers(), max_size=2)
    if isinstance(hint, UnionType):
        return st.one_of(*(values(one) for one in get_args(hint)))
    if isinstance(hint, type) and issubclass(hint, Struct):
        return st.builds(hint, **{name: values(one) for name, one in get_type_hints(hint).items()})
    return st.from_type(hint)


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_every_event_comes_back_from_its_json_and_every_state_takes_it(data: st.DataObject) -> None:
    """`evolve` never raises, whatever came before; `claims` are a function of the event."""
    context = data.draw(st.sampled_from(events.CONTEXTS))
    state = context.initial
    for kind in data.draw(st.lists(st.sampled_from(defined(context)), min_size=1, max_size=4)):
        event = data.draw(examples(kind))
        assert msgspec.json.decode(msgspec.json.encode(event), type=kind) == event
        state = context.evolve(state, event)
        assert isinstance(state, type(context.initial))
        first, second = list(context.claims(event)), list(context.claims(event))
        assert first == second
        assert all(claim.kind and claim.action in ("take", "release") for claim in first)


def catalogue() -> Iterator[type[errors.Error]]:
    for kind in vars(errors).values():
        if isinstance(kind, type) and issubclass(kind, errors.Error):
            yield kind


def test_every_error_has_a_code_of_its_own_and_a_title() -> None:
    codes = [kind.code for kind in catalogue()]
    assert len(codes) == len(set(codes))
    for kind in catalogue():
        assert re.fullmatch(r"[a-z_]+", kind.code)
        assert kind().message == (kind.__doc__ or "").splitlines()[0].rstrip(".")
        assert kind.code == "error" or kind.code == snake(kind.__name__)


def test_an_error_keeps_its_details() -> None:
    error = errors.NotFound("none", kind="job")
    assert (error.message, error.details, error.code) == ("none", {"kind": "job"}, "not_found")


def test_statuses_are_the_seven_of_the_contract() -> None:
    assert set(jobs.STATUSES) == {"queued", "running", "paused", "stopping", "stopped", "completed", "failed"}
    assert set(jobs.STATUSES) > jobs.OPEN
