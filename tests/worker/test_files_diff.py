"""Two plans side by side, against a comparison in memory; all of it read back, whatever the size of the pages."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterable
from pathlib import Path

import msgspec
import pytest

from domain import errors
from domain.plans import diffs
from domain.plans import files as plans
from domain.plans.files import SELF, Action, Group
from infra.blobs import Blobs
from services.worker import child, files_diff

Outcome = tuple[str, str, int, int, bytes]
OPS = ("create", "update", "attributes", "mkdir", "delete", "rmdir", "replace", "blocked", "settle")


class Desk:
    """Plans in a folder of blobs, and comparisons of them."""

    def __init__(self, base: Path) -> None:
        self.base, self.blobs = base, Blobs(base / "blobs")
        self.asked = 0

    def plan(self, groups: Iterable[Group]) -> str:
        digest = plans.Digest(plans.Spec(source_directory="/s", target_directory="/t"))
        encoded = digest.header + b"".join(digest.group(group) for group in groups)
        kept = self.blobs.put(encoded)
        assert kept == digest.hexdigest()
        return kept

    def page(self, left: str, right: str, after: str | None = None, limit: int = 100) -> diffs.Page:
        self.asked += 1
        work = self.base / f"work-{self.asked}"
        work.mkdir()
        ours, theirs = socket.socketpair()
        told = child.Task(
            call="files.diff",
            spec=msgspec.json.encode(diffs.Spec(left, right, after, limit)),
            job="ask",
            work=str(work),
            record=str(self.base / "blobs"),
            trash=str(self.base / "diffs"),
        )
        with ours, theirs:
            done = files_diff.run(told, child.Parent(theirs))
        return msgspec.json.decode(done.result, type=diffs.Page)

    def whole(self, left: str, right: str, limit: int = 100) -> tuple[diffs.Counts, list[diffs.Pair]]:
        found: list[diffs.Pair] = []
        page = self.page(left, right, limit=limit)
        found += page.pairs
        while page.after is not None:
            assert len(page.pairs) == limit
            page = self.page(left, right, page.after, limit)
            found += page.pairs
        return page.counts, found


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def made(pick: random.Random, folders: int) -> list[Group]:
    """A plan at random: each name at most once, folders in any order."""
    found = []
    for folder in range(folders):
        path = b"/".join(b"d%d" % (folder // 3**n % 3) for n in range(folder % 4))
        names = [b"%d-%d" % (folder, n) for n in range(pick.randrange(8))] + [b"\xff\xfe", b"a\nb", SELF] * (
            folder == 0
        )
        actions = [
            Action(
                pick.choice(OPS),  # type: ignore[arg-type]
                name,
                "why",
                pick.choice(("file", "dir", "link")),
                size=pick.randrange(3),
                mtime_ns=pick.randrange(2),
                link=pick.choice((b"", b"to")),
            )
            for name in names
        ]
        found += list(plans.split(path, actions))
    pick.shuffle(found)
    return found


def outcomes(groups: Iterable[Group]) -> dict[bytes, Outcome]:
    words = {"create": "created", "mkdir": "created", "delete": "deleted", "rmdir": "deleted", "blocked": "blocked"}
    return {
        plans.key(plans.join(group.path, one.name)): (
            words.get(one.op, "updated"),
            one.kind,
            one.size,
            one.mtime_ns,
            one.link,
        )
        for group in groups
        for one in group.actions
        if one.op != "settle"
    }


def shown(found: dict[bytes, Outcome], key: bytes) -> diffs.Done | None:
    if key not in found:
        return None
    op, kind, size, _, _ = found[key]
    return diffs.Done(op, kind=kind, size=size)  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("limit", [1, 7, 1000])
def test_it_says_what_a_comparison_in_memory_says(desk: Desk, seed: int, limit: int) -> None:
    pick = random.Random(seed)
    first = made(pick, 30)
    second = made(pick, 30) if seed % 2 else [*first[: len(first) // 2], *made(pick, 3)]
    left, right = outcomes(first), outcomes(second)
    counts, pairs = desk.whole(desk.plan(first), desk.plan(second), limit)
    both = left.keys() & right.keys()
    same = {key for key in both if left[key] == right[key]}
    assert counts == diffs.Counts(
        same=len(same),
        different=len(both) - len(same),
        only_left=len(left.keys() - right.keys()),
        only_right=len(right.keys() - left.keys()),
    )
    expected = [key for key in sorted(left.keys() | right.keys()) if key not in same]
    assert [(pair.left, pair.right) for pair in pairs] == [(shown(left, key), shown(right, key)) for key in expected]
    assert all(pair.name.isprintable() for pair in pairs)


def test_a_plan_is_the_same_as_itself(desk: Desk) -> None:
    plan = made(random.Random(1), 20)
    kept = desk.plan(plan)
    assert desk.whole(kept, kept) == (diffs.Counts(len(outcomes(plan)), 0, 0, 0), [])


def test_empty_plans_are_compared_too(desk: Desk) -> None:
    empty, some = desk.plan([]), desk.plan([Group(b"", [Action("create", b"f", "new")])])
    assert desk.whole(empty, empty) == (diffs.Counts(0, 0, 0, 0), [])
    assert desk.whole(empty, some)[0] == diffs.Counts(0, 0, 0, 1)
    assert desk.whole(some, empty)[0] == diffs.Counts(0, 0, 1, 0)


def test_a_plan_that_is_kept_no_more_is_named_as_the_cause(desk: Desk) -> None:
    kept = desk.plan([])
    with pytest.raises(errors.InvalidState, match="no longer kept"):
        desk.page(kept, "0" * 64)


def test_long_names_do_not_make_an_answer_too_large(desk: Desk) -> None:
    groups = [Group(b"d" * 250, [Action("create", b"%d" % n + b"\x01" * 240, "new") for n in range(2000)])]
    kept, empty = desk.plan(groups), desk.plan([])
    page = desk.page(kept, empty, limit=1000)
    assert len(msgspec.json.encode(page)) < 256 * 1024
    assert 0 < len(page.pairs) < 1000
    seen = [pair.name for pair in page.pairs]
    while page.after is not None:
        page = desk.page(kept, empty, page.after, limit=1000)
        seen += [pair.name for pair in page.pairs]
    assert len(seen) == len(set(seen)) == 2000


def test_a_few_comparisons_are_kept_and_no_more(desk: Desk) -> None:
    empty = desk.plan([])
    for n in range(12):
        desk.page(empty, desk.plan([Group(b"", [Action("create", b"%d" % n, "new")])]))
    assert len(list((desk.base / "diffs").iterdir())) == 8
