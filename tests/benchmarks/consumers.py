"""Consumers outside: how long after its commit an event is there, and how fast history is replayed through the gate."""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import time
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any

import nats
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy
from nats.js.client import JetStreamContext

from tests.benchmarks.http import _root, instance

SECTION = "consumers: events from NATS, outside"
_PAUSE_S = 0.02
_PULL = 500


def _ask(ready: dict[str, Any], method: str, path: str, body: Any) -> Any:
    headers = {"Authorization": f"Bearer {ready['admin_token']}", "Content-Type": "application/json"}
    request = urllib.request.Request(ready["url"] + path, json.dumps(body).encode(), headers, method=method)
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.loads(answer.read())


@asynccontextmanager
async def _connected(made: dict[str, Any]) -> AsyncIterator[JetStreamContext]:
    inbox = made["inboxPrefix"].encode()
    client = await nats.connect(made["url"], user=made["user"], password=made["password"], inbox_prefix=inbox)
    yield client.jetstream(domain=made["domain"], timeout=20)
    await client.close()


async def _delays(ready: dict[str, Any], made: dict[str, Any], many: int) -> list[float]:
    """Seconds from an event's commit until a consumer has it that waits for it."""
    found: list[float] = []
    async with _connected(made) as stream:
        config = ConsumerConfig(ack_policy=AckPolicy.NONE, deliver_policy=DeliverPolicy.NEW)
        consumer = await stream.add_consumer("EVENTS", config)
        reading = await stream.pull_subscribe_bind(consumer.name, "EVENTS")

        async def read() -> None:
            while len(found) < many:
                [message] = await reading.fetch(1, timeout=30)
                assert message.headers is not None
                found.append(time.time() - datetime.fromisoformat(message.headers["ce-time"]).timestamp())

        running = asyncio.create_task(read())
        for number in range(many):
            name = {"name": f"turn {number}"}
            await asyncio.to_thread(_ask, ready, "PUT", "/api/sync/integrations/timed", name)
            await asyncio.sleep(_PAUSE_S)
        await running
    return found


async def _rate(made: dict[str, Any], many: int, config: ConsumerConfig) -> float:
    """Events a second, from the first position on."""
    async with _connected(made) as stream:
        consumer = await stream.add_consumer("EVENTS", config)
        reading = await stream.pull_subscribe_bind(consumer.name, "EVENTS")
        found, began = 0, time.perf_counter()
        while found < many:
            for message in await reading.fetch(min(_PULL, many - found), timeout=30):
                found += 1
                if config.ack_policy == AckPolicy.EXPLICIT:
                    await message.ack()
        took = time.perf_counter() - began
        await stream.delete_consumer("EVENTS", consumer.name)
    return many / took


async def _run(ready: dict[str, Any], many: int) -> list[dict[str, Any]]:
    config = {"sourceDirectory": f"{_root(ready)}/a", "targetDirectory": f"{_root(ready)}/b"}
    body = {"id": "timed", "name": "Timed", "kind": "files", "config": config}
    await asyncio.to_thread(_ask, ready, "POST", "/api/sync/integrations", body)
    made = await asyncio.to_thread(_ask, ready, "POST", "/api/v1/feeds/credentials", {"name": "benchmark"})
    delays = sorted(await _delays(ready, made, many))
    p50, p99 = statistics.median(delays), delays[int(len(delays) * 0.99)]
    plain = await _rate(made, many, ConsumerConfig(ack_policy=AckPolicy.NONE))
    acked = await _rate(made, many, ConsumerConfig(durable_name=made["user"], ack_policy=AckPolicy.EXPLICIT))
    return [
        {"section": SECTION, "what": "commit to consumer, p50", "ours": f"{p50 * 1000:.1f} ms"},
        {"section": SECTION, "what": "commit to consumer, p99", "ours": f"{p99 * 1000:.1f} ms"},
        {"section": SECTION, "what": "replay, nothing acknowledged", "ours": f"{plain:,.0f}/s"},
        {"section": SECTION, "what": "replay, each acknowledged", "ours": f"{acked:,.0f}/s"},
    ]


def run(quick: bool) -> list[dict[str, Any]]:
    with instance() as ready:
        return asyncio.run(_run(ready, 200 if quick else 1_000))


if __name__ == "__main__":
    for row in run("--quick" in sys.argv):
        print(row)
