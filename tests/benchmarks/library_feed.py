"""Pages of 1,000 changes, near the beginning of a feed and near its end, beside pgbench with the same bare query.

The changes are generated straight into the read model's table, which is first made unlogged: ten million commits would
take an hour. The gateway is told by the usual notice that the read models have come that far. pgbench reads the same
rows, and nothing is made of them."""

from __future__ import annotations

import http.client
import os
import random
import re
import statistics
import subprocess
import tempfile
import time
from typing import Any
from urllib.parse import urlsplit

import psycopg

from infra import embedded, secrets
from projections.library import SCHEMA
from services.gateway.cursors import Cursors
from tests.journeys.libraries import user
from tests.journeys.system import System

SECTION = "feed of a library, pages of 1,000"
PAGE = 1000
FULL, QUICK = 10_000_000, 200_000
_TOLD = """{"id":"%s","sequence":%s,"change_type":"created","media_id":"%s","path":"photos/2024/%s.jpg",
"content_hash":"%s","file_size":%s,"timestamp":"2026-01-01T00:00:00.000Z","device_id":"%s","mtime":null}"""
_FILL = f"""
insert into {SCHEMA}.changes (tenant, owner, position, told)
select 'main', %s, n, format(%s, md5('id' || n)::uuid, n, md5('file' || n)::uuid, n, md5(n::text) || md5(n::text),
    n %% 100000, %s::text)
from generate_series(%s::bigint, %s::bigint) as n"""


class Feed:
    """A library with `count` changes, and how long a page of them takes."""

    def __init__(self, system: System, count: int) -> None:
        self.system, self.count = system, count
        person = user(system)
        self.owner, self.device = person.id, person.device()
        self._cursors = Cursors(secrets.load_master(system.directory))
        self._epoch = int(system.sql("select max(epoch) from undrift.epochs")[0][0])

    def fill(self) -> None:
        first = self.system.head() + 1
        self._execute(f"alter table {SCHEMA}.changes set unlogged")
        for start in range(first, self.count + 1, 500_000):
            end = min(self.count, start + 499_999)
            self._execute(_FILL, self.owner, _TOLD.replace("\n", ""), self.device.id, start, end)
        self._execute(f"vacuum analyze {SCHEMA}.changes")
        self._execute("select pg_notify('undrift_applied', %s)", str(self.count))

    def _execute(self, statement: str, *values: Any) -> None:
        with psycopg.connect(self.system.ready["database_url"], autocommit=True) as connection:
            connection.execute(statement.encode(), values or None)

    def plan(self) -> str:
        """What Postgres does for one page in the middle."""
        rows = self.system.sql(
            f"explain select * from {SCHEMA}.changes where tenant = 'main' and owner = %s and position > %s"
            " and position <= %s order by position limit 1001",
            self.owner,
            self.count // 2,
            self.count,
        )
        return " / ".join(re.sub(r" *\(.*\)$", "", row[0]).strip() for row in rows if "Cond" not in row[0])

    def pages(self, low: int, high: int, seconds: float) -> float:
        """ms for a page behind a random position of a range, on one connection."""
        address = urlsplit(self.system.ready["url"])
        connection = http.client.HTTPConnection(address.hostname or "", address.port)
        headers = {"Authorization": f"Bearer {self.device.token}"}
        taken: list[float] = []
        until = time.perf_counter() + seconds
        while time.perf_counter() < until:
            cursor = self._cursors.make("main", self.owner, self._epoch, random.randint(low, high))
            began = time.perf_counter()
            connection.request("GET", f"/api/v1/sync/changes?limit={PAGE}&cursor={cursor}", headers=headers)
            answer = connection.getresponse()
            body = answer.read()
            taken.append((time.perf_counter() - began) * 1000)
            assert answer.status == 200, body
            assert body.count(b'"change_type"') == PAGE
        connection.close()
        return statistics.median(taken)

    def pgbench(self, seconds: float) -> float:
        """ms for the bare query from another program, mean, as it says it."""
        with tempfile.NamedTemporaryFile("w", suffix=".sql") as script:
            script.write(
                f"\\set after random(1000, {self.count - 2 * PAGE})\n"
                f"select told from {SCHEMA}.changes where tenant = 'main' and owner = '{self.owner}'"
                f" and position > :after and position <= {self.count} order by position limit {PAGE};\n"
            )
            script.flush()
            program = str(embedded.postgres_program("pgbench"))
            command = [program, "-n", "-M", "prepared", "-f", script.name, "-T", str(max(1, round(seconds)))]
            done = subprocess.run(
                [*command, self.system.ready["database_url"]], capture_output=True, text=True, check=True
            )
        found = re.search(r"latency average = ([\d.]+) ms", done.stdout)
        assert found is not None, done.stdout
        return float(found[1])


def run(system: System, quick: bool) -> list[dict[str, Any]]:
    count = int(os.environ.get("BENCH_CHANGES", QUICK if quick else FULL))
    seconds, rounds = (1.0, 3) if quick else (2.0, 7)
    feed = Feed(system, count)
    feed.fill()
    plan = feed.plan()
    ranges = {"shallow": (count // 100, count // 50), "deep": (count - count // 50, count - 2 * PAGE)}
    shallow, deep, bare = [], [], []
    for one in ranges.values():
        feed.pages(*one, 0.5)
    for number in range(rounds):
        order = list(ranges) if number % 2 else list(ranges)[::-1]
        taken = {name: feed.pages(*ranges[name], seconds) for name in order}
        shallow.append(taken["shallow"])
        deep.append(taken["deep"])
        bare.append(feed.pgbench(seconds))
    both = [a / b for a, b in zip(deep, shallow, strict=True)]
    ratios = [a / b for a, b in zip(deep, bare, strict=True)]
    return [
        {
            "section": SECTION,
            "changes": f"{count:,}",
            "shallow_ms": f"{statistics.median(shallow):.2f}",
            "deep_ms": f"{statistics.median(deep):.2f}",
            "deep / shallow": f"{statistics.median(both):.2f}",
            "pgbench_ms": f"{statistics.median(bare):.2f}",
            "ratio": f"{statistics.median(ratios):.2f}",
            "must": "<= 2 x pgbench; deep = shallow +- 20 %",
            "aim": "1.3 x",
            "plan": plan,
        }
    ]
