from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.plans import library as plan
from domain.plans.library import Accepted, Apply, Conflict, Known, Rejected, Reported, judge

OURS, THEIRS = Known("f", "1"), Known("f", "2")
GONE = Known("f", None)


def edit(hash: str = "9") -> Reported:
    return Reported("p", "modified", hash=hash)


# device says, what stands there, what it knew -> verdict: written by hand from the contract
@pytest.mark.parametrize(
    ("item", "there", "knew", "verdict"),
    [
        (edit(), OURS, OURS, Apply("modify", "f")),
        (edit(), None, None, Apply("create")),
        (edit(), None, GONE, Apply("create")),
        (edit("2"), THEIRS, OURS, Accepted()),  # both made the same edit
        (edit(), THEIRS, OURS, Conflict("edit_edit", "f")),
        (edit(), THEIRS, None, Conflict("create_create", "f")),
        (edit(), THEIRS, GONE, Conflict("create_create", "f")),
        (edit(), None, OURS, Conflict("edit_delete", "f")),
        (Reported("p", "modified"), OURS, OURS, Rejected("content_hash is required")),
        (Reported("p", "metadata_updated", hash="1"), OURS, OURS, Apply("touch", "f")),
        (Reported("p", "deleted"), OURS, OURS, Apply("delete", "f")),
        (Reported("p", "deleted"), None, OURS, Accepted()),
        (Reported("p", "deleted"), None, None, Accepted()),
        (Reported("p", "deleted"), THEIRS, OURS, Conflict("delete_edit", "f")),
        (Reported("p", "deleted"), THEIRS, None, Conflict("delete_edit", "f")),
    ],
)
def test_what_becomes_of_a_report(
    item: Reported, there: Known | None, knew: Known | None, verdict: plan.Verdict
) -> None:
    assert judge(item, there, knew) == verdict


MOVE = Reported("q", "moved", old_path="p", hash="1")


@pytest.mark.parametrize(
    ("there", "knew", "target", "verdict"),
    [
        (OURS, OURS, None, Apply("move", "f")),
        (OURS, OURS, OURS, Accepted()),
        (None, OURS, OURS, Accepted()),  # reported before
        (None, OURS, None, Conflict("move_delete", "f")),
        (THEIRS, OURS, None, Conflict("move_edit", "f")),
        (OURS, OURS, Known("g", "3"), Conflict("move_target", "g")),
        (None, None, None, Rejected("nothing is known at old_path")),
    ],
)
def test_what_becomes_of_a_move(
    there: Known | None, knew: Known | None, target: Known | None, verdict: plan.Verdict
) -> None:
    assert judge(MOVE, there, knew, target) == verdict


known = st.none() | st.builds(Known, st.sampled_from("fg"), st.none() | st.sampled_from("12"))
living = st.none() | st.builds(Known, st.sampled_from("fg"), st.sampled_from("12"))


@given(st.sampled_from(["modified", "deleted"]), st.none() | st.sampled_from("12"), living, known)
def test_an_edit_that_the_device_did_not_know_of_is_never_overwritten(
    change: plan.Change, hash: str | None, there: Known | None, knew: Known | None
) -> None:
    verdict = judge(Reported("p", change, hash=hash), there, knew)
    if isinstance(verdict, Apply) and there is not None and verdict.act in ("modify", "delete"):
        assert knew is not None
        assert knew.hash == there.hash


@pytest.mark.parametrize(
    "path",
    ["", "/a", "a/", "a//b", "..", "a/../b", "./a", "a\0b", "a\nb", "a\\b", "e\u0301", "x" * 256, "a/" * 2048 + "b"],
)
def test_paths_that_are_none_are_refused(path: str) -> None:
    with pytest.raises(plan.BadPath):
        plan.check_path(path)


@pytest.mark.parametrize("path", ["con", "d/NUL.txt", "com1.log", "a.", "a ", "\ud800"])
def test_names_that_some_systems_cannot_keep_are_refused(path: str) -> None:
    with pytest.raises(plan.BadPath):
        plan.check_path(path)


@pytest.mark.parametrize(
    "path", ["a", "a/b c.txt", "é/ß", ".hidden", "console", "a:b?", "日本/語", "x" * 255, "..."[:2] + "a"]
)
def test_good_paths_stay_as_they_are(path: str) -> None:
    assert plan.check_path(path) == path


def test_twins_of_case_share_a_place() -> None:
    assert plan.folded("Straße/É") == plan.folded("STRASSE/é")
    assert plan.ancestors("a/b/c") == ("a", "a/b")
    assert plan.ancestors("a") == ()


def test_a_conflict_copy_stands_beside_its_file() -> None:
    name = plan.conflict_name
    assert name("d/n.txt", "Laptop", "2026-11-21") == "d/n (conflict Laptop 2026-11-21).txt"
    assert name("n", "a/b:\x00", "2026-11-21", 1) == "n (conflict ab 2026-11-21 2)"
    assert name("n", "...", "2026-11-21") == "n (conflict device 2026-11-21)"


@given(st.text(min_size=1, max_size=255), st.text(max_size=300))
def test_a_conflict_copy_has_a_path_that_is_kept(name: str, device: str) -> None:
    try:
        path = plan.check_path("d/" + name)
    except plan.BadPath:
        return
    plan.check_path(plan.conflict_name(path, device[:60], "2026-11-21"))
