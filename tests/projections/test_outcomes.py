"""What two jobs did to a collection, side by side, against a comparison in memory."""

from __future__ import annotations

import random
from typing import Any

import pytest
from msgspec import UNSET

from domain import errors
from domain.plans import diffs
from projections import outcomes as read
from tests.projections.test_collections import Site, site

__all__ = ["site"]  # a fixture

Key = tuple[str, str]


async def whole(site: Site, left: str, right: str, limit: int) -> tuple[diffs.Counts, dict[Key, diffs.Pair]]:
    """Everything, page by page."""
    await site.fold()
    database, both = site.store.database, (left, right)
    collection = await read.collection(database, "main", both)
    assert collection is not None
    found: dict[Key, diffs.Pair] = {}
    after = ("", "")
    while page := await read.page(database, "main", both, collection, limit, after):
        assert [key for key, _ in page] == sorted(key for key, _ in page)
        assert all(key > after for key, _ in page)
        found |= dict(page)
        after = page[-1][0]
    return await read.counts(database, "main", both, collection), found


@pytest.mark.parametrize("limit", [1, 3, 1000])
async def test_it_says_what_a_comparison_in_memory_says(site: Site, limit: int) -> None:
    pick = random.Random(limit)
    held: dict[Key, int] = {}
    did: dict[str, dict[Key, tuple[str, int | None]]] = {"1": {}, "2": {}}
    names = [("a", f"{n}") for n in range(12)] + [("b", "1"), ("b", "2/3")]
    for job in ("1", "2"):
        commands: list[tuple[str, str, dict[str, Any] | None]] = []
        for key in pick.sample(names, 10):
            value = pick.choice((None, 1, 2))
            before = held.get(key)
            commands.append((*key, None if value is None else {"v": value}))
            if before == value:
                continue
            op = "created" if before is None else "deleted" if value is None else "updated"
            did[job][key] = op, value
            held.pop(key, None)
            held |= {} if value is None else {key: value}
        await site.say(f"job:{job}", *commands)
    counts, found = await whole(site, "1", "2", limit)
    left, right = did["1"], did["2"]
    both = left.keys() & right.keys()
    same = {key for key in both if left[key] == right[key]}
    assert counts == diffs.Counts(
        len(same), len(both) - len(same), len(left.keys() - right.keys()), len(right.keys() - left.keys())
    )
    assert found.keys() == (left.keys() | right.keys()) - same
    for key, pair in found.items():
        assert pair.name == "/".join(key)
        for done, side in ((pair.left, left), (pair.right, right)):
            assert (None if done is None else done.op) == (side[key][0] if key in side else None)
            assert (done is None or done.hash is not UNSET) == (key not in side or side[key][1] is not None)


async def test_different_collections_are_not_compared(site: Site) -> None:
    await site.say("job:1", ("a", "1", {}))
    await site.say("job:2", ("a", "1", {}), collection="d")
    await site.fold()
    with pytest.raises(errors.Invalid, match="different collections"):
        await read.collection(site.store.database, "main", ("1", "2"))
    assert await read.collection(site.store.database, "main", ("1", "none")) == "c"
    assert await read.collection(site.store.database, "main", ("none", "2")) == "d"
    assert await read.collection(site.store.database, "main", ("none", "neither")) is None
    assert await read.collection(site.store.database, "other", ("1", "2")) is None
