"""A dump taken at some moment and restored into a fresh server, and what must be true of that."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import nats
import psycopg
from nats.js.errors import NotFoundError

from infra import embedded
from tests.faults.load import loaded, verify_jetstream
from tests.journeys.system import ADMIN, QUICK, System, tree, until


def dump(url: str, file: Path, *more: str) -> None:
    program = embedded.postgres_program("pg_dump")
    subprocess.run([program, *more, "--format=custom", f"--file={file}", url], check=True, timeout=120)


def restore(url: str, *files: Path) -> None:
    """As a person does it: the roles first, which a dump of one database does not hold."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("create role undrift_app")
    program = embedded.postgres_program("pg_restore")
    for file in files:
        subprocess.run([program, "--exit-on-error", f"--dbname={url}", file], check=True, timeout=120)


def feed(system: System, query: str) -> Any:
    return system.get(f"/api/v1/feeds/events?{query}", token=ADMIN)


def check(tmp_path: Path, fresh: embedded.Postgres, clients: int) -> None:
    """It is another history: a new epoch, old positions are gone, JetStream is made anew. The dump is taken while
    this many clients of each kind are at work."""
    system = System(tmp_path / "own", settings=f"{QUICK}\n[auth]\nopen_loopback = true\n").start()
    try:
        source, target = system.folder(a="1"), system.place()
        system.integration("before", source, target)
        before = system.queue("before")
        system.wait(before)
        with loaded(system, seed=1, clients=clients) if clients else nullcontext():
            time.sleep(clients)
            dump(system.ready["database_url"], tmp_path / "dump")
            dumped = system.head()
            time.sleep(clients)
        system.integration("lost", system.folder(b="2"), system.place())
        lost = system.queue("lost")
        system.wait(lost)
        ahead, [(epoch,)] = system.head(), system.sql("select max(epoch) from undrift.epochs")
        assert ahead > dumped
    finally:
        system.stop()

    restore(fresh.url, tmp_path / "dump")
    system.variables = {"UNDRIFT_DATABASE_URL": fresh.url}  # the same directory, NATS and secrets; it is ahead
    system.start()
    system.wrote = 0  # positions of the other history mean nothing
    try:
        system.whole("postgres")
        assert system.sql("select max(epoch) from undrift.epochs") == [(epoch + 1,)]
        assert system.head() < ahead
        assert system.status(before) == "completed"
        assert system.get(f"/api/sync/jobs/{lost}").status == 404

        gone = feed(system, f"after={dumped}&epoch={epoch}")
        assert (gone.status, gone.json()["errorCode"]) == (410, "GONE")
        assert gone.json()["context"]["resync"]["epoch"] == epoch + 1
        assert feed(system, f"after={ahead + 1000}").status == 410
        assert until(lambda: system.sql("select count(*) from undrift.claims where kind like 'work/%%'") == [(0,)])
        again = feed(system, "after=0&limit=1000").json()
        assert (again["epoch"], again["events"][0]["position"]) == (epoch + 1, 1)

        verify_jetstream(system)
        assert epochs_in_jetstream(system) == {str(epoch + 1)}
        system.integration("after", source, system.place())
        assert system.wait(system.queue("after"))["status"] == "completed"
        verify_jetstream(system)
        assert tree(source) == tree(target)
        assert until(lambda: system.undrift("doctor")["well"])
    finally:
        system.stop()


def epochs_in_jetstream(system: System) -> set[str]:
    async def read() -> set[str]:
        client = await nats.connect(system.ready["nats_url"], connect_timeout=5)
        try:
            streams = client.jetstream()
            state = (await streams.stream_info("EVENTS")).state
            found = set()
            for sequence in range(state.first_seq, state.last_seq + 1):
                with contextlib.suppress(NotFoundError):  # of a person who was erased
                    message = await streams.get_msg("EVENTS", sequence, direct=True)
                    found.add((message.headers or {})["Undrift-Epoch"])
            return found
        finally:
            await client.close()

    return asyncio.run(read())
