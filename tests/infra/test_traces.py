"""Traces: one that goes from parent to child over process boundaries, and none at all where nobody wants any."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest
import structlog

from infra import config, traces
from tests.doubles.collector import Collector, collecting

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
#: For a Python of its own to be there, on a machine with other things to do.
START_S = 10
UNSAMPLED = PARENT[:-1] + "0"


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as found:
        yield found


def begin(collector: Collector, ratio: float = 1.0) -> None:
    traces.setup(config.Traces(endpoint=collector.url, service="tests", ratio=ratio), "tester")


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    yield
    traces.close()


def test_parent_and_child_are_one_trace(collector: Collector) -> None:
    begin(collector)
    with traces.span("request", PARENT, {"http.route": "/x"}, "server") as outer:
        assert outer.traceparent is not None
        assert outer.traceparent[3:35] == PARENT[3:35] != outer.traceparent
        with traces.span("append", outer.traceparent, {"undrift.events": 2}) as inner:
            inner.note("undrift.position", 7)
    traces.close()
    [request] = collector.named("request")
    [append] = collector.named("append")
    assert (request.trace, request.parent) == (PARENT[3:35], PARENT[36:52])
    assert (append.trace, append.parent) == (request.trace, request.id)
    assert append.attributes == {"undrift.events": 2, "undrift.position": 7}
    assert (request.kind, request.process) == (2, "tester")
    assert all(one["service.name"] == "tests" for one in collector.resources)


def test_what_failed_says_of_which_kind_and_no_word_more(collector: Collector) -> None:
    begin(collector)
    with pytest.raises(ValueError, match="hunter2"), traces.span("work"):
        raise ValueError("password=hunter2")
    traces.close()
    [work] = collector.named("work")
    assert work.failed
    assert work.attributes == {"error.type": "ValueError"}
    assert b"hunter2" not in collector.raw


def test_a_client_that_does_not_trace_is_not_traced_but_passed_on(collector: Collector) -> None:
    begin(collector)
    with traces.span("request", UNSAMPLED) as span:
        assert span.traceparent is not None
        assert span.traceparent[3:35] == UNSAMPLED[3:35]
        assert span.traceparent.endswith("-00")
    traces.close()
    assert collector.spans == []


def test_a_part_of_the_rest(collector: Collector) -> None:
    begin(collector, ratio=0.0)
    with traces.span("ours"), traces.span("theirs", PARENT):
        pass
    traces.close()
    assert [one.name for one in collector.spans] == ["theirs"]


def test_links_lead_to_what_a_page_holds(collector: Collector) -> None:
    begin(collector)
    with traces.span("page", links=[PARENT, PARENT, "nonsense", *(_other(n) for n in range(100))]):
        pass
    traces.close()
    [page] = collector.spans
    assert page.links[0] == PARENT[3:35]
    assert len(page.links) == len(set(page.links)) == 32


def _other(number: int) -> str:
    return f"00-{number + 1:032x}-{1:016x}-01"


@pytest.mark.parametrize(
    "said",
    [
        None,
        "",
        b"x",
        PARENT.upper(),
        PARENT + "-00",
        "ff" + PARENT[2:],
        "00-" + "0" * 32 + PARENT[35:],
        PARENT[:36] + "0" * 16 + PARENT[52:],
        PARENT + "\n",
        "\u0660" + PARENT[1:],
        PARENT * 100,
    ],
)
def test_what_is_no_traceparent_is_none(said: str | bytes | None) -> None:
    assert traces.checked(said) is None
    assert traces.checked(PARENT.encode()) == PARENT


def test_without_an_exporter_nothing_is_made_and_nothing_imported() -> None:
    program = (
        "import sys; from infra import config, traces; import services.main; traces.setup(config.Traces(), 'x');"
        "span = traces.span('a', 'parent');"
        "assert span.traceparent == 'parent' and not traces.active();"
        "span.note('a', 1); span.fail('x'); span.end();"
        "print([name for name in sys.modules if name.startswith(('opentelemetry', 'infra.traces_export'))])"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert said.strip() == "[]"


@pytest.mark.parametrize("endpoint", ["localhost:4318", "ftp://x/v1/traces", "http://"])
def test_an_endpoint_is_an_address(endpoint: str) -> None:
    with pytest.raises(config.InvalidSetting, match=r"traces\.endpoint"):
        traces.setup(config.Traces(endpoint=endpoint), "x")


def test_a_collector_that_refuses_or_is_away_costs_nothing_but_spans() -> None:
    with collecting(400) as refusing, structlog.testing.capture_logs() as logs:
        begin(refusing)
        for _ in range(1500):  # more than one batch
            with traces.span("lost"):
                pass
        traces.close()
    assert [line["event"] for line in logs] == ["traces are lost: the collector takes none"]
    away = Collector()
    away.url = "http://127.0.0.1:1/v1/traces"
    begin(away)
    with traces.span("lost"):
        pass
    traces.close()


def test_a_collector_that_never_answers_does_not_keep_a_process_from_its_end() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        program = (
            "from infra import config, traces;"
            f"traces.setup(config.Traces(endpoint='http://127.0.0.1:{silent.getsockname()[1]}/v1/traces'), 'x');"
            "[traces.span('lost').end() for _ in range(5000)];"
            "traces.close()"
        )
        subprocess.run([sys.executable, "-c", program], check=True, timeout=10 + START_S)
