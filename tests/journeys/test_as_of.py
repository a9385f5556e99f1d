"""As of: one thing, or a library, as GET showed it at a position or at a time."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote

import pytest

from tests.journeys.libraries import Device, User, sha, user
from tests.journeys.system import ADMIN, System

Seen = list[tuple[int, Any]]


def at_rest(system: System) -> int:
    """The head, once nothing more is said."""
    before = -1
    while before != (head := system.head()):
        before = head
        time.sleep(0.3)
    return head


def look(system: System, seen: Seen, path: str, **more: Any) -> None:
    """Notes what GET answers now, under the position it is true for."""
    head = at_rest(system)
    answer = system.call("GET", path, headers={"Undrift-Min-Position": str(head)}, **more)
    assert head == system.head()
    seen.append((head, answer.json() if answer.status == 200 else None))


def was(system: System, path: str, moment: int | str, **more: Any) -> Any:
    """What it says as of a moment; None where it was not there."""
    answer = system.get(f"{path}?as_of={quote(str(moment))}", **more)
    assert answer.status in (200, 404), answer
    if answer.status == 404:
        return None
    return answer.json()


def times(system: System) -> dict[int, str]:
    """When each position was recorded."""
    rows = system.sql(
        "select pos, to_char(recorded_at at time zone 'UTC', 'YYYY-MM-DD HH24:MI:SS.MS') from undrift.events"
    )
    return {pos: f"{at.replace(' ', 'T')}Z" for pos, at in rows}


def check(system: System, path: str, seen: Seen, *, but: Callable[[Any], Any] = lambda one: one, **more: Any) -> None:
    """Each is as of its position what it was; and as of the time of its position, where no later one has the same,
    `but` for what only rows say, which may be written a moment later."""
    recorded = times(system)
    assert len(seen) > 2
    for position, answer in seen:
        assert answer == was(system, path, position, **more), position
        if recorded[position] != recorded.get(position + 1):
            assert but(answer) == but(was(system, path, recorded[position], **more)), position


def test_a_job_at_every_position(system: System) -> None:
    many = {f"file{number}": "x" for number in range(12)}
    system.integration("as-of", system.folder(a="1"), system.folder(**many), deleteMissingInTarget=True)
    before, seen = at_rest(system), Seen()
    with system.idle():
        id = system.queue("as-of")
        path = f"/api/sync/jobs/{id}"
        look(system, seen, path)
    held = system.wait(id, "paused")
    look(system, seen, path)
    system.ok("POST", f"{path}/resume", {"confirm": held["error"]["plan"]})
    system.wait(id, "completed")
    look(system, seen, path)
    system.ok("DELETE", path)
    look(system, seen, path)
    assert [one and one["status"] for _, one in seen] == ["queued", "paused", "completed", None]
    check(system, path, seen, but=without_rows)
    assert was(system, path, before) is None
    whole = [one["position"] for one in system.ok("GET", f"{path}/history")["history"]]
    statuses = [was(system, path, position)["status"] for position in whole[:-1]]
    assert list(dict.fromkeys(statuses)) == ["queued", "running", "paused", "completed"]
    started = next(position for position in whole if was(system, path, position)["status"] == "running")
    assert "completedAt" not in was(system, path, started)
    assert len(was(system, path, whole[-2])["logs"]) >= len(was(system, path, started)["logs"])


def without_rows(shown: Any) -> Any:
    rows = {"stage", "logs", "progress", "stats", "last_sync_at", "last_seen_at", "sync_cursor"}
    return shown and {name: value for name, value in shown.items() if name not in rows}


def test_an_integration_at_every_position(system: System) -> None:
    path, seen = "/api/sync/integrations/altered", Seen()
    source = system.folder(a="1")
    system.integration("altered", source, system.place(), interval=3600)
    look(system, seen, path)
    system.ok("PUT", path, {"name": "Other", "policy": {"breakerFailures": 1, "breakerPause": 600_000}})
    look(system, seen, path)
    system.wait(system.queue("altered"))
    look(system, seen, path)
    system.ok("POST", f"{path}/stop")
    look(system, seen, path)
    (source / "a").unlink()
    source.rmdir()
    assert system.wait(system.queue("altered"))["status"] == "failed"
    look(system, seen, path)
    system.ok("POST", f"{path}/start", {"scheduleImmediate": False})
    look(system, seen, path)
    system.ok("DELETE", path)
    look(system, seen, path)
    system.integration("altered", system.folder(a="1"), system.place())
    look(system, seen, path)
    shown = [(one["status"], one["name"], one["breaker"]["state"]) if one else None for _, one in seen]
    assert shown == [
        ("active", "Integration altered", "closed"),
        ("active", "Other", "closed"),
        ("active", "Other", "closed"),
        ("stopped", "Other", "closed"),
        ("stopped", "Other", "open"),
        ("error", "Other", "open"),
        None,
        ("active", "Integration altered", "closed"),
    ]
    check(system, path, seen)


@pytest.fixture(scope="module")
def ann(system: System) -> User:
    return user(system)


def test_a_device_at_every_position(ann: User) -> None:
    device, seen = ann.device("first name"), Seen()
    path = f"/api/v1/sync/devices/{device.id}"
    look(ann.system, seen, path, token=ann.token)
    ann.ok("PUT", path, {"name": "second name", "enabled": False})
    look(ann.system, seen, path, token=ann.token)
    ann.ok("PUT", path, {"enabled": True})
    device.upload("of a device", b"1")
    device.follow()
    look(ann.system, seen, path, token=ann.token)
    assert seen[-1][1]["sync_cursor"] is not None
    ann.call("DELETE", path)
    look(ann.system, seen, path, token=ann.token)
    assert [one and one["name"] for _, one in seen] == ["first name", "second name", "second name", None]
    check(ann.system, path, seen, but=without_rows, token=ann.token)


def test_a_library_at_every_position(ann: User) -> None:
    system, (one, other) = ann.system, user(ann.system).pair()
    lists, files = Seen(), Seen()
    snapshot = "/api/v1/sync/snapshot"
    one.upload("a/b", b"one")
    [made] = one.ok("GET", f"{snapshot}?after=a/")["files"]
    path = f"/api/v1/sync/media/{made['media_id']}"

    def both() -> None:
        look(system, lists, snapshot, token=one.token)
        look(system, files, path, token=one.token)

    both()
    one.upload("a/b", b"two")
    one.upload("c", b"three")
    both()
    one.report({"path": "a/d", "old_path": "a/b", "change_type": "moved", "content_hash": sha(b"two"), "file_size": 3})
    both()
    one.report({"path": "a/d", "change_type": "deleted"})
    both()
    shown = [answer and (answer["path"], answer["content_hash"][:4]) for _, answer in files]
    assert [one and one[0] for one in shown] == ["a/b", "a/b", "a/d", None]
    check(system, path, files, token=other.token)
    check(system, snapshot, lists, token=one.token)
    position, answer = lists[1]
    found, after = [], ""
    while True:
        page = one.ok("GET", f"{snapshot}?as_of={position}&limit=1&after={quote(after)}")
        found += page["files"]
        if "next" not in page:
            break
        after = page["next"]
    assert found == answer["files"]
    assert one.ok("GET", f"{snapshot}?cursor={page['cursor']}")["files"] == answer["files"]
    assert one.call("GET", f"{snapshot}?cursor={page['cursor']}&as_of=1").status == 400


def test_a_conflict_at_every_position(ann: User) -> None:
    system, (one, other) = ann.system, ann.pair()
    one.upload("both", b"base")
    other.follow()
    one.upload("both", b"here")
    seen = Seen()
    before = at_rest(system)
    other.upload("both", b"there")
    [conflict] = [found for found in other.conflicts() if found["path"] == "both"]
    path = f"/api/v1/sync/conflicts/{conflict['id']}"
    look(system, seen, path, token=other.token)
    ann.ok("POST", f"{path}/resolve", {"resolution": "keep_both"})
    look(system, seen, path, token=other.token)
    ann.ok("POST", f"{path}/reopen")
    look(system, seen, path, token=other.token)
    one.report({"path": "both", "change_type": "deleted"})
    look(system, seen, path, token=other.token)
    assert [len(answer["resolutions"]) for _, answer in seen] == [4, 0, 4, 4]
    assert seen[0][1]["resolutions"] != seen[-1][1]["resolutions"]
    check(system, path, seen, token=other.token)
    assert was(system, path, before, token=other.token) is None


def test_a_session_at_every_position(system: System) -> None:
    source = system.folder(a="1", b="2")
    body = {"sourceLocation": str(source), "targetLocation": str(system.place()), "syncType": "Full"}
    seen = Seen()
    with system.idle():
        made = system.ok("POST", "/api/v1/sync/session/start", body, token=ADMIN)
        path = f"/api/v1/sync/session/{made['sessionId']}"
        look(system, seen, path, token=ADMIN)
    system.wait(made["jobId"], "completed")
    look(system, seen, path, token=ADMIN)
    system.ok("POST", f"{path}/complete", token=ADMIN)
    look(system, seen, path, token=ADMIN)
    assert [(one["status"], one["processed"]) for _, one in seen] == [
        ("in-progress", 0),
        ("in-progress", 2),
        ("completed", 2),
    ]
    for position, answer in seen:
        assert {**answer, "expiresAt": None} == was(system, path, position, token=ADMIN)
    history = system.ok("GET", f"{path}/history", token=ADMIN)["history"]
    assert [one["type"] for one in history] == [
        f"sessions.{name}" for name in ("started", "attached", "completion_requested", "completed")
    ]
    assert was(system, path, history[0]["position"] - 1, token=ADMIN) is None
    why = system.ok("GET", f"/api/v1/why/sessions/{made['sessionId']}?field=status", token=ADMIN)
    assert (why["value"], why["chain"][0]["type"]) == ("completed", "sessions.completed")
    assert why["chain"][-1]["type"] == "keys.added"
    job = system.ok("GET", f"/api/v1/why/jobs/{made['jobId']}", token=ADMIN)
    assert [link["type"] for link in job["chain"]] == [
        "jobs.completed",
        "jobs.queued",
        "sessions.started",
        "keys.added",
    ]


def test_the_present_is_the_head(system: System, ann: User) -> None:
    """Also in the words of another zone, and where nobody escaped them."""
    path = "/api/sync/integrations/declared"
    now = datetime.now(UTC)
    present = {name: value for name, value in system.ok("GET", path).items() if name != "quota"}
    east = (now + timedelta(hours=2)).replace(tzinfo=None).isoformat(timespec="milliseconds")
    for moment in (str(at_rest(system)), now.isoformat().replace("+00:00", "Z"), f"{east}%2B02:00", f"{east}+02:00"):
        assert system.ok("GET", f"{path}?as_of={moment}") == present, moment


BAD: tuple[str, ...] = (
    "",
    "x",
    "-1",
    "1.5",
    "1e3",
    "0x10",
    "2026-01-01",
    "2026-01-01T00:00:00",
    "2026-13-01T00:00:00Z",
    "%00",
)
BAD += ("\u0661", "9999-12-31T23:59:59.999Z", "2126-01-01T00:00:00Z", "9" * 17, "9" * 400, "now", "1700000000.5")


def test_bad_moments(system: System, ann: User) -> None:
    device = ann.device()
    places = [("/api/sync/integrations/declared", None), ("/api/v1/sync/snapshot", device.token)]
    places += [(f"/api/v1/sync/devices/{device.id}", device.token), ("/api/sync/jobs/none", None)]
    for moment in (*BAD, str(system.head() + 1000)):
        for path, token in places:
            answer = system.get(f"{path}?as_of={quote(moment, safe='%')}", token=token)
            assert answer.status == 400, (path, moment, answer)
    for moment in ("0", "0001-01-01T00:00:00Z", "1970-01-01T00:00:00+14:00"):
        assert was(system, "/api/sync/integrations/declared", moment) is None
        assert was(system, "/api/v1/sync/snapshot", moment, token=device.token)["files"] == []


def test_what_is_foreign_was_always_unknown(system: System, ann: User) -> None:
    one = ann.device()
    one.upload("mine", b"1")
    file = next(found for found in one.ok("GET", "/api/v1/sync/snapshot")["files"] if found["path"] == "mine")
    stranger: Device = user(system).device()
    for path in (f"devices/{one.id}", f"media/{file['media_id']}"):
        for moment in (str(system.head()), "1"):
            foreign = system.get(f"/api/v1/sync/{path}?as_of={moment}", token=stranger.token)
            unknown = system.get(f"/api/v1/sync/{path}x?as_of={moment}", token=stranger.token)
            assert (foreign.status, foreign.body) == (404, unknown.body)


def test_a_position_at_a_time(system: System) -> None:
    recorded = times(system)
    for position, at in list(recorded.items())[:: max(1, len(recorded) // 40)]:
        found = system.ok("GET", f"/api/v1/feeds/position?at={at}", token=ADMIN)
        assert recorded[found["position"]] == at == found["time"]
        assert recorded.get(found["position"] + 1) != at
        assert found["position"] >= position
        assert found["epoch"] == 1
    first = system.ok("GET", "/api/v1/feeds/position?at=2001-01-01T00:00:00Z", token=ADMIN)
    assert (first["position"], first["time"]) == (0, None)
    for at in (*BAD, "17"):
        answer = system.get(f"/api/v1/feeds/position?at={quote(at, safe='%')}", token=ADMIN)
        assert (answer.status, answer.json()["errorCode"]) == (400, "INVALID_REQUEST"), at
    assert system.get("/api/v1/feeds/position", token=ADMIN).status == 400
