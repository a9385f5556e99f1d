"""Jobs and events as they go on: server-sent events that lose nothing, repeat nothing and end when they should."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.journeys.sse import Event, Stream, follow
from tests.journeys.system import ADMIN, System, at_once, until

ENDED = ("completed", "failed", "stopped", "deleted")


def path(job: str) -> str:
    return f"/api/sync/jobs/{job}/events"


def whole(system: System, job: str, **more: Any) -> list[Event]:
    with follow(system, path(job), **more) as stream:
        assert stream.status == 200, stream.body()
        found = list(stream)
        assert stream.whole
        return found


def of(events: Sequence[Event], type: str) -> list[Any]:
    return [event.data for event in events if event.type == type]


def statuses(events: Sequence[Event]) -> list[str]:
    return [one["status"] for one in of(events, "status")]


def numbers(events: Sequence[Event]) -> list[int]:
    return [one["seq"] for one in of(events, "log")]


def lines(system: System, job: str) -> list[Any]:
    return [
        {name: one[name] for name in ("timestamp", "level", "message")}
        for one in system.ok("GET", f"/api/sync/jobs/{job}/logs", token=ADMIN)["logs"]
    ]


def goes_up(percents: Sequence[int]) -> bool:
    return list(percents) == sorted(percents)


class Hand:
    """Writes the rows of a job that runs, as its worker would."""

    def __init__(self, system: System, job: str) -> None:
        self.system, self.job = system, job
        self.seq = int(system.sql("select coalesce(max(seq), 0) from undrift.job_logs where job = %s", job)[0][0])

    def say(self, count: int, size: int = 20) -> None:
        self.system.sql(
            "insert into undrift.job_logs (job, seq, tenant, level, message)"
            " select %s, %s + n, 'main', 'info', n || repeat('.', %s) from generate_series(1, %s) n returning 1",
            self.job,
            self.seq,
            size,
            count,
        )
        self.seq += count

    def show(self, percent: int, remaining_s: float | None = None) -> None:
        counters = dict.fromkeys(("processed", "created", "updated", "deleted", "errors", "bytes"), percent)
        row: dict[str, Any] = {"stage": "by_hand", "progress": percent, "counters": counters}
        if remaining_s is not None:
            row["remaining_s"] = remaining_s
        self.system.sql(
            "insert into undrift.job_progress (job, tenant, fence, progress) values (%s, 'main', 0, %s)"
            " on conflict (job) do update set progress = excluded.progress, updated_at = clock_timestamp() returning 1",
            self.job,
            json.dumps(row),
        )


@pytest.fixture(scope="module", autouse=True)
def integration(system: System) -> None:
    system.integration("live", system.folder(a="1", b="2", c__d="3"), system.place())


@pytest.fixture
def held(system: System) -> Iterator[str]:
    """A job that runs and comes to no end while the test runs."""
    with system.numb():
        job = system.queue("live")
        assert until(lambda: system.status(job) == "running")
        yield job
        system.post(f"/api/sync/jobs/{job}/stop", {"graceful": False})
        system.wait(job)


def test_a_job_is_followed_from_its_beginning_to_its_end(system: System) -> None:
    with contextlib.ExitStack() as stack:
        with system.idle():
            job = system.queue("live")
            stream = stack.enter_context(follow(system, path(job)))
            events = [next(iter(stream))]
            assert statuses(events) == ["queued"]
        events += stream
        assert stream.whole
    assert statuses(events) == ["queued", "running", "completed"]
    assert [event.type for event in events][-2:] == ["status", "end"]
    assert of(events, "end") == [{"id": job, "status": "completed"}]
    assert [{k: v for k, v in one.items() if k != "seq"} for one in of(events, "log")] == lines(system, job)
    assert goes_up([one["progress"] for one in of(events, "progress")])
    shown = system.ok("GET", f"/api/sync/jobs/{job}", token=ADMIN)  # whoever was told of the end sees it
    last = of(events, "status")[-1]
    for name in ("id", "kind", "type", "integrationId", "createdAt", "startedAt", "completedAt", "duration", "result"):
        assert last[name] == shown[name]
    assert last["progress"] == 100


def test_the_head_of_the_answer_keeps_proxies_from_holding_it_back(system: System, held: str) -> None:
    with follow(system, path(held)) as stream:
        assert stream.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert "no-store" in stream.headers["cache-control"]
        assert "no-transform" in stream.headers["cache-control"]
        assert stream.headers["x-accel-buffering"] == "no"
        assert "content-length" not in stream.headers
        assert int(stream.headers["undrift-position"]) > 0
    head = system.call("HEAD", path(held))
    assert (head.status, head.body, head.headers["content-type"]) == (200, b"", "text/event-stream; charset=utf-8")


def test_a_job_that_has_ended_is_told_again_and_again(system: System) -> None:
    job = system.queue("live")
    system.wait(job)
    first, second = whole(system, job), whole(system, job)
    assert first == second
    assert statuses(first)[-1] == "completed"
    assert first[-1].type == "end"


def test_every_place_to_go_on_from_is_right(system: System) -> None:
    job = system.queue("live")
    system.wait(job)
    events = whole(system, job)
    for n, event in enumerate(events[:-2]):
        rest = whole(system, job, last=event.id)
        kept = [one for one in events[n + 1 :] if one.type != "progress"]
        assert [(one.type, one.data) for one in rest if one.type != "progress"] == [(o.type, o.data) for o in kept]


def test_where_nothing_can_follow_a_client_is_told_to_stop(system: System) -> None:
    job = system.queue("live")
    system.wait(job)
    last = whole(system, job)[-1].id
    assert system.get(path(job), headers={"Last-Event-ID": last}).status == 204
    assert system.get(f"{path(job)}?lastEventId={last}").status == 204
    assert system.get(f"{path(job)}?lastEventId=1.0.0", headers={"Last-Event-ID": last}).status == 204


def test_progress_and_lines_arrive_while_it_runs(system: System, held: str) -> None:
    hand = Hand(system, held)
    with follow(system, path(held)) as stream:
        events = iter(stream)
        while next(events).type != "progress":
            pass
        for percent in (30, 31, 57):
            hand.show(percent)
            while (event := next(events)).type != "progress" or event.data["progress"] != percent:
                assert event.type in ("progress", "log")
        hand.say(3)
        told = [next(events) for _ in range(3)]
        assert [one.type for one in told] == ["log"] * 3
        assert [one.data["seq"] for one in told] == [hand.seq - 2, hand.seq - 1, hand.seq]
    detail = system.job(held)
    assert (detail["progress"], detail["stage"], detail["stats"]["processed"]) == (57, "by_hand", 57)
    assert system.ok("GET", "/api/sync/jobs?status=running")["jobs"][0]["progress"] == 57


def test_progress_never_goes_back(system: System, held: str) -> None:
    hand = Hand(system, held)
    with follow(system, path(held)) as stream:
        events = iter(stream)
        hand.show(50)
        while (event := next(events)).type != "progress" or event.data["progress"] != 50:
            pass
        hand.show(20)
        time.sleep(0.6)
        hand.show(60)
        seen: list[int] = []
        while not seen or seen[-1] != 60:
            event = next(events)
            seen += [event.data["progress"]] if event.type == "progress" else []
        assert goes_up([50, *seen])


def test_progress_never_goes_back_when_another_worker_goes_on(system: System) -> None:
    with contextlib.ExitStack() as stack:
        with system.numb():
            job = system.queue("live")
            assert until(lambda: system.status(job) == "running")
            stream = stack.enter_context(follow(system, path(job)))
            Hand(system, job).show(57)
            events = []
            for event in stream:
                events.append(event)
                if event.type == "progress" and event.data["progress"] == 57:
                    break
            pid = system.kill("worker")
            system.replaced("worker", pid)
        events += stream
    percents = [one["progress"] for one in of(events, "progress")]
    assert goes_up(percents)
    assert system.wait(job)["status"] == statuses(events)[-1] == "completed"
    assert {"running"} == set(statuses(events)[1:-1])


def test_when_it_should_be_done_is_told_while_it_is_known(system: System, held: str) -> None:
    hand = Hand(system, held)
    assert "estimatedCompletion" not in system.job(held)
    hand.show(40, remaining_s=3600)
    expected = until(lambda: system.job(held).get("estimatedCompletion"))
    assert expected > system.job(held)["startedAt"]
    with follow(system, path(held)) as stream:
        [shown] = [next(one for one in stream if one.type == "progress")]
        assert shown.data["estimatedCompletion"] == expected
    hand.show(41, remaining_s=0.001)
    assert until(lambda: "estimatedCompletion" not in system.job(held))


def curl(system: System, job: str, last: str, found: Path) -> subprocess.Popen[bytes]:
    command = ["curl", "-sN", "-H", f"Last-Event-ID: {last}" if last else "X: y", f"{system.ready['url']}{path(job)}"]
    with open(found, "ab") as out:
        return subprocess.Popen(command, stdout=out)


def parsed(raw: bytes) -> list[Event]:
    """What is complete of a stream that was cut anywhere."""
    found = []
    for block in raw.decode(errors="replace").split("\n\n")[:-1]:
        fields = dict(line.partition(": ")[::2] for line in block.split("\n") if not line.startswith(":"))
        if "data" in fields:
            found.append(Event(fields.get("id", ""), fields["event"], json.loads(fields["data"])))
    return found


def has(found: Path, more: int) -> bool:
    return len(numbers(parsed(found.read_bytes()))) > more


def test_a_gateway_that_is_killed_loses_nothing_and_repeats_nothing(tmp_path: Path, system: System, held: str) -> None:
    hand = Hand(system, held)
    done = threading.Event()

    def work() -> None:
        percent = 1
        while not done.is_set():
            hand.say(7)
            percent = min(percent + 1, 98)
            hand.show(percent)
            time.sleep(0.01)

    with ThreadPoolExecutor(1) as pool:
        working = pool.submit(work)
        events: list[Event] = []
        for turn in range(3):
            last = next((event.id for event in reversed(events) if event.id), "")
            found = tmp_path / f"turn-{turn}"
            client = curl(system, held, last, found)
            assert until(partial(has, found, 300 * (turn + 1)))
            pid = system.kill("gateway")
            client.wait(30)
            events += parsed(found.read_bytes())
            system.replaced("gateway", pid)
        done.set()
        working.result()
    last = next(event.id for event in reversed(events) if event.id)
    with follow(system, path(held), last=last) as stream:
        for event in stream:
            events.append(event)
            if event.type == "log" and event.data["seq"] == hand.seq:
                break
    assert numbers(events) == list(range(1, hand.seq + 1))
    assert statuses(events) == ["queued", "running"]
    assert goes_up([one["progress"] for one in of(events, "progress")])


def test_many_clients_follow_at_once(system: System, held: str) -> None:
    hand = Hand(system, held)
    hand.say(600)

    def client(number: int) -> list[Event]:
        with follow(system, path(held)) as stream:
            return list(stream)

    with ThreadPoolExecutor(200) as pool:
        following = [pool.submit(client, n) for n in range(200)]
        assert until(lambda: streams(system) >= 200)
        for _ in range(20):
            hand.say(10)
            time.sleep(0.02)
        system.post(f"/api/sync/jobs/{held}/stop", {"graceful": False})
        found = [one.result(120) for one in following]
    for events in found:
        assert numbers(events) == list(range(1, numbers(events)[-1] + 1))
        assert numbers(events)[-1] >= hand.seq
        assert statuses(events) == ["queued", "running", "stopping", "stopped"]
        assert of(events, "end") == [{"id": held, "status": "stopped"}]
    assert until(lambda: streams(system) == 0)


def streams(system: System) -> int:
    text = system.get("/metrics").body.decode()
    return int(float(next(line for line in text.splitlines() if line.startswith("undrift_open_streams "))[21:]))


def test_large_lines_reach_a_client_that_is_slow(system: System, held: str) -> None:
    hand = Hand(system, held)
    with follow(system, path(held)) as stream:
        events = iter(stream)
        next(events)
        for _ in range(10):
            hand.say(300, size=3900)
        time.sleep(1)
        hand.say(1)
        seen = [1] if hand.seq == 0 else []
        for event in events:
            seen += [event.data["seq"]] if event.type == "log" else []
            if seen and seen[-1] == hand.seq:
                break
    assert seen == list(range(seen[0], hand.seq + 1))


def test_what_is_unknown_or_somebody_elses_is_404(system: System, held: str) -> None:
    assert system.get(path("nothing")).status == 404
    system.undrift("tenants", "add", "live-other")
    other = system.key("live-stranger", "jobs:read", tenant="live-other")
    answers = [system.get(path(id), token=other) for id in (held, "nothing")]
    assert {answer.status for answer in answers} == {404}
    assert len({answer.body for answer in answers}) == 1


def test_a_key_follows_what_it_queued_and_nothing_else(system: System, held: str) -> None:
    token = system.key("live-writer", "jobs:write")
    with system.idle():
        body = {"integrationId": "live", "type": "full_sync"}
        mine = system.ok("POST", "/api/sync/jobs", body, token=token)["jobId"]
    assert system.get(path(held), token=token).status == 403
    with follow(system, path(mine), token=token) as stream:
        assert next(iter(stream)).data["status"] == "queued"
    system.post(f"/api/sync/jobs/{mine}/stop", token=ADMIN)


def test_a_revoked_key_keeps_nothing_open(system: System, held: str) -> None:
    token = system.key("live-revoked", "jobs:read", "feeds:read")
    with follow(system, path(held), token=token) as job, follow(system, "/api/v1/feeds/events", token=token) as feed:
        assert next(iter(job)).type == "status"
        assert next(iter(feed)).type == "message"
        system.undrift("keys", "revoke", token.split("_")[1])
        for stream in (job, feed):
            assert all(event.type != "end" for event in stream)
            assert stream.whole
    assert system.get(path(held), token=token).status == 401


@pytest.mark.parametrize("last", ["x", "1.2", "1.2.3.4", "-1.2.3", "1.2.x", "9999999999.1.1", "1.2.3 4"])
def test_an_id_that_is_none_is_refused(system: System, held: str, last: str) -> None:
    assert system.get(path(held), headers={"Last-Event-ID": last}).status == 400


def test_an_id_of_another_history_is_gone(system: System, held: str) -> None:
    answer = system.get(path(held), headers={"Last-Event-ID": "7.1.1"})
    assert (answer.status, answer.json()["code"]) == (410, "GONE")
    assert answer.json()["details"]["resync"]["epoch"] == 1


def test_an_id_that_nobody_gave_is_taken_for_the_present(system: System, held: str) -> None:
    hand = Hand(system, held)
    with follow(system, path(held), last=f"1.{10**12}.{10**12}") as stream:
        events = iter(stream)
        assert next(events).type == "progress"
        hand.say(1)
        assert next(event.data["seq"] for event in events if event.type == "log") == hand.seq


def test_a_job_that_is_held_goes_on_being_followed_until_it_is_deleted(system: System) -> None:
    target = system.folder(**{f"f{n}": "x" for n in range(50)})
    system.integration("live-held", system.folder(a="1"), target, deleteMissingInTarget=True)
    job = system.queue("live-held")
    with follow(system, path(job)) as stream:
        events = iter(stream)
        found = [next(events)]
        while found[-1].type != "status" or found[-1].data["status"] != "paused":
            found.append(next(events))
        assert found[-1].data["error"]["code"] == "held"
        assert found[-1].data["error"]["plan"]
        system.ok("DELETE", f"/api/sync/jobs/{job}")
        found += list(events)
        assert stream.whole
    assert statuses(found)[-1] == "deleted"
    assert found[-1].data == {"id": job, "status": "deleted"}
    assert system.get(path(job)).status == 404


def test_who_followed_a_job_that_failed_follows_it_when_it_is_resumed(system: System) -> None:
    source, target = system.place(), system.place()
    system.integration("live-fails", source, target)
    job = system.queue("live-fails")
    system.wait(job, "failed")
    first = whole(system, job)
    assert statuses(first)[-1] == "failed"
    assert of(first, "status")[-1]["error"]["message"]
    source.mkdir()
    (source / "file").write_text("here")
    system.ok("POST", f"/api/sync/jobs/{job}/resume")
    with follow(system, path(job), last=first[-1].id) as stream:
        second = list(stream)
    assert statuses(second)[-1] == "completed"
    assert "failed" not in statuses(second)
    assert numbers([*first, *second]) == list(range(1, len(lines(system, job)) + 1))


def test_a_gateway_that_stops_ends_its_streams_well(system: System, held: str) -> None:
    with follow(system, path(held)) as job, follow(system, "/api/v1/feeds/events") as feed:
        assert next(iter(job)).type == "status"
        assert next(iter(feed)).type == "message"
        pid = system.kill("gateway", signal.SIGTERM)
        for stream in (job, feed):
            assert list(stream) is not None
            assert stream.whole
    system.replaced("gateway", pid)


# The event feed.

FEED = "/api/v1/feeds/events"


def take(stream: Stream, until_position: int) -> list[Event]:
    found = []
    for event in stream:
        found.append(event)
        if event.data["position"] >= until_position:
            break
    return found


def test_the_feed_streams_what_its_pages_show(system: System) -> None:
    head = system.head()
    with follow(system, FEED) as stream:
        found = take(stream, head)
    assert [event.data for event in found] == [one for one in system.events() if one["position"] <= head]
    assert {event.type for event in found} == {"message"}
    assert all(event.id == f"1.{event.data['position']}" for event in found)


@pytest.mark.parametrize("last", ["1.{}", "{}"])
def test_the_feed_goes_on_behind_an_event(system: System, last: str) -> None:
    head = system.head()
    after = head - 5
    with follow(system, FEED, last=last.format(after)) as stream:
        found = take(stream, head)
    assert found[0].data["position"] == after + 1
    with follow(system, f"{FEED}?after={after}") as stream:
        assert take(stream, head) == found


def test_what_happens_is_told_to_everybody_in_one_order(system: System) -> None:
    head = system.head()

    def write(number: int) -> int:
        made = {"sourceDirectory": f"{system.roots}/x", "targetDirectory": f"{system.roots}/y"}
        body = {"id": f"live-writer-{number}", "name": "x", "kind": "files", "config": made}
        system.ok("POST", "/api/sync/integrations", body)
        for turn in range(10):
            system.call("PUT", f"/api/sync/integrations/live-writer-{number}", {"name": f"turn {turn}"})
        return 11

    def read(_: int) -> list[Event]:
        with follow(system, FEED, last=str(head)) as stream:
            return take(stream, head + 88)

    with ThreadPoolExecutor(10) as pool:
        reading = [pool.submit(read, n) for n in range(10)]
        assert sum(at_once(8, write)) == 88
        found = [one.result(60) for one in reading]
    for events in found:
        positions = [event.data["position"] for event in events]
        assert positions == list(range(head + 1, positions[-1] + 1))


def test_a_position_of_another_history_is_gone_and_one_ahead_is_refused(system: System) -> None:
    headers = {"Accept": "text/event-stream"}
    gone = system.get(FEED, token=ADMIN, headers={**headers, "Last-Event-ID": "2.1"})
    assert (gone.status, gone.json()["errorCode"]) == (410, "GONE")
    assert system.get(f"{FEED}?epoch=2", token=ADMIN, headers=headers).status == 410
    ahead = str(system.head() + 1000)
    assert system.get(FEED, token=ADMIN, headers={**headers, "Last-Event-ID": ahead}).status == 400
    assert system.get(FEED, token=ADMIN, headers={**headers, "Last-Event-ID": "x"}).status == 400


def test_a_tenant_is_told_only_of_itself(system: System) -> None:
    system.undrift("tenants", "add", "live-third")
    token = system.key("live-third-reader", "feeds:read", tenant="live-third")
    with follow(system, FEED, token=token) as stream:
        events = iter(stream)
        assert next(events).data["subject"].split("/")[1] == "live-third"
        system.integration("live-unseen", system.place(), system.place())
        system.key("live-third-second", "feeds:read", tenant="live-third")
        assert "live-third-second" in json.dumps(next(events).data)
    assert system.get(FEED, headers={"Accept": "text/event-stream"}).status == 401
