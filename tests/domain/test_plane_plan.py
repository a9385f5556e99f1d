"""Plane's rules, each by itself: times, contents, pages, and what a list that moves may have hidden."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest

from domain import errors, kinds
from domain.plans import plane

CONFIG = kinds.PlaneConfig(workspace="acme", api_key="sealed:0", base_url="https://plane.example/api/v1/")


def spec(type: Any = "full_sync", **options: Any) -> plane.Spec:
    made: plane.Spec = kinds.kind("plane").make(CONFIG, type, kinds.Options(**options))
    return made


def row(number: int, updated: datetime | None = None, **more: Any) -> dict[str, Any]:
    at = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=number)
    return {"id": f"id-{number}", "created_at": at.isoformat(), "updated_at": (updated or at).isoformat(), **more}


# What is asked.


def test_the_specification_of_a_run() -> None:
    made = spec("selective_sync", entities=("work-items", "issues", "states"), exclude=("CORE", "labels"))
    assert (made.base_url, made.per_page) == ("https://plane.example", 50)
    assert made.entities == ("work_items", "work_items", "states")
    assert [entity for entity in plane.ENTITIES if made.wants(entity)] == ["states", "work_items"]
    assert [made.wants_project({"id": id, "identifier": id}) for id in ("core", "other")] == [False, True]
    assert spec(batch_size=1000).per_page == plane.PER_PAGE


@pytest.mark.parametrize(
    ("type", "options"),
    [
        ("selective_sync", {}),
        ("full_sync", {"entities": ("states",)}),
        ("incremental_sync", {"projects": ("A",)}),
        ("selective_sync", {"entities": ("cats",)}),
    ],
)
def test_a_choice_goes_with_a_selective_run_and_only_with_it(type: str, options: Any) -> None:
    with pytest.raises(errors.Invalid):
        spec(type, **options)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "plane.example",
        "ftp://plane.example",
        "https://u:p@plane.example",
        "https://",
        "https://h:99999",
        "http://a b",
    ],
)
def test_an_address_that_cannot_be(url: str) -> None:
    with pytest.raises(errors.Invalid):
        plane.base(url)


def test_every_path_ends_in_a_slash_and_names_are_no_paths() -> None:
    made = spec()
    urls = [
        plane.me_url(made),
        plane.projects_url(made),
        plane.projects_url(made, "p"),
        plane.inner_url(made, "p", "work_items"),
        plane.inner_url(made, "p", "work_items", "../../x?y#z"),
    ]
    assert all(url.endswith("/") for url in urls)
    assert urls[-1].endswith("/projects/p/work-items/..%2F..%2Fx%3Fy%23z/")
    assert plane.paged(urls[3], 50, None, "-updated_at").endswith("?per_page=50&cursor=50%3A0%3A0&order_by=-updated_at")


# Times.


@pytest.mark.parametrize(
    ("text", "stamp"),
    [
        ("2026-03-01T10:00:00Z", "2026-03-01T10:00:00.000000Z"),
        ("2026-03-01T10:00:00.123456Z", "2026-03-01T10:00:00.123456Z"),
        ("2026-03-01T15:30:00.5+05:30", "2026-03-01T10:00:00.500000Z"),
        ("2026-03-01T02:00:00-08:00", "2026-03-01T10:00:00.000000Z"),
        ("2026-03-01", None),
        ("2026-03-01T10:00:00", None),
        ("0001-01-01T00:00:00+14:00", None),
        ("9999-12-31T23:59:59-14:00", None),
        ("2026-13-01T10:00:00Z", None),
        (17, None),
        (None, None),
    ],
)
def test_times_are_read_with_their_offset(text: Any, stamp: str | None) -> None:
    at = plane.moment(text)
    assert (None if at is None else plane.stamp(at)) == stamp


def test_stamps_compare_as_text() -> None:
    rng = random.Random(7)
    times = [datetime(rng.randint(1000, 9998), 1, 1, tzinfo=UTC) + timedelta(seconds=rng.random()) for _ in range(500)]
    assert [plane.stamp(at) for at in sorted(times)] == sorted(plane.stamp(at) for at in times)


def test_an_incremental_run_looks_back_over_an_overlap() -> None:
    assert plane.before("2026-03-01T10:00:00.000000Z", 300) == "2026-03-01T09:55:00.000000Z"
    assert plane.before("nonsense", 300) is None
    assert plane.before("1000-01-01T00:00:00.000000Z", 1e12) is None


# Contents.


def test_an_item_is_the_same_from_a_list_from_a_webhook_and_in_any_zone() -> None:
    listed = row(1, name="Fly", state="s", labels=["b", "a"], assignees=["u"], target_date="2026-01-05")
    there = {**listed, "created_at": "2026-01-01T05:30:01+05:30", "updated_at": "2026-01-01T05:30:01+05:30"}
    hooked = {
        **listed,
        "state": {"id": "s", "name": "Todo"},
        "labels": [{"id": "a", "name": "x"}, {"id": "b", "name": "y"}],
        "assignees": [{"id": "u", "display_name": "ada"}],
        "cycle": None,
        "module": None,
    }
    wanted = plane.content("work_items", listed, "p")
    assert plane.content("work_items", there, "p") == wanted
    assert plane.content("work_items", hooked, "p") == wanted
    assert (wanted["created_at"], wanted["target_date"]) == ("2026-01-01T00:00:01.000000Z", "2026-01-05")
    assert (wanted["labels"], wanted["project"]) == (["a", "b"], "p")


def test_what_is_counted_anew_or_belongs_to_whoever_asks_is_left_out() -> None:
    cycle = plane.content("cycles", row(1, total_issues=5, completed_issues=2, name="One"), "p")
    assert "total_issues" not in cycle
    assert plane.content("projects", row(1, sort_order=3.0, member_role=20, name="A")).keys() == {
        "id",
        "created_at",
        "updated_at",
        "name",
    }


def test_a_member_is_one_in_each_project() -> None:
    user = {"id": "u", "display_name": "ada"}
    assert plane.item_id("members", user, "p") == "p:u"
    assert plane.content("members", user, "p") == {**user, "project": "p"}
    assert plane.item_id("members", {"id": 5}, "p") == ""


# Pages.


def envelope(rows: list[Any], more: bool = False, total: Any = None, cursor: Any = "50:1:0") -> plane.Envelope:
    page = {"results": rows, "next_page_results": more, "next_cursor": cursor, "total_count": total}
    return plane.envelope(page)


def test_the_end_is_said_and_not_guessed() -> None:
    assert envelope([row(1)], more=False, total=1).next is None
    assert envelope([row(1)], more=True, total=2).next == "50:1:0"
    assert plane.envelope([row(1)]) == plane.Envelope([row(1)], None, None)


@pytest.mark.parametrize(
    "value",
    [
        None,
        5,
        "page",
        {},
        {"results": []},
        {"results": [], "next_page_results": "yes"},
        {"results": {}, "next_page_results": False},
        {"results": [5], "next_page_results": False},
        {"results": [], "next_page_results": True, "next_cursor": None},
        {"results": [], "next_page_results": True, "next_cursor": "x" * 201},
        [5],
    ],
)
def test_what_is_no_page_is_no_page(value: Any) -> None:
    with pytest.raises(ValueError, match="no "):
        plane.envelope(value)


def scanned(*pages: plane.Envelope, since: str | None = None, began: str = "2026-06-01T00:00:00.000000Z") -> plane.Scan:
    scan = plane.Scan(began, since)
    for page in pages:
        scan = scan.after(page)
    return scan


def test_a_list_that_holds_still_has_not_moved() -> None:
    assert not scanned(envelope([row(1)], True, 3), envelope([row(2)], True, 3), envelope([row(3)], False, 3)).moved


def test_a_row_that_was_taken_away_shows() -> None:
    assert scanned(envelope([row(1)], True, 3), envelope([row(3)], False, 2)).moved


def test_a_row_that_was_taken_away_while_another_came_shows() -> None:
    new = {**row(9), "created_at": "2026-06-01T00:00:01Z"}
    assert scanned(envelope([row(1)], True, 3), envelope([row(3), new], False, 3)).moved
    assert not scanned(envelope([row(1)], True, 2), envelope([row(2), new], False, 3)).moved


def test_one_page_is_one_moment_and_counts_that_are_none_prove_nothing() -> None:
    assert not scanned(envelope([row(1)], False, 5)).moved
    assert scanned(envelope([row(1)], True), envelope([row(2)])).moved
    assert not scanned(envelope([row(1)], True, -1), envelope([row(2)], False, -1)).moved


def test_the_latest_first_ends_where_everything_later_was_seen() -> None:
    since = plane.stamp(datetime(2026, 1, 1, 0, 0, 5, tzinfo=UTC))
    late, early = envelope([row(9), row(8)], True, 9), envelope([row(5), row(4)], True, 9)
    assert not scanned(late, since=since).enough
    assert scanned(late, early, since=since).enough
    assert not scanned(late, envelope([row(5)], True, 9), since=since).enough
    assert not scanned(early, late, since=since).enough  # rows that come in no order


def test_the_latest_first_may_grow_but_not_shrink() -> None:
    since = plane.stamp(datetime(2026, 1, 1, tzinfo=UTC))
    assert not scanned(envelope([row(9)], True, 9), envelope([row(8)], True, 10), since=since).moved
    assert scanned(envelope([row(9)], True, 9), envelope([row(7)], True, 8), since=since).moved


def test_only_news_count() -> None:
    seen = plane.Seen()
    first, again = row(1), row(1, updated=datetime(2026, 2, 1, tzinfo=UTC))
    assert seen.fresh("work_items", [first, row(2), first]) == [first, row(2)]
    assert seen.fresh("work_items", [first, again]) == [again]
    assert seen.fresh("work_items", [first, again]) == []
    assert seen.fresh("work_items", [{"name": "no id"}]) == [{"name": "no id"}]
    assert len(seen) == 2


# The mark, and the place in a run.


def test_a_mark_names_the_projects_it_speaks_of() -> None:
    ids = [f"{n:08x}-1111-4111-8111-111111111111" for n in range(3)]
    made = msgspec.convert(msgspec.to_builtins(plane.mark("t", ids[:2])), plane.Mark)
    assert [made.covers(id, lambda _: True) for id in ids] == [True, True, False]
    many = plane.mark("t", [f"{n:012x}" for n in range(plane.MOST_NAMED + 1)])
    assert many.projects is None
    assert [many.covers(id, ids[:1].__contains__) for id in ids] == [True, False, False]
    assert len(msgspec.json.encode(plane.mark("t", [f"{n:012x}" for n in range(plane.MOST_NAMED)]))) < 192 * 1024


def test_a_run_goes_on_behind_its_place() -> None:
    lists = [(project, entity) for project in ("a", "b", "c") for entity in plane.INNER]
    assert [one for one in lists if plane.reached(plane.Place("t"), *one)] == lists
    for n, (project, entity) in enumerate(lists):
        for done in (False, True):
            place = plane.Place("t", project=project, entity=entity, done=done)
            assert [one for one in lists if plane.reached(place, *one)] == lists[n + done :]
    gone = plane.Place("t", project="aa", entity="labels")  # deleted since
    assert [one for one in lists if plane.reached(gone, *one)] == lists[len(plane.INNER) :]


def test_a_place_survives_as_json() -> None:
    scan = scanned(envelope([row(1)], True, 3))
    place = plane.Place("t", project="p", entity="states", cursor="50:1:0", scan=scan, skipped=("q",))
    assert msgspec.convert(msgspec.json.decode(msgspec.json.encode(msgspec.to_builtins(place))), plane.Place) == place


def test_progress_only_claims_what_is_done() -> None:
    values = [plane.percent(done, 3, part) for done in range(18) for part in (0.0, 0.5, 7.0)]
    assert values == sorted(values)
    assert (values[0], max(values)) == (0, 94)
    assert plane.percent(0, 0, -1) == 0
