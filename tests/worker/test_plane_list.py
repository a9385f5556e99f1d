"""A list that is changed behind every page still shows everything that was there all the time."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, cast
from urllib.parse import parse_qsl, urlsplit

import msgspec
import pytest

from domain import errors
from domain.plans import plane
from services.worker.plane_client import Client
from services.worker.plane_list import Listing
from tests.doubles import plane_api
from tests.doubles.plane_world import World

SPEC = plane.Spec("http://plane.example", "acme", "sealed:0", per_page=5)


class Asked:
    """The double without its socket: whoever asks for a page gets it, and then something happens."""

    def __init__(self, world: World, user: str, then: Callable[[], None]) -> None:
        self._world, self._key, self._then = world, world.key(user), then
        self.pages = 0

    def page(self, url: str) -> tuple[plane.Envelope, str]:
        parts = urlsplit(url)
        query = dict(parse_qsl(parts.query))
        at = plane.stamp(self._world.now())
        answer = plane_api.Api(self._world, self._key, query, b"").serve("GET", parts.path)
        assert answer.status == 200, answer
        self.pages += 1
        self._then()
        return plane.envelope(msgspec.json.decode(answer.body)), at


def made(count: int) -> tuple[World, str, str]:
    world = World()
    user = world.user("Ada")
    project = world.project("Rockets", user)
    world.items(project, user, count)
    for n, one in enumerate(world.of("work_items", project)):
        one["created_at"] = one["updated_at"] = datetime.now(UTC) - timedelta(days=1, seconds=-n)
    return world, user, project


def seen(listing: Listing, **start: Any) -> set[str]:
    return {str(row["id"]) for found in listing.pages(**start) for row in found.rows}


@pytest.mark.parametrize("entity", ["work_items", "labels"])
def test_what_stays_is_seen(entity: str) -> None:
    """In 300 seeded histories of insertions, deletions, archiving and changes, the first 8 of them between pages."""
    complete = 0
    for seed in range(300):
        rng = random.Random(seed)
        world, user, project = made(rng.randint(1, 40) if entity == "work_items" else 0)
        for n in range(rng.randint(0, 30) if entity == "labels" else 0):
            world.add("labels", project, user, name=str(n), color="#fff")
        left = rng.randint(0, 8)
        before = {one["id"] for one in world.listed(entity, project)}

        def happens(rng: random.Random = rng, world: World = world, project: str = project, user: str = user) -> None:
            nonlocal left
            while left and rng.random() < 0.7:
                left -= 1
                there = [one["id"] for one in world.listed(entity, project)]
                choice = rng.choice(("add", "remove", "change", "archive"))
                if choice == "add" or not there:
                    world.add(entity, project, user, name="new")
                elif choice == "remove":
                    world.remove(entity, rng.choice(there))
                elif choice == "archive" and entity == "work_items":
                    world.archive(entity, rng.choice(there))
                else:
                    world.change(entity, rng.choice(there), name="changed")

        listing = Listing(cast(Client, Asked(world, user, happens)), SPEC, entity, project)
        found = seen(listing)
        complete += listing.complete
        stayed = before & {one["id"] for one in world.listed(entity, project)}
        assert not listing.complete or found >= stayed, seed
        assert found <= before | set(world.records[entity]) or left == 0
    assert complete > 250


def test_the_latest_first_sees_every_change_since() -> None:
    for seed in range(200):
        rng = random.Random(seed)
        world, user, project = made(40)
        ids = [one["id"] for one in world.of("work_items", project)]
        since = plane.stamp(world.now())
        wanted = set(rng.sample(ids, rng.randint(0, 25)))
        for id in wanted:
            world.change("work_items", id, name="changed")
        left = 6

        def happens(
            rng: random.Random = rng,
            world: World = world,
            ids: list[str] = ids,
            project: str = project,
            user: str = user,
        ) -> None:
            nonlocal left
            alive = [id for id in ids if id in world.records["work_items"]]
            if left and rng.random() < 0.5:
                left -= 1
                if rng.random() < 0.5:
                    world.remove("work_items", rng.choice(alive))
                else:
                    world.items(project, user, 1)

        asked = Asked(world, user, happens)
        listing = Listing(cast(Client, asked), SPEC, "work_items", project, since)
        found = seen(listing)
        assert not listing.complete or found >= wanted & world.records["work_items"].keys(), seed
        assert asked.pages <= 4 * (len(wanted) // 5 + 4)


def test_it_goes_on_from_any_page() -> None:
    world, user, project = made(23)
    asked = Asked(world, user, lambda: None)
    pages = list(Listing(cast(Client, asked), SPEC, "work_items", project).pages())
    assert [len(one.rows) for one in pages] == [5, 5, 5, 5, 3]
    assert [one.done for one in pages] == [False] * 4 + [True]
    for n, page in enumerate(pages[:-1]):
        again = Listing(cast(Client, asked), SPEC, "work_items", project)
        rest = [row["id"] for found in again.pages(page.scan, page.cursor) for row in found.rows]
        assert rest == [row["id"] for one in pages[n + 1 :] for row in one.rows]
        assert again.complete


def test_a_deletion_between_two_runs_shows_too() -> None:
    world, user, project = made(23)
    asked = Asked(world, user, lambda: None)
    first = next(iter(Listing(cast(Client, asked), SPEC, "work_items", project).pages()))
    ids = [one["id"] for one in world.of("work_items", project)]
    world.remove("work_items", ids[0])
    again = Listing(cast(Client, asked), SPEC, "work_items", project)
    assert seen(again, scan=first.scan, cursor=first.cursor) >= set(ids[5:])
    assert (again.complete, again.rescans) == (True, 1)


def test_a_remote_that_repeats_itself_is_left() -> None:
    class Repeating(Asked):
        def page(self, url: str) -> tuple[plane.Envelope, str]:
            page, at = super().page(plane.paged(url.partition("?")[0], 5, None))
            return msgspec.structs.replace(page, next="5:1:0"), at

    world, user, project = made(23)
    asked = Repeating(world, user, lambda: None)
    with pytest.raises(errors.SyncFailed, match="again and again"):
        seen(Listing(cast(Client, asked), SPEC, "work_items", project))
    assert asked.pages < 20
