"""One trace from a client's request to the job it queued and to what that comes to, seen by a collector."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.doubles.collector import Collector, Sent, collecting
from tests.doubles.receiver import Receiver
from tests.journeys.system import ADMIN, QUICK, System, until


def traceparent(sampled: bool = True) -> str:
    return f"00-{os.urandom(16).hex()}-{os.urandom(8).hex()}-0{int(sampled)}"


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with collecting() as found:
        yield found


@pytest.fixture(scope="module")
def traced(collector: Collector, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    settings = f'{QUICK}\n[traces]\nendpoint = "{collector.url}"\nservice = "journeys"\n'
    made = System(tmp_path_factory.mktemp("traced"), settings=settings)
    try:
        yield made.start()
    finally:
        made.stop()


def sync(system: System, **headers: str) -> Any:
    body = {"sourceDirectory": str(system.folder(secret__plan="hunter2")), "targetDirectory": str(system.place())}
    answer = system.post("/api/v1/sync/files", body, token=ADMIN, headers=headers)
    assert answer.status == 200, answer
    return answer


def below(spans: list[Sent], parent: str) -> list[Sent]:
    return [one for one in spans if one.parent == parent]


def test_a_request_its_append_and_its_job_are_one_trace(traced: System, collector: Collector) -> None:
    said = traceparent()
    sync(traced, traceparent=said)
    trace = said[3:35]

    def whole() -> bool:
        names = [one.name for one in collector.trace(trace)]
        return {"POST /api/v1/sync/files", "append", "job files"} <= {*names} and names.count("append") > 1

    assert until(whole), collector.spans
    spans = collector.trace(trace)
    [request] = below(spans, said[36:52])
    assert (request.name, request.process, request.kind) == ("POST /api/v1/sync/files", "gateway", 2)
    assert request.attributes["http.response.status_code"] == 200
    [append] = [one for one in below(spans, request.id) if one.name == "append"]
    assert append.attributes["undrift.events"] == 1
    [job] = [one for one in below(spans, append.id) if one.name == "job files"]
    assert job.process.startswith("worker")
    assert job.attributes["undrift.end"] == "complete"
    assert [one for one in below(spans, job.id) if one.name == "append"]
    assert until(lambda: any(trace in one.links for one in collector.named("read models")))


def test_a_delivery_is_part_of_the_trace_and_the_receiver_may_continue_it(
    traced: System, collector: Collector, tmp_path: Path
) -> None:
    with contextlib.closing(Receiver(tmp_path)) as receiver:
        body = {"url": receiver.url("ok/traced"), "events": ["sync.completed"]}
        traced.ok("POST", "/api/v1/webhooks/subscribe", body, token=ADMIN)
        said = traceparent()
        sync(traced, traceparent=said)
        assert until(receiver.got)
        [got] = receiver.got()
        trace = said[3:35]
        wanted = {"webhook delivery", "job files", "POST /api/v1/sync/files"}
        assert until(lambda: wanted <= {one.name for one in collector.trace(trace)})
        spans = {one.id: one for one in collector.trace(trace)}
        [delivery] = [one for one in spans.values() if one.name == "webhook delivery"]
        assert got.headers["traceparent"] == f"00-{trace}-{delivery.id}-01"
        assert delivery.attributes["undrift.event"] == "sync.completed"
        assert delivery.attributes["http.response.status_code"] == 200
        assert (delivery.process, delivery.failed) == ("core", False)
        above = [delivery.name]
        while delivery.parent in spans:
            delivery = spans[delivery.parent]
            above.append(delivery.name)
        assert above == ["webhook delivery", "append", "job files", "append", "POST /api/v1/sync/files"]


def test_events_carry_what_continues_them(traced: System) -> None:
    said = traceparent()
    head = traced.head()
    sync(traced, traceparent=said)
    rows = traced.sql(
        "select topic, metadata::json->>'traceparent' from undrift.events where pos > %s order by pos", head
    )
    of_the_job = {topic: text for topic, text in rows if topic.startswith("jobs.")}
    assert {"jobs.queued", "jobs.started", "jobs.completed"} <= of_the_job.keys()
    assert {text[3:35] for text in of_the_job.values()} == {said[3:35]}


def test_without_a_traceparent_a_trace_begins_here(traced: System, collector: Collector) -> None:
    sync(traced)
    assert until(lambda: [one for one in collector.named("POST /api/v1/sync/files") if not one.parent])
    request = next(one for one in collector.named("POST /api/v1/sync/files") if not one.parent)
    assert until(lambda: any(one.name == "job files" for one in collector.trace(request.trace)))


def test_a_client_that_does_not_want_it_is_not_traced(traced: System, collector: Collector) -> None:
    said, other = traceparent(sampled=False), traceparent()
    sync(traced, traceparent=said)
    sync(traced, traceparent=other)
    assert until(lambda: any(one.name == "job files" for one in collector.trace(other[3:35])))
    assert collector.trace(said[3:35]) == []


def test_nonsense_is_no_traceparent(traced: System, collector: Collector) -> None:
    for text in ("x", "00-" + "0" * 32 + "-" + "1" * 16 + "-01", "a" * 5000):
        assert traced.get("/api/v1/health", token=ADMIN, headers={"traceparent": text}).status == 200
    assert until(lambda: len(collector.named("GET /api/v1/health")) == 3)
    assert all(one.parent == "" for one in collector.named("GET /api/v1/health"))


def test_errors_of_clients_are_no_failures_and_what_cannot_be_found_is_told_by_its_route(
    traced: System, collector: Collector
) -> None:
    said = traceparent()
    assert traced.get("/api/sync/jobs/private-name", headers={"traceparent": said}).status == 404
    assert until(lambda: collector.trace(said[3:35]))
    [request] = collector.trace(said[3:35])
    assert (request.name, request.failed) == ("GET /api/sync/jobs/{job_id}", False)
    assert request.attributes["http.response.status_code"] == 404


def test_nothing_private_is_sent(traced: System, collector: Collector) -> None:
    sync(traced)
    assert until(lambda: collector.spans)
    names = {name for one in collector.spans for name in one.attributes}
    assert names <= {
        "error.type",
        "http.request.method",
        "http.response.status_code",
        "http.route",
        "undrift.attempt",
        "undrift.end",
        "undrift.endpoint",
        "undrift.event",
        "undrift.events",
        "undrift.job",
        "undrift.kind",
        "undrift.position",
    }
    token = traced.ready["admin_token"].encode()
    for needle in (token, b"hunter2", b"private-name", str(traced.roots).encode(), b"secret__plan"):
        assert needle not in collector.raw
