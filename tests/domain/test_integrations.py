"""Integrations: created, changed, started, stopped, deleted."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given as examples
from hypothesis import strategies as st
from msgspec import Raw

from domain import errors, integrations
from tests.domain.given import fold, given, held

CONFIG = Raw(b'{"a":1}')
CREATE = integrations.Create("i", "name", "files", CONFIG, 60)
CREATED = integrations.Created("name", "files", CONFIG, 60)
STOPPED = integrations.Stopped()


def change(**changes: Any) -> integrations.Change:
    return integrations.Change(**changes)


def changed(**changes: Any) -> integrations.Changed:
    before = {"name": "name", "config": CONFIG, "interval": 60, "reconfigured": False}
    return integrations.Changed(**{**before, **changes})


def test_an_integration_is_created_once() -> None:
    given(integrations).when(CREATE).then(CREATED)
    given(integrations, CREATED).when(CREATE).refused(errors.AlreadyExists)
    given(integrations, CREATED, integrations.Deleted()).when(CREATE).then(CREATED)


@pytest.mark.parametrize("id", ["a", "0", "a-b", "x" * 64, "files-integration-1"])
def test_ids(id: str) -> None:
    given(integrations).when(msgspec.structs.replace(CREATE, id=id)).then(CREATED)


@pytest.mark.parametrize("id", ["", "-a", "A", "a_b", "a/b", "é", "x" * 65, "status", "a\n", "a b", "stop.all"])
def test_wrong_ids(id: str) -> None:
    given(integrations).when(msgspec.structs.replace(CREATE, id=id)).refused(errors.Invalid)


@pytest.mark.parametrize("seconds", [1, 600, 31_536_000, None])
def test_intervals(seconds: int | None) -> None:
    integrations.decide(msgspec.structs.replace(CREATE, interval=seconds), integrations.initial)
    events = integrations.decide(change(interval=seconds), fold(integrations, [CREATED]))
    assert fold(integrations, [CREATED, *events]).interval == seconds


@pytest.mark.parametrize("seconds", [0, -1, 31_536_001, 10**18])
def test_wrong_intervals(seconds: int) -> None:
    given(integrations).when(msgspec.structs.replace(CREATE, interval=seconds)).refused(errors.Invalid)
    given(integrations, CREATED).when(change(interval=seconds)).refused(errors.Invalid)


def test_what_is_not_named_stays() -> None:
    past = given(integrations, CREATED)
    past.when(change(name="other")).then(changed(name="other"))
    past.when(change(interval=None)).then(changed(interval=None))
    past.when(change(config=Raw(b'{"a":2}'))).then(changed(config=Raw(b'{"a":2}'), reconfigured=True))


def test_a_change_that_changes_nothing() -> None:
    past = given(integrations, CREATED)
    past.when(change()).then()
    past.when(change(name="name", interval=60, config=Raw(b'{ "a" : 1 }'))).then()


def test_another_spelling_of_the_same_configuration_does_not_void_the_baseline() -> None:
    given(integrations, CREATED).when(change(name="n", config=Raw(b'{ "a": 1}'))).then(
        changed(name="n", config=Raw(b'{ "a": 1}'))
    )


def test_its_schedule_is_on_until_it_is_stopped() -> None:
    given(integrations, CREATED).when(integrations.Start()).then()
    given(integrations, CREATED).when(integrations.Stop()).then(STOPPED)
    given(integrations, CREATED, STOPPED).when(integrations.Stop()).then()
    given(integrations, CREATED, STOPPED).when(integrations.Start()).then(integrations.Started())
    assert not fold(integrations, [CREATED, STOPPED, changed(name="other")]).active


@pytest.mark.parametrize("past", [(), (CREATED, integrations.Deleted())], ids=["never made", "deleted"])
def test_what_is_not_there(past: tuple[integrations.Event, ...]) -> None:
    for command in (change(name="x"), integrations.Start(), integrations.Stop(), integrations.Delete()):
        given(integrations, *past).when(command).refused(errors.NotFound)


commands = st.one_of(
    st.just(CREATE),
    st.builds(
        integrations.Change,
        st.sampled_from(["a", "b", msgspec.UNSET]),
        st.sampled_from([Raw(b"{}"), CONFIG, msgspec.UNSET]),
        st.sampled_from([1, 2, None, msgspec.UNSET]),
    ),
    st.sampled_from([integrations.Start(), integrations.Stop(), integrations.Delete()]),
)


@examples(st.lists(commands, max_size=30))
def test_whatever_is_said_twice_is_done_once(said: list[Any]) -> None:
    state, log = integrations.initial, []
    for command in said:
        try:
            events = integrations.decide(command, state)
        except (errors.NotFound, errors.AlreadyExists):
            continue
        log += events
        state = fold(integrations, log)
        if not isinstance(command, integrations.Create | integrations.Delete):
            assert list(integrations.decide(command, state)) == []
    assert held(integrations, log) == set()
