"""Figures for Prometheus that are read from tables when asked: what jobs took, and what remotes allow."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime

from msgspec import Struct
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from infra.db import Database
from projections import usage

#: Integrations with figures of their own: the labels of a series must not grow with whatever clients make.
_MOST = 500
_REMOTES = (
    "select distinct on (u.tenant, u.integration) u.tenant, u.integration, r.remaining, r.reset_at"
    " from undrift.remote_uses u join undrift.remotes r on r.name = u.remote"
    " order by u.tenant, u.integration, r.updated_at desc limit $1"
)
_ENDS = ("completed", "failed", "stopped")


class Allowed(Struct, frozen=True):
    """What the remote of an integration said last."""

    tenant: str
    integration: str
    remaining: int | None
    reset_at: datetime | None


class Figures:
    """A collector of prometheus_client: `load` before each collection."""

    def __init__(self) -> None:
        self._usage: Sequence[usage.Row] = ()
        self._allowed: Sequence[Allowed] = ()

    async def load(self, database: Database) -> None:
        self._usage = await usage.by_kind(database)
        self._allowed = [Allowed(*row) for row in await database.fetch(_REMOTES, _MOST)]

    def collect(self) -> Iterable[Metric]:
        yield self._ends()
        yield self._counter("undrift_job_runs", "Runs of jobs that were measured", "runs")
        yield self._counter("undrift_job_cpu_seconds", "CPU time of the processes of jobs", "cpu_ms", 1e-3)
        yield self._counter("undrift_job_bytes", "Bytes that jobs moved", "bytes")
        yield self._counter("undrift_job_items", "Items that jobs looked at", "items")
        yield self._counter("undrift_job_seconds", "Duration of jobs that completed", "duration_ms", 1e-3)
        peak = GaugeMetricFamily("undrift_job_peak_bytes", "Most memory that a process of a job had", labels=["kind"])
        for row in self._usage:
            peak.add_metric([row.kind], row.peak_bytes)
        yield peak
        yield from self._quotas()

    def _ends(self) -> Metric:
        family = CounterMetricFamily("undrift_jobs", "Jobs that came to an end", labels=["kind", "status"])
        for row in self._usage:
            for status in _ENDS:
                family.add_metric([row.kind, status], getattr(row, status))
        return family

    def _counter(self, name: str, text: str, field: str, factor: float = 1) -> Metric:
        family = CounterMetricFamily(name, text, labels=["kind"])
        for row in self._usage:
            family.add_metric([row.kind], getattr(row, field) * factor)
        return family

    def _quotas(self) -> Iterable[Metric]:
        labels = ["tenant", "integration"]
        left = GaugeMetricFamily("undrift_remote_remaining", "Requests that a remote still allows", labels=labels)
        reset = GaugeMetricFamily(
            "undrift_remote_reset_timestamp_seconds", "When a remote allows more requests", labels=labels
        )
        for one in self._allowed:
            if one.remaining is not None:
                left.add_metric([one.tenant, one.integration], one.remaining)
            if one.reset_at is not None:
                reset.add_metric([one.tenant, one.integration], one.reset_at.timestamp())
        yield left
        yield reset
