"""The event feed over HTTP: everything the tenant did, once, in order, at the log's own positions."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.journeys.sse import follow
from tests.journeys.system import ADMIN, Answer, System, at_once

TIME = re.compile(r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}\.\d{3}Z")
EVENT = {"position", "id", "type", "time", "subject", "version", "actor", "data"}


def page(system: System, query: str = "", token: str = ADMIN) -> dict[str, Any]:
    found: dict[str, Any] = system.ok("GET", f"/api/v1/feeds/events?{query}", token=token)
    assert found.keys() == {"events", "next", "head", "epoch"}
    return found


def chain(system: System, limits: Iterator[int], most: int = 1_000_000) -> list[dict[str, Any]]:
    """Page after page from the start, until there is no more or `most` were read."""
    found: list[dict[str, Any]] = []
    after = 0
    for limit in limits:
        one = page(system, f"after={after}&limit={limit}")
        found += one["events"]
        if one["next"] == after or len(found) >= most:
            break
        assert after < one["next"] <= after + limit
        after = one["next"]
    return found[:most]


def refused(answer: Answer, status: int, code: str) -> dict[str, Any]:
    found: dict[str, Any] = answer.json()
    assert (status, code) == (answer.status, found["errorCode"]), answer
    return found


def forever(*values: int) -> Iterator[int]:
    while True:
        yield from values


@pytest.fixture(scope="module", autouse=True)
def history(system: System) -> None:
    """At least something in the log."""
    system.integration("told", system.folder(a="1"), system.place())
    system.wait(system.queue("told"))


def test_an_event_is_shown_with_what_the_log_knows_of_it(system: System) -> None:
    first, *_ = (one for one in page(system, "limit=1000")["events"] if one["subject"].startswith("integrations/"))
    assert first.keys() == EVENT
    assert TIME.fullmatch(first["time"])
    assert first["version"] >= 1
    assert first["actor"]
    assert isinstance(first["data"], dict)


def test_positions_are_those_of_the_log_without_a_gap(system: System) -> None:
    found = chain(system, forever(1000))
    tenants = {row[0]: row[1] for row in system.sql("select pos, tenant from undrift.events")}
    mine = [position for position, tenant in sorted(tenants.items()) if tenant == "main"]
    assert mine == [one["position"] for one in found][: len(mine)]
    assert sorted(tenants) == list(range(1, len(tenants) + 1))


@pytest.mark.parametrize("limits", [(1,), (2, 3, 5, 7), (100,)], ids=["one", "odd", "many"])
def test_pages_of_any_size_make_the_same_whole(system: System, limits: tuple[int, ...]) -> None:
    whole = chain(system, forever(1000))[:200]
    assert whole == chain(system, forever(*limits), len(whole))


def test_a_limit_is_clamped(system: System) -> None:
    assert len(page(system, "limit=0")["events"]) == 1
    assert len(page(system, "limit=-3")["events"]) == 1
    assert len(page(system, "limit=99999999999999999999999999999999999")["events"]) <= 1000
    assert len(page(system)["events"]) <= 100


@pytest.mark.parametrize("query", ["after=-1", "after=x", "limit=x", "wait=x", "after=1.5", "after=%00", "epoch=x"])
def test_what_is_no_position_is_refused(system: System, query: str) -> None:
    refused(system.get(f"/api/v1/feeds/events?{query}", token=ADMIN), 400, "INVALID_REQUEST")


def test_a_position_that_is_not_there_yet_is_refused(system: System) -> None:
    head = page(system)["head"]
    refused(system.get(f"/api/v1/feeds/events?after={head + 1000}", token=ADMIN), 400, "INVALID_REQUEST")
    refused(system.get(f"/api/v1/feeds/events?after={2**62}", token=ADMIN), 400, "INVALID_REQUEST")


def test_a_position_of_another_history_is_gone(system: System) -> None:
    epoch = page(system)["epoch"]
    assert page(system, f"epoch={epoch}")["events"]
    found = refused(system.get(f"/api/v1/feeds/events?after=1&epoch={epoch + 1}", token=ADMIN), 410, "GONE")
    assert found["context"]["resync"]["after"] == 0


def test_at_the_end_there_is_nothing_and_the_position_stays(system: System) -> None:
    head = page(system)["head"]
    found = page(system, f"after={head}")
    assert (found["events"], found["next"]) == ([], head)


def test_who_waits_is_answered_when_something_happens(system: System) -> None:
    head = page(system)["head"]
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(page, system, f"after={head}&wait=30")
        made = system.post(
            "/api/sync/integrations",
            {
                "name": "Awaited",
                "kind": "files",
                "config": {
                    "sourceDirectory": str(system.roots / "w1"),
                    "targetDirectory": str(system.roots / "w2"),
                },
            },
        )
        found = waiting.result()
    assert [one["type"] for one in found["events"]] == ["integrations.created"]
    assert found["events"][0]["position"] == made.position


def test_who_waits_in_vain_is_answered_in_time(system: System) -> None:
    head = page(system)["head"]
    found = page(system, f"after={head}&wait=1")
    assert (found["events"], found["next"]) == ([], head)


def of_topics(system: System, *wanted: str) -> list[dict[str, Any]]:
    """What the whole feed has of them."""
    every = chain(system, forever(1000))
    return [one for one in every if one["type"] in wanted or f"{one['type'].partition('.')[0]}.*" in wanted]


@pytest.mark.parametrize("topics", ["jobs.queued", "jobs.*", "integrations.*,jobs.completed", "jobs.*,jobs.queued"])
def test_topics_choose_what_is_read(system: System, topics: str) -> None:
    wanted = of_topics(system, *topics.split(","))
    assert wanted
    for limit in (1, 3, 1000):
        found: list[dict[str, Any]] = []
        after = 0
        while len(found) < len(wanted):
            one = page(system, f"after={after}&limit={limit}&topics={topics}")
            assert len(one["events"]) <= limit
            found += one["events"]
            assert one["next"] > after
            after = one["next"]
        assert found[: len(wanted)] == wanted


def test_next_is_behind_what_is_of_other_topics(system: System) -> None:
    head = page(system)["head"]
    found = page(system, "topics=servers.crashed")
    assert (found["events"], found["next"] >= head) == ([], True)


@pytest.mark.parametrize("topics", ["", "jobs", "jobs.unheard", "jobs.*.x", ">", "evt.main.>", "jobs.queued,,", "%00"])
def test_topics_that_no_event_has_are_refused(system: System, topics: str) -> None:
    refused(system.get(f"/api/v1/feeds/events?topics={topics}", token=ADMIN), 400, "INVALID_REQUEST")


def rename(system: System, name: str) -> Answer:
    return system.call("PUT", "/api/sync/integrations/told", {"name": name})


def test_who_waits_for_a_topic_is_not_woken_by_others(system: System) -> None:
    head = page(system)["head"]
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(page, system, f"after={head}&wait=60&topics=jobs.completed")
        for number in range(5):
            assert rename(system, f"Name {number}").status == 200
        assert not waiting.done()
        system.wait(system.queue("told"))
        found = waiting.result()
    assert [one["type"] for one in found["events"]] == ["jobs.completed"]
    assert found["next"] >= found["events"][0]["position"] > head + 5


def test_a_stream_of_topics(system: System) -> None:
    with follow(system, "/api/v1/feeds/events?topics=integrations.changed,jobs.queued") as stream:
        wanted = of_topics(system, "integrations.changed", "jobs.queued")
        made = rename(system, "Streamed")
        told = iter(stream)
        for expected in wanted:
            assert next(told).data == expected
        assert next(told).data["position"] == made.position


def test_readers_at_any_pace_see_one_order_while_many_write(system: System) -> None:
    before = page(system)["head"]
    name = json.dumps(str(system.roots))[1:-1]

    def write(number: int) -> list[int]:
        config = {"sourceDirectory": f"{name}/s{number}", "targetDirectory": f"{name}/t{number}"}
        body = {"id": f"writer-{number}", "name": "x", "kind": "files", "config": config}
        found = [system.post("/api/sync/integrations", body).position]
        for turn in range(12):
            answer = system.call("PUT", f"/api/sync/integrations/writer-{number}", {"name": f"turn {turn}"})
            found.append(answer.position)
        return found

    def read(limit: int) -> list[tuple[int, str]]:
        found: list[tuple[int, str]] = []
        after = before
        while sum(type.startswith("integrations.") for _, type in found) < 8 * 13:
            one = page(system, f"after={after}&limit={limit}&wait=5")
            found += [(event["position"], event["type"]) for event in one["events"]]
            after = one["next"]
        return found

    with ThreadPoolExecutor(4) as pool:
        reading = [pool.submit(read, limit) for limit in (1, 7, 1000)]
        written = at_once(8, write)
        orders = [one.result() for one in reading]
    for order in orders:
        positions = [position for position, _ in order]
        assert positions == list(range(before + 1, before + 1 + len(positions)))
    every = {position for found in written for position in found}
    assert len(every) == 8 * 13
    assert every <= {position for position, _ in orders[0]}
    shortest = min(map(len, orders))
    assert orders[0][:shortest] == orders[1][:shortest] == orders[2][:shortest]


def test_a_tenant_reads_only_its_own(system: System) -> None:
    system.undrift("tenants", "add", "feed-other")
    token = system.key("feed-reader", "feeds:read", tenant="feed-other")
    found = []
    after = 0
    while (one := page(system, f"after={after}&limit=1000", token))["next"] != after:
        found += one["events"]
        after = one["next"]
    assert {event["subject"].split("/")[1] for event in found} <= {"feed-other"}
    assert any(event["type"] == "keys.added" for event in found)
    assert token not in json.dumps(chain(system, forever(1000)))


def test_secrets_are_not_in_the_feed(system: System) -> None:
    every = json.dumps(chain(system, forever(1000)))
    assert system.ready["admin_token"] not in every
    assert system.ready["database_url"] not in every
