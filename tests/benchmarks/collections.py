"""Items from a Plane into a collection, beside a script that pages the same Plane into a table; and how soon the feeds
have them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import nats
from nats.js.api import ConsumerConfig, DeliverPolicy

from tests.benchmarks import cpu
from tests.benchmarks.http import instance

SECTION = "collections: items from a Plane"

#: What somebody would write instead: page after page, each upserted by one executemany in one transaction.
PEER = """
import asyncio, asyncpg, aiohttp, hashlib, json, sys

async def main(url, key, project, database, table):
    connection = await asyncpg.connect(database)
    await connection.execute(
        f"create table {table} (id text primary key, hash text not null, content text not null, seen timestamptz)")
    base = f"{url}/api/v1/workspaces/acme/projects/{project}/work-items/"
    cursor = None
    async with aiohttp.ClientSession(headers={"X-API-Key": key}) as session:
        while True:
            query = {"per_page": "100", **({} if cursor is None else {"cursor": cursor})}
            async with session.get(base, params=query) as answer:
                page = await answer.json()
            rows = []
            for item in page["results"]:
                content = json.dumps(item, sort_keys=True)
                rows.append((item["id"], hashlib.sha256(content.encode()).hexdigest(), content))
            async with connection.transaction():
                await connection.executemany(
                    f"insert into {table} values ($1, $2, $3, now()) on conflict (id)"
                    " do update set hash = excluded.hash, content = excluded.content, seen = now()", rows)
            if not page["next_page_results"]:
                break
            cursor = page["next_cursor"]
    print(await connection.fetchval(f"select count(*) from {table}"))

asyncio.run(main(*sys.argv[1:]))
"""


@contextlib.contextmanager
def plane(items: int) -> Iterator[dict[str, Any]]:
    """A Plane with that many work items in one project, in a process of its own."""
    command = [sys.executable, "-m", "tests.doubles.plane", "--items", str(items)]
    program = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        assert program.stdout is not None
        yield {**json.loads(program.stdout.readline()), "pid": program.pid}
    finally:
        program.terminate()
        program.wait(10)


class Ours:
    """One instance, its integration, and what follows it."""

    def __init__(self, ready: dict[str, Any], session: aiohttp.ClientSession) -> None:
        self.ready, self._session = ready, session

    async def call(self, method: str, path: str, body: Any = None) -> Any:
        headers = {"Authorization": f"Bearer {self.ready['admin_token']}"}
        async with self._session.request(method, self.ready["url"] + path, json=body, headers=headers) as answer:
            found = await answer.json()
            assert answer.status == 200, found
            return found

    async def integration(self, id: str, outside: dict[str, Any]) -> None:
        config = {"baseUrl": outside["url"], "workspace": "acme", "apiKey": outside["apiKey"]}
        await self.call("POST", "/api/sync/integrations", {"id": id, "name": id, "kind": "plane", "config": config})

    async def sync(self, id: str, type: str = "full_sync") -> tuple[float, Any]:
        """Seconds until the job was done, as its client sees it, and the job."""
        began = time.perf_counter()
        job = (await self.call("POST", "/api/sync/jobs", {"integrationId": id, "type": type}))["jobId"]
        async with self._followed(f"/api/sync/jobs/{job}/events") as events:
            async for event in events:
                if event.get("status") in ("completed", "failed", "stopped", "paused"):
                    break
        elapsed = time.perf_counter() - began
        found = await self.call("GET", f"/api/sync/jobs/{job}")
        assert found["status"] == "completed", found
        return elapsed, found

    async def over_http(self, after: int, count: int) -> float:
        """When the event feed has streamed so many items that were created behind a position."""
        async with self._followed(f"/api/v1/feeds/events?after={after}") as events:
            async for event in events:
                count -= event.get("type") == "items.created"
                if not count:
                    break
        return time.perf_counter()

    async def over_nats(self, after: int, count: int) -> float:
        """The same of a consumer of the stream."""
        client = await nats.connect(self.ready["nats_url"])
        try:
            config = ConsumerConfig(deliver_policy=DeliverPolicy.BY_START_SEQUENCE, opt_start_seq=after + 1)
            messages = await client.jetstream().subscribe("evt.main.>", ordered_consumer=True, config=config)
            while count:
                count -= (await messages.next_msg(120)).subject.endswith(".items.created")
            return time.perf_counter()
        finally:
            await client.close()

    @asynccontextmanager
    async def _followed(self, path: str) -> AsyncIterator[AsyncIterator[dict[str, Any]]]:
        headers = {"Authorization": f"Bearer {self.ready['admin_token']}", "Accept": "text/event-stream"}
        async with self._session.get(self.ready["url"] + path, headers=headers) as answer:
            assert answer.status == 200, await answer.text()
            yield _events(answer)


async def _events(answer: aiohttp.ClientResponse) -> AsyncIterator[dict[str, Any]]:
    async for line in answer.content:
        if line.startswith(b"data: "):
            yield json.loads(line[6:])


async def peer(ready: dict[str, Any], outside: dict[str, Any], table: str, items: int) -> tuple[float, float]:
    """Seconds, and seconds of the script's own processor time."""
    began = time.perf_counter()
    arguments = (outside["url"], outside["apiKey"], outside["projects"][0], ready["database_url"], table)
    program = await asyncio.create_subprocess_exec(
        sys.executable, "-c", f"import resource, atexit\n{PEER}\n{_SPENT}", *arguments, stdout=asyncio.subprocess.PIPE
    )
    out, _ = await program.communicate()
    elapsed = time.perf_counter() - began
    count, spent = out.split()
    assert int(count) == items
    return elapsed, float(spent)


_SPENT = "u = resource.getrusage(resource.RUSAGE_SELF); print(u.ru_utime + u.ru_stime)"


class Rounds:
    """The same work, ours and the peer's in turn."""

    def __init__(self, ours: Ours, outside: dict[str, Any], items: int) -> None:
        self.ours, self.outside, self.items = ours, outside, items
        self.took: dict[str, list[float]] = {name: [] for name in ("ours", "peer", "http", "nats", "again")}
        self.costs: list[dict[str, int]] = []
        self.peer_cpu: list[float] = []

    async def round(self, number: int) -> None:
        id = f"plane-{number}"
        spent, cost = await peer(self.ours.ready, self.outside, f"peer_{number}", self.items)
        self.took["peer"].append(spent)
        self.peer_cpu.append(cost)
        await self.ours.integration(id, self.outside)
        after = int((await self.ours.call("GET", "/readyz"))["head"])
        processes = {"double": self.outside["pid"], **self.ours.ready["processes"]}
        before, began = cpu.seconds(processes), time.perf_counter()
        feeds = [
            asyncio.create_task(self.ours.over_http(after, self.items)),
            asyncio.create_task(self.ours.over_nats(after, self.items)),
        ]
        elapsed, job = await self.ours.sync(id)
        assert job["result"]["created"] >= self.items, job
        self.took["ours"].append(elapsed)
        for name, feed in zip(("http", "nats"), feeds, strict=True):
            self.took[name].append(await feed - began)
        self.costs.append(cpu.per_request(before, cpu.seconds(processes), self.items))
        again, job = await self.ours.sync(id)
        assert job["result"]["created"] == 0, job
        self.took["again"].append(again)

    def rows(self) -> list[dict[str, Any]]:
        rate = {name: round(self.items / statistics.median(times)) for name, times in self.took.items()}
        ratio = statistics.median(
            theirs / ours for ours, theirs in zip(self.took["ours"], self.took["peer"], strict=True)
        )
        costs = {name: round(statistics.median(one[name] for one in self.costs)) for name in self.costs[0]}
        late = {
            name: round(statistics.median(a - b for a, b in zip(self.took[name], self.took["ours"], strict=True)), 2)
            for name in ("http", "nats")
        }
        return [
            {
                "section": SECTION,
                "what": f"full sync of {self.items} items, until its client knows",
                "items_per_s": rate["ours"],
                "peer": "a script: pages, executemany",
                "peer_per_s": rate["peer"],
                "ratio": round(ratio, 2),
                "cpu_us_per_item": costs,
                "peer_cpu_us_per_item": round(statistics.median(self.peer_cpu) / self.items * 1e6),
            },
            {"section": SECTION, "what": "the same again, unchanged", "items_per_s": rate["again"]},
            *(
                {
                    "section": SECTION,
                    "what": f"until the last is in the hands of {who}",
                    "items_per_s": rate[name],
                    "s_behind_the_job": late[name],
                }
                for name, who in (("http", "a client of the HTTP feed"), ("nats", "a NATS consumer"))
            ),
        ]


async def measure(ready: dict[str, Any], outside: dict[str, Any], items: int, rounds: int) -> list[dict[str, Any]]:
    timeout = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(timeout=timeout, read_bufsize=2**22) as session:
        found = Rounds(Ours(ready, session), outside, items)
        for number in range(rounds):
            await found.round(number)
        return found.rows()


def run(quick: bool) -> list[dict[str, Any]]:
    items, rounds = (1000, 1) if quick else (10_000, 3)
    with plane(items) as outside, instance() as ready:
        return asyncio.run(measure(ready, outside, items, rounds))


if __name__ == "__main__":
    for row in run("--quick" in sys.argv):
        print(row)
