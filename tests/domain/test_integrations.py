"""Integrations: created, changed, started, stopped, deleted."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import given as examples
from hypothesis import strategies as st
from msgspec import Raw

from domain import errors, integrations
from domain.policies import Policy
from domain.schedules import Schedule
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


NIGHTLY = Schedule(cron="0 2 * * *", time_zone="Europe/Berlin", overlap="skip")
T0 = datetime(2027, 1, 1, tzinfo=UTC)


def create(**more: Any) -> integrations.Create:
    return integrations.Create("i", "name", "files", CONFIG, **more)


@pytest.mark.parametrize(
    ("said", "interval", "kept", "schedule"),
    [
        ({}, None, None, None),
        ({"interval": 60}, 60, None, Schedule(every=60)),
        ({"schedule": Schedule(every=60)}, 60, None, Schedule(every=60)),
        ({"interval": 60, "schedule": Schedule(every=60)}, 60, None, Schedule(every=60)),
        ({"interval": 60, "schedule": Schedule(jitter=5)}, 60, Schedule(every=60, jitter=5), None),
        ({"schedule": NIGHTLY}, None, NIGHTLY, NIGHTLY),
        ({"schedule": Schedule(full_every=60)}, None, Schedule(full_every=60), None),
    ],
)
def test_an_interval_or_a_schedule_or_both(
    said: dict[str, Any], interval: int | None, kept: Schedule | None, schedule: Schedule | None
) -> None:
    created = integrations.Created("name", "files", CONFIG, interval, schedule=kept)
    given(integrations).when(create(**said)).then(created)
    state = fold(integrations, [created])
    assert (state.interval, state.schedule) == (interval, schedule or kept)


def test_events_of_before_there_were_schedules_are_read() -> None:
    decode = msgspec.json.Decoder(integrations.Created | integrations.Changed).decode
    created = decode(b'{"event":"integrations.created","name":"n","kind":"files","config":{},"interval":300}')
    state = fold(integrations, [created])
    assert (state.interval, state.schedule, state.policy) == (300, Schedule(every=300), None)
    changed = decode(b'{"event":"integrations.changed","name":"n","config":{},"interval":null,"reconfigured":false}')
    assert fold(integrations, [created, changed]).schedule is None


@pytest.mark.parametrize(
    ("before", "said", "after"),
    [
        (Schedule(every=60, jitter=5), {"interval": 90}, Schedule(every=90, jitter=5)),
        (Schedule(every=60, jitter=5), {"interval": None}, None),
        (NIGHTLY, {"interval": 90}, Schedule(every=90, time_zone="Europe/Berlin", overlap="skip")),
        (NIGHTLY, {"interval": None}, None),
        (NIGHTLY, {"schedule": None}, None),
        (NIGHTLY, {"schedule": None, "interval": None}, None),
        (NIGHTLY, {"schedule": Schedule(every=90)}, Schedule(every=90)),
        (Schedule(every=60), {"schedule": NIGHTLY, "interval": None}, NIGHTLY),
        (Schedule(every=60), {"schedule": Schedule(jitter=3), "interval": 90}, Schedule(every=90, jitter=3)),
        (NIGHTLY, {"name": "other"}, NIGHTLY),
    ],
)
def test_a_changed_schedule(before: Schedule, said: dict[str, Any], after: Schedule | None) -> None:
    past = integrations.decide(create(schedule=before), integrations.initial)
    state = fold(integrations, past)
    events = integrations.decide(change(**said), state)
    state = fold(integrations, [*past, *events])
    assert (state.schedule, state.interval) == (after, after and after.every)
    assert list(integrations.decide(change(**said), state)) == []


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"interval": 60, "schedule": NIGHTLY}, "syncInterval: "),
        ({"interval": 60, "schedule": Schedule(every=61)}, "syncInterval: "),
        ({"schedule": Schedule(overlap="skip")}, "schedule: "),
        ({"schedule": Schedule(cron="bad")}, "schedule.cron: "),
        ({"interval": 60, "policy": Policy(attempts=0)}, "policy.attempts: "),
    ],
)
def test_what_contradicts_itself_is_refused(said: dict[str, Any], message: str) -> None:
    given(integrations).when(create(**said)).refused(errors.Invalid, match=f"^{message}")
    given(integrations, CREATED).when(change(**said)).refused(errors.Invalid, match=f"^{message}")
    if "interval" in said and "policy" not in said:
        said = {**said, "interval": None, "schedule": Schedule(every=5)}
        given(integrations, CREATED).when(change(**said)).refused(errors.Invalid, match="^syncInterval: ")


def test_a_policy_is_kept_until_another_one() -> None:
    policy = Policy(attempts=2)
    past = given(integrations, CREATED)
    past.when(change(policy=policy)).then(changed(policy=policy))
    past = given(integrations, CREATED, changed(policy=policy))
    past.when(change(name="other")).then(changed(name="other", policy=policy))
    past.when(change(policy=policy)).then()
    past.when(change(policy=None)).then(changed())


def test_a_run_is_for_a_schedule_that_is_on() -> None:
    given(integrations, CREATED).when(integrations.Run()).then()
    given(integrations, CREATED, STOPPED).when(integrations.Run()).refused(errors.InvalidState)
    given(integrations, CREATED, integrations.Deleted()).when(integrations.Run()).refused(errors.NotFound)


def test_a_due_time_is_overdue_once() -> None:
    overdue = integrations.Overdue("name", T0)
    later = integrations.Overdue("name", T0 + timedelta(hours=1), "main", "job", T0 + timedelta(hours=2))
    given(integrations, CREATED).when(integrations.Miss(T0)).then(overdue)
    past = given(integrations, CREATED, overdue)
    past.when(integrations.Miss(T0)).then()
    past.when(integrations.Miss(T0, "full")).then(integrations.Overdue("name", T0, "full"))
    past.when(integrations.Miss(later.due, "main", "job", later.resumes)).then(later)
    given(integrations, CREATED, overdue, later).when(integrations.Miss(T0)).then()
    given(integrations, CREATED, overdue, integrations.Deleted(), CREATED).when(integrations.Miss(T0)).then(overdue)


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
    state = integrations.initial
    log: list[integrations.Event] = []
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
