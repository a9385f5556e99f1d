from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from domain import errors, library
from domain.library import Content, Place
from tests.domain.given import fold, given, held

A, B = Content("a" * 64, 1), Content("b" * 64, 2)
HERE, THERE = Place("here", ("folder",)), Place("there")
LATER = datetime(2026, 1, 2, tzinfo=UTC)
CREATED = library.Created(path="f/x", place=HERE, content=A, device="d1")
DELETED = library.Deleted(path="f/x", place=HERE, device="d1", number=2)
FOUND = library.ConflictFound(
    conflict="c",
    rule="edit_edit",
    path="f/x",
    place=HERE,
    device="d2",
    local_change="modified",
    local_hash="b" * 64,
    local_size=2,
    local_mtime=None,
    base_hash="0" * 64,
    server_hash="a" * 64,
    server_device="d1",
    server_number=1,
)


def test_a_file_is_created_changed_moved_deleted_and_comes_back() -> None:
    given(library).when(library.Create("f/x", HERE, A, "d1")).then(CREATED)
    modified = library.Modified(path="f/x", place=HERE, content=B, device="d2", number=2)
    given(library, CREATED).when(library.Modify(B, expect=1, device="d2")).then(modified)
    moved = library.Moved(path="y", place=THERE, old_path="f/x", old_place=HERE, content=A, device="d1", number=2)
    given(library, CREATED).when(library.Move("y", THERE, expect=1, device="d1")).then(moved)
    given(library, CREATED).when(library.Delete(expect=1, device="d1")).then(DELETED)
    restored = library.Restored(path="y", place=THERE, content=B, device="d1", number=3)
    given(library, CREATED, DELETED).when(library.Create("y", THERE, B, "d1", expect=2)).then(restored)
    touched = library.Touched(path="f/x", place=HERE, content=Content("a" * 64, 1, LATER), device="d1", number=2)
    given(library, CREATED).when(library.Touch(expect=1, mtime=LATER, device="d1")).then(touched)


@pytest.mark.parametrize(
    ("events", "command"),
    [
        ([CREATED], library.Create("f/x", HERE, A, expect=1)),
        ([CREATED], library.Modify(B, expect=2)),
        ([CREATED, DELETED], library.Modify(B, expect=2)),
        ([CREATED, DELETED], library.Delete(expect=2)),
        ([CREATED, DELETED], library.Move("y", THERE, expect=2)),
        ([], library.Delete(expect=0)),
        ([CREATED], library.Announce(expect=3)),
    ],
)
def test_what_was_decided_on_another_version_is_refused(events: list[Any], command: Any) -> None:
    given(library, *events).when(command).refused(errors.Conflict)


def test_the_present_state_can_be_said_again() -> None:
    touched = library.Touched(path="f/x", place=HERE, content=A, device=None, number=2)
    given(library, CREATED).when(library.Announce(expect=1)).then(touched)
    again = library.Deleted(path="f/x", place=HERE, device=None, number=3, again=True)
    given(library, CREATED, DELETED).when(library.Announce(expect=2)).then(again)


def test_a_living_file_holds_its_place_and_the_folders_above() -> None:
    moved = library.Moved(path="y", place=THERE, old_path="f/x", old_place=HERE, content=A, device=None, number=2)
    gone = library.Deleted(path="y", place=THERE, device=None, number=3)
    again = library.Deleted(path="y", place=THERE, device=None, number=4, again=True)
    assert held(library, [CREATED]) == {(library.PLACE, "here"), (library.PLACE, "folder")}
    assert held(library, [CREATED, moved]) == {(library.PLACE, "there")}
    assert held(library, [CREATED, moved, gone, again]) == set()
    assert [one.shared for one in library.claims(CREATED)] == [False, True]


def test_the_same_change_of_a_device_is_one_conflict() -> None:
    given(library, CREATED).when(library.FindConflict(FOUND)).then(FOUND)
    given(library, CREATED, FOUND).when(library.FindConflict(FOUND)).then()
    resolved = library.ConflictResolved(conflict="c", resolution="manual", device=None)
    given(library, CREATED, FOUND, resolved).when(library.FindConflict(FOUND)).then(FOUND)


def test_a_conflict_is_resolved_once_and_says_so_again() -> None:
    resolve = library.Resolve("c", "client_wins", "d2", then=library.Modify(B, expect=1, device="d2"))
    resolved = library.ConflictResolved(conflict="c", resolution="client_wins", device="d2")
    modified = library.Modified(path="f/x", place=HERE, content=B, device="d2", number=2)
    given(library, CREATED, FOUND).when(resolve).then(resolved, modified)
    given(library, CREATED, FOUND, resolved, modified).when(resolve).then()
    other = library.Resolve("c", "server_wins")
    given(library, CREATED, FOUND, resolved, modified).when(other).refused(errors.InvalidState, "already_resolved")
    given(library, CREATED).when(other).refused(errors.NotFound)


def test_bytes_that_a_resolution_waits_for_complete_it() -> None:
    waits = library.Resolve("c", "client_wins", "d2", awaits="b" * 64)
    waiting = library.ConflictResolved(conflict="c", resolution="client_wins", device="d2", awaits="b" * 64)
    given(library, CREATED, FOUND).when(waits).then(waiting)
    given(library, CREATED, FOUND, waiting).when(waits).then()
    came = library.Resolve("c", "client_wins", "d2", then=library.Modify(B, expect=1, device="d2"))
    resolved = library.ConflictResolved(conflict="c", resolution="client_wins", device="d2")
    modified = library.Modified(path="f/x", place=HERE, content=B, device="d2", number=2)
    given(library, CREATED, FOUND, waiting).when(came).then(resolved, modified)


def test_a_resolution_can_be_undone() -> None:
    resolved = library.ConflictResolved(conflict="c", resolution="client_wins", device="d2")
    modified = library.Modified(path="f/x", place=HERE, content=B, device="d2", number=2)
    back = library.Modified(path="f/x", place=HERE, content=A, device=None, number=3)
    reopened = library.ConflictReopened(conflict="c")
    undo = library.Reopen("c", then=library.Modify(A, expect=2))
    given(library, CREATED, FOUND, resolved, modified).when(undo).then(reopened, back)
    given(library, CREATED, FOUND).when(undo).then()
    state = fold(library, [CREATED, FOUND, resolved, modified, reopened, back])
    assert [one.found.conflict for one in state.open_conflicts()] == ["c"]
    assert state.hash == A.hash
