"""Real servers for the tests: one embedded Postgres for the run, a NATS and a database for each xdist worker."""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import nats
import pytest

from infra import embedded

TEMPLATE = "undrift_template"
_TEMPLATE_LOCK = 0x756E6472
_numbers = itertools.count(1)


def pytest_configure(config: pytest.Config) -> None:
    """With xdist the controller owns the server and tells its workers where it is."""
    if not hasattr(config, "workerinput") and config.getoption("numprocesses", None):
        config.stash[_servers] = servers = _Servers()
        os.environ[_ADDRESS] = servers.postgres.start()


def pytest_unconfigure(config: pytest.Config) -> None:
    servers = config.stash.get(_servers, None)
    if servers is not None:
        os.environ.pop(_ADDRESS, None)
        servers.stop()


_ADDRESS = "TESTS_POSTGRES"


class _Servers:
    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="undrift-tests-"))
        self.postgres = embedded.Postgres(self.directory, testing=True)

    def stop(self) -> None:
        self.postgres.stop()
        shutil.rmtree(self.directory, ignore_errors=True)


_servers = pytest.StashKey[_Servers]()


@pytest.fixture(scope="session")
def postgres_server(request: pytest.FixtureRequest) -> str:
    """The owner's URL of the run's Postgres, in its database `undrift`, which is empty."""
    if address := os.environ.get(_ADDRESS):
        return address
    if _servers not in request.config.stash:
        request.config.stash[_servers] = _Servers()
    return request.config.stash[_servers].postgres.start()


@pytest.fixture(scope="session")
async def migrated_template(postgres_server: str) -> str:
    """The name of a migrated database to copy, made by whichever worker is first."""
    connection = await asyncpg.connect(postgres_server)
    try:
        async with connection.transaction():
            await connection.execute("SELECT pg_advisory_xact_lock($1)", _TEMPLATE_LOCK)
            if not await connection.fetchval("SELECT count(*) FROM pg_database WHERE datname = $1", TEMPLATE):
                await _make_template(postgres_server)
    finally:
        await connection.close()
    return TEMPLATE


async def _make_template(server: str) -> None:
    from infra.eventstore import migrate

    building = f"{TEMPLATE}_new"
    connection = await asyncpg.connect(server)
    try:
        await connection.execute(f"DROP DATABASE IF EXISTS {building} WITH (FORCE)")
        await connection.execute(f"CREATE DATABASE {building}")
        await migrate.migrate(_with_database(server, building))
        await connection.execute(f"ALTER DATABASE {building} RENAME TO {TEMPLATE}")
    finally:
        await connection.close()


@pytest.fixture(scope="session")
async def postgres_url(postgres_server: str, migrated_template: str) -> AsyncIterator[str]:
    """A migrated database that this worker's tests share."""
    async for url in _copy(postgres_server, migrated_template):
        yield url


@pytest.fixture
async def database(postgres_server: str, migrated_template: str) -> AsyncIterator[str]:
    """The URL of an empty, migrated database for one test."""
    async for url in _copy(postgres_server, migrated_template):
        yield url


@pytest.fixture
async def blank_database(postgres_server: str) -> AsyncIterator[str]:
    """The URL of a database without any schema, for one test."""
    async for url in _copy(postgres_server, "template1"):
        yield url


async def _copy(server: str, template: str) -> AsyncIterator[str]:
    name = f"test_{os.environ.get('PYTEST_XDIST_WORKER', 'main')}_{next(_numbers)}"
    await _execute(server, f"CREATE DATABASE {name} TEMPLATE {template}")
    try:
        yield _with_database(server, name)
    finally:
        await _execute(server, f"DROP DATABASE {name} WITH (FORCE)")


async def _execute(server: str, statement: str) -> None:
    connection = await asyncpg.connect(server)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


def _with_database(url: str, name: str) -> str:
    return urlunsplit(urlsplit(url)._replace(path=f"/{name}"))


@pytest.fixture(scope="session")
def nats_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[embedded.Nats]:
    """This worker's NATS; a test that ends it starts it again."""
    server = embedded.Nats(tmp_path_factory.mktemp("nats"))
    server.start()
    yield server
    server.stop()


@pytest.fixture
async def nats_url(nats_server: embedded.Nats) -> AsyncIterator[str]:
    """The URL of a NATS without any stream; what the test leaves in it is deleted."""
    nats_server.start()
    yield nats_server.url
    if nats_server.pid is not None:
        await _delete_streams(nats_server.url)


async def _delete_streams(url: str) -> None:
    connection = await nats.connect(url, connect_timeout=5)
    try:
        streams = connection.jetstream()
        await asyncio.gather(*(streams.delete_stream(str(each.config.name)) for each in await streams.streams_info()))
    finally:
        await connection.close()


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """A data directory with a path short enough for sockets."""
    return tmp_path / "data"
