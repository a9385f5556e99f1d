"""Servers: what a sync changes, one fact for each effect."""

from __future__ import annotations

from typing import Any

import pytest

from domain import errors, messages, servers
from tests.domain.given import fold, given
from tests.domain.test_servers_plan import read

ADDED = servers.Added(configuration=read())


def test_the_first_sync_adds_it_and_the_next_changes_nothing() -> None:
    given(servers).when(servers.Sync(read())).then(ADDED)
    given(servers, ADDED).when(servers.Sync(read())).then()


@pytest.mark.parametrize(
    ("changed", "event"),
    [
        ({"meta__name": "Other"}, servers.Renamed),
        ({"build__cpu_limit": 50}, servers.LimitsChanged),
        ({"environment": {}}, servers.EnvironmentChanged),
        ({"invocation": "sh"}, servers.StartupChanged),
        ({"allocations__default": None}, servers.AllocationsChanged),
        ({"mounts": []}, servers.MountsChanged),
        ({"egg__file_denylist": None}, servers.FilesRestricted),
        ({"process__stop": {"type": "signal", "value": "INT"}}, servers.ProcessChanged),
        ({"crash_detection_enabled": False}, servers.CrashDetectionChanged),
        ({"suspended": True}, servers.Suspended),
    ],
)
def test_each_effect_has_its_event(changed: dict[str, Any], event: type[messages.Event]) -> None:
    after = read(**changed)
    [found] = servers.decide(servers.Sync(after), fold(servers, [ADDED]))
    assert type(found) is event
    assert fold(servers, [ADDED, found]).configuration == after


def test_all_at_once_end_where_the_panel_wants_and_the_suspension_comes_last() -> None:
    after = read(meta__name="Other", build__swap=-1, environment={"A": "1"}, suspended=True, mounts=[], invocation="x")
    found = servers.decide(servers.Sync(after), fold(servers, [ADDED]))
    assert fold(servers, [ADDED, *found]).configuration == after
    assert type(found[-1]) is servers.Suspended
    environment = next(one for one in found if isinstance(one, servers.EnvironmentChanged))
    assert environment.names == ("A", "EMPTY", "ONLINE", "SERVER_JARFILE", "port")


def test_a_rollback_says_so_and_one_to_the_same_says_nothing() -> None:
    limited = servers.LimitsChanged(build=read(build__cpu_limit=50).build)
    back = servers.LimitsChanged(build=read().build)
    given(servers, ADDED, limited).when(servers.RollBack(read(), 1)).then(back, servers.RolledBack(to=1))
    given(servers, ADDED).when(servers.RollBack(read(), 1)).then()


def test_a_suspended_server_is_not_started_but_may_be_stopped() -> None:
    suspended = [ADDED, servers.Suspended()]
    for action in ("start", "restart"):
        given(servers, *suspended).when(servers.Ask(action, "node")).refused(errors.InvalidState)
    given(servers, *suspended).when(servers.Ask("kill", "node")).then(servers.PowerAsked(action="kill", by="node"))
    again = [*suspended, servers.Unsuspended()]
    given(servers, *again).when(servers.Ask("start", "node")).then(servers.PowerAsked(action="start", by="node"))


def test_what_its_process_does_is_said_once() -> None:
    running = servers.PowerChanged(power="running", pid=7, started=99)
    given(servers, ADDED).when(servers.Observe("running", 7, 99)).then(running)
    given(servers, ADDED, running).when(servers.Observe("running", 7, 99)).then()
    crashed = servers.Crashed(exit_code=-9, again=True)
    offline = servers.PowerChanged(power="offline", exit_code=-9)
    given(servers, ADDED, running).when(servers.NoteCrash(-9, True)).then(offline, crashed)
    given(servers, ADDED, running, offline).when(servers.NoteCrash(-9, True)).then(crashed)
    suspended = [ADDED, servers.Suspended()]
    given(servers, *suspended).when(servers.NoteCrash(None, True)).then(servers.Crashed(exit_code=None, again=False))
    failed = servers.StartFailed(reason="no")
    given(servers, ADDED).when(servers.FailStart("no")).then(failed)
    starting = servers.PowerChanged(power="starting")
    given(servers, ADDED, starting).when(servers.FailStart("no")).then(servers.PowerChanged(power="offline"), failed)


def asked(action: servers.Action) -> servers.Event:
    return servers.PowerAsked(action=action, by="node")


def power(now: servers.Power, *, again: bool = False) -> servers.Event:
    return servers.PowerChanged(power=now, again=again)


@pytest.mark.parametrize(
    ("events", "left"),
    [
        ([asked("start")], "start"),
        ([asked("start"), power("starting")], None),
        ([asked("start"), power("running")], None),
        ([asked("start"), servers.StartFailed(reason="no")], None),
        ([asked("start"), servers.Suspended()], None),
        ([asked("start"), servers.Deleted()], None),
        ([asked("start"), asked("stop"), power("starting")], "stop"),
        ([power("running"), asked("stop")], "stop"),
        ([power("running"), asked("stop"), power("stopping")], "stop"),
        ([power("running"), asked("kill"), power("stopping"), power("offline")], None),
        ([power("stopping"), asked("start"), power("offline")], "start"),
        ([power("running"), asked("start"), power("offline")], None),
        ([asked("restart"), power("stopping"), power("offline")], "restart"),
        ([asked("restart"), power("stopping"), power("offline"), power("starting")], None),
        ([power("starting"), asked("restart"), power("running")], "restart"),
        ([power("running"), power("offline", again=True)], "start"),
        ([power("starting"), asked("stop"), power("offline", again=True)], None),
        ([power("starting"), asked("restart"), power("offline", again=True)], "start"),
        ([power("running"), power("offline"), servers.Crashed(exit_code=1, again=True)], "start"),
        ([power("running"), power("offline"), servers.Crashed(exit_code=1, again=False)], None),
    ],
)
def test_what_is_still_to_be_carried_out_is_known_after_every_event(
    events: list[servers.Event], left: servers.Action | None
) -> None:
    assert left == fold(servers, [ADDED, *events]).asked


def test_a_deleted_server_is_unknown_until_it_is_added_again() -> None:
    gone = [ADDED, servers.Deleted()]
    for command in (
        servers.Delete(),
        servers.Ask("stop", "node"),
        servers.Observe("running"),
        servers.RollBack(read(), 1),
    ):
        given(servers, *gone).when(command).refused(errors.NotFound)
        given(servers).when(command).refused(errors.NotFound)
    given(servers, *gone).when(servers.Sync(read())).then(ADDED)
