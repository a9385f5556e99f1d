"""The library: what one device does reaches every other, in order, and nothing is lost."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from tests.journeys.libraries import Device, Plain, User, created, sha, user
from tests.journeys.sse import follow
from tests.journeys.system import System, at_once, until


@pytest.fixture
def ann(system: System) -> User:
    return user(system)


def paths(changes: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(one["change_type"], one["path"]) for one in changes]


def test_a_change_reaches_every_other_device(ann: User) -> None:
    laptop, phone = ann.pair()
    said = laptop.report(created("docs/a.txt", b"one"))
    assert (said["accepted"], said["upload_required"]) == (["docs/a.txt"], ["docs/a.txt"])
    assert phone.changes() == []  # nothing before its bytes are there
    done = laptop.upload("docs/a.txt", b"one")
    (change,) = phone.follow()
    assert (change["change_type"], change["path"], change["sequence"]) == ("created", "docs/a.txt", done["sequence"])
    assert change["device_id"] == laptop.id
    assert phone.download("docs/a.txt").body == b"one"
    moved = {"path": "b.txt", "old_path": "docs/a.txt", "change_type": "moved", "content_hash": sha(b"one")}
    assert phone.report(moved)["accepted"] == ["b.txt"]
    laptop.follow()
    assert laptop.report({"path": "b.txt", "change_type": "deleted"})["accepted"] == ["b.txt"]
    assert paths(phone.follow()) == [("moved", "b.txt"), ("deleted", "b.txt")]
    assert phone.files() == {}


def test_what_is_said_to_a_library_waits_for_no_read_model(system: System, ann: User) -> None:
    """Each edit is based on the one before, which no read model shows yet."""
    laptop, phone = (Plain(system, one.id, one.token) for one in ann.pair())
    laptop.upload("note", b"0")
    assert until(phone.follow)

    def edit(device: Device, text: bytes) -> dict[str, Any]:
        return device.report(created("note", text) | {"change_type": "modified"})

    moved = {"path": "moved", "old_path": "note", "change_type": "moved", "content_hash": sha(b"1")}
    with system.paused("core"):
        laptop.upload("note", b"1")
        laptop.upload("note", b"2")
        assert edit(laptop, b"1")["accepted"] == ["note"]
        assert laptop.report(moved)["accepted"] == ["moved"]
        assert laptop.report(created("note", b"2"))["accepted"] == ["note"]
        (conflict,) = edit(phone, b"mine")["conflicts"]
        assert (conflict["rule"], conflict["device_id"], conflict["path"]) == ("edit_edit", phone.id, "note")
        assert edit(phone, b"mine")["conflicts"] == [conflict]
    assert ann.devices[1].conflicts() == [conflict]
    assert [one["path"] for one in ann.devices[1].changes()] == ["note", "note", "note", "note", "moved", "note"]


def test_bytes_that_are_known_need_not_be_sent(ann: User) -> None:
    laptop, phone = ann.pair()
    laptop.upload("a", b"same")
    said = phone.report(created("b", b"same"))
    assert (said["accepted"], said["upload_required"]) == (["b"], [])
    assert phone.files() == {"a": phone.files()["b"], "b": phone.files()["b"]}


def test_another_users_bytes_are_unknown(system: System, ann: User) -> None:
    ann.device().upload("secret", b"known to ann only")
    bobs = user(system).device()
    assert bobs.report(created("secret", b"known to ann only"))["upload_required"] == ["secret"]
    assert bobs.files() == {}
    assert bobs.download("secret").status == 404


def test_each_item_has_its_own_outcome(ann: User) -> None:
    laptop, phone = ann.pair()
    laptop.upload("kept", b"1")
    laptop.upload("edited", b"1")
    phone.upload("folder/file", b"1")
    said = phone.report(
        created("new", b"1"),
        created("../up", b"1"),
        created("KEPT", b"1"),
        created("folder", b"1"),
        created("edited", b"other"),
        {"path": "kept", "change_type": "created", "content_hash": "zz"},
        {"path": "gone", "change_type": "deleted"},
        {"path": "timed", "change_type": "created", "content_hash": sha(b"1"), "local_mtime": "yesterday"},
    )
    assert said["accepted"] == ["new", "gone"]
    assert [one["path"] for one in said["conflicts"]] == ["edited"]
    reasons = {one["path"]: one["reason"] for one in said["rejected"]}
    assert reasons.keys() == {"../up", "KEPT", "folder", "kept", "timed"}
    assert "case" in reasons["KEPT"]
    assert "folder" in reasons["folder"]


def test_an_empty_report_and_a_repeated_one(ann: User) -> None:
    laptop = ann.device()
    assert laptop.report() == {
        "accepted": [],
        "conflicts": [],
        "upload_required": [],
        "rejected": [],
        "sequences": {},
    }
    laptop.upload("a", b"1")
    before = laptop.system.head()
    for _ in range(2):
        assert laptop.report(created("a", b"1"))["accepted"] == ["a"]
    assert laptop.system.head() == before


def test_what_is_no_report_is_refused(ann: User) -> None:
    laptop = ann.device()
    changes: list[Any] = [None, [{}], [created("a", b"")] * 1001, "all"]
    for body in ({}, *({"changes": one} for one in changes)):
        assert laptop.call("POST", "/api/v1/sync/report", body).status == 400


def test_two_conflicts_about_one_file_in_one_report(ann: User) -> None:
    laptop, phone = ann.pair()
    laptop.upload("a", b"1")
    phone.follow()
    laptop.report({"path": "b", "old_path": "a", "change_type": "moved", "content_hash": sha(b"1")})
    said = phone.report(created("a", b"2") | {"change_type": "modified"}, created("b", b"3"))
    assert [(one["path"], one["rule"]) for one in said["conflicts"]] == [("a", "edit_delete"), ("b", "create_create")]
    assert phone.conflicts() == said["conflicts"]


def test_two_edits_of_one_base_are_one_conflict(ann: User) -> None:
    laptop, phone = ann.pair()
    laptop.upload("a", b"base")
    for device in (laptop, phone):
        device.follow()
    laptop.upload("a", b"from the laptop")
    mine = {"path": "a", "change_type": "modified", "content_hash": sha(b"from the phone"), "file_size": 14}
    first, again = phone.report(mine), phone.report(mine)
    assert first["conflicts"] == again["conflicts"]
    (conflict,) = phone.conflicts()
    assert (conflict["rule"], conflict["device_id"], conflict["server_device_id"]) == ("edit_edit", phone.id, laptop.id)
    assert phone.upload("a", b"from the phone")["conflict_id"] == conflict["id"]
    assert len(phone.conflicts()) == 1
    explained = phone.ok("GET", f"/api/v1/sync/conflicts/{conflict['id']}")
    assert [one["resolution"] for one in explained["resolutions"]] == [
        "server_wins",
        "client_wins",
        "keep_both",
        "manual",
    ]
    answers = at_once(8, lambda n: resolve(phone, conflict["id"], "keep_both" if n % 2 else "client_wins"))
    assert sorted(set(answers)) == [200, 400]
    assert phone.conflicts() == []
    assert sha(b"from the phone") in {sha(phone.download(path).body) for path in phone.files()}


def resolve(device: Device, conflict: str, resolution: str) -> int:
    return device.call("POST", f"/api/v1/sync/conflicts/{conflict}/resolve", {"resolution": resolution}).status


def test_a_deletion_never_beats_an_edit(ann: User) -> None:
    laptop, phone = ann.pair()
    laptop.upload("a", b"base")
    phone.follow()
    laptop.upload("a", b"edited")
    said = phone.report({"path": "a", "change_type": "deleted"})
    assert [one["rule"] for one in said["conflicts"]] == ["delete_edit"]
    assert laptop.download("a").body == b"edited"
    assert resolve(phone, said["conflicts"][0]["id"], "client_wins") == 200
    assert laptop.files() == {}
    reopened = phone.call("POST", f"/api/v1/sync/conflicts/{said['conflicts'][0]['id']}/reopen")
    assert reopened.status == 400  # the file is gone: its versions can be restored one by one


def test_a_resolution_waits_for_bytes_that_have_not_come(ann: User) -> None:
    laptop, phone = ann.pair()
    laptop.upload("a", b"base")
    laptop.follow()
    phone.follow()
    laptop.upload("a", b"server")
    said = phone.report({"path": "a", "change_type": "modified", "content_hash": sha(b"late"), "file_size": 4})
    conflict = said["conflicts"][0]["id"]
    path = f"/api/v1/sync/conflicts/{conflict}/resolve"
    resolved = phone.ok("POST", path, {"resolution": "client_wins"})
    assert resolved["upload_required"]
    assert laptop.download("a").body == b"server"
    phone.upload("a", b"late")
    assert laptop.download("a").body == b"late"
    undone = phone.ok("POST", f"/api/v1/sync/conflicts/{conflict}/reopen")
    assert undone["resolution"] is None
    assert laptop.download("a").body == b"server"


def test_conflicts_are_resolved_in_bulk(ann: User) -> None:
    laptop, phone = ann.pair()
    for name in "abc":
        laptop.upload(f"d/{name}", b"server " + name.encode())
    said = phone.report(*(created(f"d/{name}", b"phone " + name.encode()) for name in "abc"))
    assert len(said["conflicts"]) == 3
    bad = phone.call("POST", "/api/v1/sync/conflicts/resolve", {"resolution": "server_wins"})
    assert bad.status == 400
    body = {"resolution": "server_wins", "filter": {"path_prefix": "d/", "device_id": phone.id}}
    done = phone.ok("POST", "/api/v1/sync/conflicts/resolve", body)
    assert (len(done["resolved"]), done["failed"]) == (3, [])
    named = {"resolution": "server_wins", "ids": [said["conflicts"][0]["id"], "nobody's"]}
    done = phone.ok("POST", "/api/v1/sync/conflicts/resolve", named)
    assert (len(done["resolved"]), [one["id"] for one in done["failed"]]) == (1, ["nobody's"])


def test_pages_of_any_size_are_the_same_feed(ann: User) -> None:
    laptop, phone = ann.pair()
    laptop.upload("seed", b"x")
    for number in range(12):
        laptop.report(created(f"f{number}", b"x"))
    whole = phone.changes()
    assert [one["sequence"] for one in whole] == sorted({one["sequence"] for one in whole})
    assert len(whole) == 13
    found: list[Any] = []
    cursor, more = "", True
    for limit in (1, 2, 3, 1000, 0, -5):
        page = phone.ok("GET", f"/api/v1/sync/changes?limit={limit}" + (f"&cursor={cursor}" if cursor else ""))
        found += page["changes"]
        cursor, more = page["cursor"], page["has_more"]
        if not more:
            break
    assert found == whole


def test_cursors_are_ones_own_and_cannot_be_made(system: System, ann: User) -> None:
    laptop = ann.device()
    laptop.upload("a", b"1")
    laptop.follow()
    bobs = user(system).device()
    cursor = laptop.cursor or ""
    flipped = cursor[:-1] + ("A" if cursor[-1] != "A" else "B")
    for bad in ("x", flipped, "A" * len(cursor), cursor + "A", "%00", "é"):
        assert (
            laptop.call("GET", f"/api/v1/sync/changes?cursor={bad.encode().hex() if bad == 'é' else bad}").status == 400
        )
    assert bobs.call("GET", f"/api/v1/sync/changes?cursor={cursor}").status == 400
    assert bobs.call("POST", "/api/v1/sync/ack", {"cursor": cursor}).status == 400


def test_only_what_was_delivered_is_acknowledged_and_never_back(ann: User) -> None:
    laptop, phone = ann.pair()
    laptop.upload("a", b"1")
    laptop.changes()
    first = laptop.cursor
    assert phone.call("POST", "/api/v1/sync/ack", {"cursor": first}).status == 400  # never sent to it
    assert laptop.ack() == {"cursor": first}
    laptop.upload("b", b"2")
    laptop.follow()
    assert laptop.ok("POST", "/api/v1/sync/ack", {"cursor": first}) == {"cursor": laptop.cursor}
    shown = ann.ok("GET", f"/api/v1/sync/devices/{laptop.id}")
    assert shown["sync_cursor"] == laptop.cursor
    assert shown["last_sync_at"] is not None


def test_a_long_poll_answers_when_something_comes(ann: User) -> None:
    laptop, phone = ann.pair()
    phone.changes()

    def work(number: int) -> Any:
        return laptop.upload("a", b"1") if number else phone.changes("&wait=30")

    waited, _ = at_once(2, work)
    assert paths(waited) == [("created", "a")]


def test_a_stream_goes_on_where_it_was_left(system: System, ann: User) -> None:
    laptop, phone = ann.pair()
    laptop.upload("a", b"1")
    with follow(system, "/api/v1/sync/changes", token=phone.token) as stream:
        events = iter(stream)
        first = next(events)
        assert (first.type, first.data["path"]) == ("change", "a")
        laptop.upload("b", b"2")
        second = next(events)
        assert second.data["path"] == "b"
    laptop.upload("c", b"3")
    with follow(system, "/api/v1/sync/changes", token=phone.token, last=first.id) as stream:
        events = iter(stream)
        assert [next(events).data["path"] for _ in range(2)] == ["b", "c"]
    phone.cursor = second.id
    assert [one["path"] for one in phone.changes()] == ["c"]
    phone.ack()  # what a stream delivers counts as delivered


def test_a_snapshot_is_of_one_moment(ann: User) -> None:
    laptop, phone = ann.pair()
    laptop.upload("seed", b"x")
    laptop.report(*(created(f"f{number}", b"x") for number in range(5)))
    page = phone.ok("GET", "/api/v1/sync/snapshot?limit=2")
    found = [file["path"] for file in page["files"]]
    laptop.report({"path": "f4", "change_type": "deleted"}, created("late", b"x"))
    while "next" in page:
        page = phone.ok("GET", f"/api/v1/sync/snapshot?limit=2&cursor={page['cursor']}&after={page['next']}")
        found += [file["path"] for file in page["files"]]
    assert found == ["f0", "f1", "f2", "f3", "f4", "seed"]
    phone.cursor = page["cursor"]
    assert paths(phone.changes()) == [("deleted", "f4"), ("created", "late")]


def test_old_versions_stay_and_come_back(ann: User) -> None:
    laptop = ann.device()
    for text in (b"1", b"22", b"333"):
        laptop.upload("d/a", text)
        laptop.follow()
    laptop.report({"path": "d/a", "change_type": "deleted"})
    versions = laptop.ok("GET", "/api/v1/sync/versions/d/a")["versions"]
    assert [one["change_type"] for one in versions] == ["deleted", "modified", "modified", "created"]
    second = versions[2]
    assert laptop.call("GET", f"/api/v1/sync/download/d/a?version={second['sequence']}").body == b"22"
    body = {"media_id": second["media_id"], "sequence": second["sequence"]}
    assert laptop.ok("POST", "/api/v1/sync/restore", body)["change_type"] == "created"
    assert laptop.download("d/a").body == b"22"
    assert laptop.call("POST", "/api/v1/sync/restore", {**body, "sequence": 1}).status == 404


def test_names_are_sealed_in_the_log(system: System, ann: User) -> None:
    laptop = ann.device("Ann's very own laptop")
    laptop.upload("letters/to a friend.txt", b"1")
    with psycopg.connect(system.ready["database_url"]) as connection:
        rows = connection.execute(
            "select stream_id || metadata || convert_from(state, 'UTF8') from undrift.events"
            " where split_part(stream_id, '/', 1) in ('library', 'devices', 'accounts', 'uploads')"
        ).fetchall()
    assert rows
    for (text,) in rows:
        assert not any(secret in text for secret in ("to a friend", "letters", "very own", ann.name))
