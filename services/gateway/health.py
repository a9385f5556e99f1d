"""Whether we live, whether we serve, and figures for Prometheus."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from msgspec import UNSET, Struct, UnsetType
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from domain import errors
from infra.db import CONNECTION_LOST
from services.gateway.dialects import OURS, Reply
from services.gateway.figures import Figures
from services.gateway.figures_lags import Lags
from services.gateway.routes import Call, Route

VERSION = "0.1.0"


class Alive(Struct):
    status: str


class Ready(Struct):
    """Positions of the log: its head, and how far the read models have come. `degraded`, with `reasons`, when requests
    are served, but something behind them needs somebody: NATS or the relay is not at work, or events are parked."""

    status: Literal["ready", "degraded"]
    head: int
    applied: int
    reasons: list[str] | UnsetType = UNSET


class About(Struct):
    name: str
    version: str
    documentation: str


class Metrics:
    """This gateway's own counts, and what it reads of the whole when asked."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        labels = ("method", "route", "status")
        self._requests = Counter("undrift_http_requests", "Requests answered", labels, registry=self.registry)
        self._seconds = Histogram(
            "undrift_http_request_seconds", "Time to answer", ("method", "route"), registry=self.registry
        )
        self._known: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}
        self._gauges = {
            name: Gauge(f"undrift_{name}", text, registry=self.registry)
            for name, text in (
                ("log_head", "Last position of the log"),
                ("applied_position", "Position of the read models"),
                ("projection_lag_events", "Events that the read models have yet to apply"),
                ("parked_events", "Events that a read model could not apply"),
                ("relay_lag_events", "Events that JetStream has yet to get, as far as the relay has said"),
                ("degraded", "Whether something behind the requests needs somebody"),
                ("writer_waiting_commands", "Commands waiting for the next group"),
                ("tail_position", "Position of this process's tail"),
                ("open_streams", "Streams of server-sent events that clients hold open"),
            )
        }
        self._figures, self._lags = Figures(), Lags()
        self.registry.register(self._figures)
        self.registry.register(self._lags)
        self._queue = Gauge("undrift_open_jobs", "Jobs queued or running", ("lane",), registry=self.registry)

    def observe(self, method: str, route: str, status: int, seconds: float) -> None:
        found = self._known.get((method, route, status))
        if found is None:
            found = (self._requests.labels(method, route, status), self._seconds.labels(method, route))
            self._known[method, route, status] = found
        requests, times = found
        requests.inc()
        times.observe(seconds)

    async def render(self, call: Call) -> bytes:
        process = call.api.process
        head = await process.store.head()
        condition = await call.api.conditions.now()
        figures = {
            "log_head": head,
            "applied_position": call.api.reads.position,
            "projection_lag_events": max(head - call.api.reads.position, 0),
            "parked_events": condition.parked,
            "relay_lag_events": max(head - condition.relayed, 0),
            "degraded": bool(condition.reasons),
            "writer_waiting_commands": process.writer.waiting,
            "tail_position": process.tail.position,
            "open_streams": call.api.live.streams.count,
        }
        for name, value in figures.items():
            self._gauges[name].set(value)
        rows = await process.db.fetch(
            "select kind, count(*) as n from undrift.claims where kind like 'work/%' group by 1"
        )
        open_jobs = {row["kind"]: row["n"] for row in rows}
        for lane in ("now", "later"):
            self._queue.labels(lane).set(open_jobs.get(f"work/{lane}", 0))
        await self._figures.load(process.db)
        await self._lags.load(process.db, head)
        return generate_latest(self.registry)


async def alive(call: Call) -> Any:
    return Reply(200, call.route.dialect.encode(Alive("alive")))


async def ready(call: Call) -> Any:
    """503 until this program's read models exist and the database answers."""
    applied = call.api.reads.position
    try:
        head = await call.api.process.store.head()
        if applied < 0:
            raise errors.Unavailable("The read models are being built", retry_after=1)
        condition = await call.api.conditions.now()
    except CONNECTION_LOST:
        raise errors.Unavailable("Postgres does not answer", retry_after=1) from None
    found = Ready("ready", head, applied)
    if condition.reasons:
        found.status, found.reasons = "degraded", list(condition.reasons)
    return Reply(200, call.route.dialect.encode(found))


async def about(call: Call) -> Any:
    return Reply(200, call.route.dialect.encode(About("Undrift", VERSION, "/schema")))


def routes(metrics: Metrics) -> Sequence[Route]:
    async def prometheus(call: Call) -> Any:
        text = await metrics.render(call)
        return Reply(200, text, media=b"text/plain; version=0.0.4; charset=utf-8")

    return (
        Route("GET", "/", about, OURS, "What this is", open=True, answers={200: About}),
        Route("GET", "/healthz", alive, OURS, "Whether the process lives", open=True, answers={200: Alive}),
        Route(
            "GET",
            "/readyz",
            ready,
            OURS,
            "Whether requests can be served",
            open=True,
            answers={200: Ready},
            errors=(503,),
        ),
        Route(
            "GET",
            "/metrics",
            prometheus,
            OURS,
            "Figures for Prometheus, for loopback or the scope admin",
            loopback_or="admin",
            answers={200: str},
            media="text/plain",
            errors=(401, 403, 503),
        ),
    )
