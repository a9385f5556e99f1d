"""Collections over HTTP: page by page, item by item, and nothing of anybody else's."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

import pytest
from msgspec import Raw

from domain import collections, items, messages
from infra.eventstore.store import Wish
from tests.journeys.system import System
from tests.projections.histories import open_store

_numbers = itertools.count(1)
Change = tuple[str, str, dict[str, Any] | None]


async def _append(url: str, collection: str, changes: Sequence[Change], tenant: str, job: str) -> int:
    wishes = []
    for entity, name, content in changes:
        id = items.stream_id(collection, entity, name)
        if content is None:
            wishes.append(Wish(items, id, items.Remove(collection, entity, name, "deleted", "test")))
            continue
        text = items.canonical(content)
        put = items.Put(collection, entity, name, Raw(text), items.digest(text), "2026-01-01T00:00:00.000000Z", "test")
        wishes.append(Wish(items, id, put))
    observe = collections.Observe(Raw(b'{"at":1}'), "config", True)
    async with open_store(url) as store:
        writing = asyncio.create_task(store.writer.run())
        metadata = messages.Metadata(actor=f"job:{job}")
        done = await store.execute_all(
            [*wishes, Wish(collections, collection, observe)], tenant=tenant, metadata=metadata
        )
        writing.cancel()
        return done.position


def bring(
    system: System,
    *changes: Change,
    collection: str | None = None,
    tenant: str = "main",
    job: str = "sync-job-test",
) -> str:
    """As a worker brings them; answers the collection."""
    collection = collection or f"brought-{next(_numbers)}"
    system.wrote = asyncio.run(_append(system.ready["database_url"], collection, changes, tenant, job))
    return collection


def read(system: System, path: str, **more: Any) -> Any:
    return system.ok("GET", f"/api/sync/collections{path}", headers={"Undrift-Min-Position": str(system.wrote)}, **more)


def test_a_collection_shows_what_it_holds(system: System) -> None:
    id = bring(system, ("issues", "a/b c", {"title": "é", "n": 1}), ("issues", "gone", {}), ("labels", "x", {}))
    bring(system, ("issues", "gone", None), ("issues", "a/b c", {"title": "è"}), collection=id)
    [found] = [one for one in read(system, "")["collections"] if one["collectionId"] == id]
    assert (found["items"], found["entities"], found["complete"]) == (2, {"issues": 1, "labels": 1}, True)
    item = read(system, f"/{id}/items/issues/{quote('a/b c', safe='')}")
    assert item == read(system, f"/{id}/items/issues/{quote('a/b c')}")
    assert item.pop("position") > 0
    assert item.pop("updatedAt").endswith("Z")
    assert item == {
        "entity": "issues",
        "id": "a/b c",
        "version": 2,
        "hash": items.digest(items.canonical({"title": "è"})),
        "content": {"title": "è"},
        "revision": "2026-01-01T00:00:00.000000Z",
        "source": "test",
        "jobId": "sync-job-test",
        "deleted": False,
    }
    gone = read(system, f"/{id}/items/issues/gone")
    assert (gone["deleted"], gone["content"], gone["hash"], gone["version"]) == (True, None, None, 2)
    assert [one["id"] for one in read(system, f"/{id}/items")["items"]] == ["a/b c", "x"]
    assert [one["id"] for one in read(system, f"/{id}/items?deleted=true")["items"]] == ["a/b c", "gone", "x"]
    assert [one["id"] for one in read(system, f"/{id}/items?entity=labels")["items"]] == ["x"]
    assert read(system, f"/{id}/items?entity=none") == {"items": [], "nextCursor": None}


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 100])
def test_pages_together_are_everything_once(system: System, limit: int) -> None:
    names = [("b", "1"), ("a", "2"), ("a", "é"), ("b", "x\ty"), ("c", "'"), ("a", "1"), ("b", "😀")]
    id = bring(system, *((entity, name, {"name": name}) for entity, name in names))
    found: list[tuple[str, str]] = []
    cursor: str | None = ""
    while cursor is not None:
        page = read(system, f"/{id}/items?limit={limit}&cursor={cursor}")
        assert len(page["items"]) <= limit
        found += [(one["entity"], one["id"]) for one in page["items"]]
        cursor = page["nextCursor"]
    assert sorted(names) == sorted(found)
    assert [entity for entity, _ in found] == sorted(entity for entity, _ in names)


def test_what_changes_while_somebody_reads_does_not_shift_the_pages(system: System) -> None:
    id = bring(system, *(("a", str(number), {}) for number in range(2, 9)))
    first = read(system, f"/{id}/items?limit=3")
    bring(system, ("a", "1", {}), ("a", "2", None), ("a", "6", None), collection=id)
    rest = read(system, f"/{id}/items?limit=9&cursor={first['nextCursor']}")
    assert [one["id"] for one in first["items"] + rest["items"]] == ["2", "3", "4", "5", "7", "8"]


def test_a_cursor_is_good_for_its_own_question_only(system: System) -> None:
    id, other = (bring(system, ("a", "1", {}), ("a", "2", {}), ("b", "3", {})) for _ in range(2))
    cursor = read(system, f"/{id}/items?limit=1")["nextCursor"]
    wrong = [
        f"/{other}/items?cursor={cursor}",
        f"/{id}/items?cursor={cursor}&entity=a",
        f"/{id}/items?cursor={cursor}&deleted=true",
        f"/{id}/items?cursor={cursor[:-1]}",
        f"/{id}/items?cursor={'A' if cursor[0] != 'A' else 'B'}{cursor[1:]}",
        f"/{id}/items?cursor={cursor}AAAA",
        f"/{id}/items?cursor=null",
        f"/{id}/items?cursor={quote('é')}",
        f"/{id}/items?limit=x",
        f"/{id}/items?deleted=maybe",
    ]
    for path in wrong:
        answer = system.get(f"/api/sync/collections{path}")
        assert (answer.status, answer.json()["code"]) == (400, "VALIDATION_ERROR"), path


def test_what_is_foreign_is_unknown(system: System) -> None:
    system.undrift("tenants", "add", "collections-other")
    other = system.key("collections-admin", "admin", tenant="collections-other")
    id = bring(system, ("a", "1", {}))
    theirs = bring(system, ("a", "1", {}), tenant="collections-other")
    for collection in (theirs, "never-was"):
        for path in ("/items", "/items/a/1"):
            unknown = system.get(f"/api/sync/collections/{collection}{path}")
            foreign = system.get(f"/api/sync/collections/{id}{path}", token=other)
            assert (unknown.status, foreign.status) == (404, 404)
            assert unknown.body == foreign.body
    assert system.get(f"/api/sync/collections/{id}/items/a/2").status == 404
    assert [one["collectionId"] for one in read(system, "", token=other)["collections"]] == [theirs]
    assert theirs not in [one["collectionId"] for one in read(system, "")["collections"]]


def test_an_integration_that_has_brought_nothing_is_an_empty_collection(system: System) -> None:
    system.integration("bare", system.folder(), system.place())
    assert read(system, "/bare/items") == {"items": [], "nextCursor": None}


def test_items_are_events_of_the_feed(system: System) -> None:
    before = system.head()
    id = bring(system, ("a", "1", {"x": 1}))
    events = {
        one["type"]: one["data"] for one in system.events(before) if one["subject"].startswith(f"items/main/{id}.")
    }
    assert events["items.created"]["content"] == {"x": 1}
