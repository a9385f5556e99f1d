"""Figures for Prometheus of what waits: how far each reader of the log is behind, how old the oldest of each queue is,
and what nobody has decided yet."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from prometheus_client.core import GaugeMetricFamily, HistogramMetricFamily, Metric

import projections
from infra.db import Database
from projections import jobs, library, sessions, syncs
from services.notifying import fanout

#: Deliveries that are looked at to count those that wait: more are not worth the time of every scrape.
_MOST = 100_000

_TRACKED = "select projection, generation, pos from undrift.tracking"
# A job's claim says by which event it came into its queue; whether it waits there, the read model does.
_QUEUES = (
    "select substr(c.kind, 6) as lane, count(*) as n,"
    " extract(epoch from clock_timestamp() - min(e.recorded_at))::float8 as oldest_s"
    f" from undrift.claims c join {jobs.SCHEMA}.jobs j on j.tenant = c.tenant and j.id = split_part(c.key, '|', 1)"
    " join undrift.events e on e.pos = c.pos"
    " where c.kind like 'work/%' and j.status = 'queued' group by 1"
)
_DELIVERIES = (
    "select count(*) as n, extract(epoch from clock_timestamp() - min(made_at))::float8 as oldest_s"
    f" from (select made_at from undrift.deliveries where state = 'pending' limit {_MOST}) as waiting"
)
_CONFLICTS = (
    "select count(*) as n, extract(epoch from clock_timestamp() - min(detected_at))::float8 as oldest_s"
    f" from {library.SCHEMA}.conflicts where resolved_at is null"
)
_SESSIONS = (
    "select count(*) as n, extract(epoch from clock_timestamp() - min(created_at))::float8 as oldest_s"
    f" from {sessions.SCHEMA}.sessions where status = 'in-progress'"
)

#: What waits, by its name, and in words.
_WAITING = {
    "pending_deliveries": "Webhook messages that wait to be delivered",
    "open_conflicts": "Conflicts that nobody has resolved",
    "open_sessions": "Sync sessions that have not ended",
}
_LANES = ("now", "later")


class Lags:
    """A collector of prometheus_client: `load` before each collection. Every series is one of a fixed set."""

    def __init__(self) -> None:
        self._behind: dict[str, int] = {}
        self._notifier: int | None = None
        self._queues: dict[str, tuple[int, float]] = {}
        self._waiting: dict[str, tuple[int, float]] = {}
        self._took: Sequence[syncs.Row] = ()

    async def load(self, database: Database, head: int) -> None:
        found = {(row["projection"], row["generation"]): row["pos"] for row in await database.fetch(_TRACKED)}
        self._behind = {
            one.NAME: max(head - found[one.NAME, one.GENERATION], 0)
            for one in projections.ALL
            if (one.NAME, one.GENERATION) in found
        }
        told = found.get((fanout.NAME, 1))
        self._notifier = None if told is None else max(head - told, 0)
        self._queues = {row["lane"]: _aged(row) for row in await database.fetch(_QUEUES)}
        for name, sql in zip(_WAITING, (_DELIVERIES, _CONFLICTS, _SESSIONS), strict=True):
            self._waiting[name] = _aged(await database.fetchrow(sql))
        self._took = await syncs.by_kind(database)

    def collect(self) -> Iterable[Metric]:
        yield self._projections()
        if self._notifier is not None:
            text = "Events that the notifier has yet to look at"
            yield GaugeMetricFamily("undrift_notifier_lag_events", text, value=self._notifier)
        yield from self._lanes()
        for name, text in _WAITING.items():
            many, oldest_s = self._waiting.get(name, (0, 0.0))
            yield GaugeMetricFamily(f"undrift_{name}", text, value=many)
            yield GaugeMetricFamily(f"undrift_{name}_oldest_seconds", f"{text}: the age of the oldest", value=oldest_s)
        yield self._durations()

    def _projections(self) -> Metric:
        text = "Events that a read model has yet to apply"
        family = GaugeMetricFamily("undrift_projection_behind_events", text, labels=["projection"])
        for name, behind in self._behind.items():
            family.add_metric([name], behind)
        return family

    def _lanes(self) -> Iterable[Metric]:
        many = GaugeMetricFamily("undrift_queued_jobs", "Jobs that wait for a worker", labels=["lane"])
        text = "How long the oldest of them has waited"
        oldest = GaugeMetricFamily("undrift_queued_jobs_oldest_seconds", text, labels=["lane"])
        for lane in _LANES:
            waiting, oldest_s = self._queues.get(lane, (0, 0.0))
            many.add_metric([lane], waiting)
            oldest.add_metric([lane], oldest_s)
        yield many
        yield oldest

    def _durations(self) -> Metric:
        text = "What jobs took from start to end that completed"
        family = HistogramMetricFamily("undrift_job_duration_seconds", text, labels=["kind"])
        for row in self._took:
            buckets = [(str(float(most)), getattr(row, name)) for most, name in syncs.BUCKETS.items()]
            family.add_metric([row.kind], [*buckets, ("+Inf", row.completed)], row.completed_ms / 1000)
        return family


def _aged(row: Any) -> tuple[int, float]:
    """How many, and the age of the oldest in seconds; 0 where there is none."""
    return row["n"], max(row["oldest_s"] or 0.0, 0.0)
