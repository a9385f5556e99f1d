"""The embedded servers: durable, private, back under the same address after any death, and never orphans."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import unquote

import asyncpg
import nats
import pytest

from infra import embedded, processes, servers

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture
def postgres(data_dir: Path) -> Iterator[embedded.Postgres]:
    server = embedded.Postgres(data_dir, testing=True)
    yield server
    server.stop()


@pytest.fixture
def broker(data_dir: Path) -> Iterator[embedded.Nats]:
    server = embedded.Nats(data_dir)
    yield server
    server.stop()


async def value(url: str, sql: str) -> object:
    connection = await asyncpg.connect(url)
    try:
        return await connection.fetchval(sql)
    finally:
        await connection.close()


def until(true: Callable[[], bool], patience_s: float = 15.0) -> bool:
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        if true():
            return True
        time.sleep(0.02)
    return true()


async def test_a_server_that_is_not_for_testing_is_durable(data_dir: Path) -> None:
    server = embedded.Postgres(data_dir)
    url = server.start()
    try:
        settings = ("fsync", "full_page_writes", "synchronous_commit", "data_checksums", "wal_level")
        found = {name: await value(url, f"SHOW {name}") for name in settings}
        assert found == dict.fromkeys(settings[:4], "on") | {"wal_level": "replica"}
        assert await value(url, "SELECT current_user || '/' || current_database()") == "undrift_owner/undrift"
        assert await value(url, "SHOW server_encoding") == "UTF8"
    finally:
        server.stop()


async def test_after_a_stop_and_after_a_kill_it_answers_at_the_same_address(postgres: embedded.Postgres) -> None:
    url = postgres.start()
    await value(url, "CREATE TABLE kept (n int)")
    await value(url, "INSERT INTO kept VALUES (1)")
    postgres.stop()
    assert postgres.start() == url
    await value(url, "INSERT INTO kept VALUES (2)")
    assert postgres.pid is not None
    os.kill(postgres.pid, signal.SIGKILL)
    assert until(lambda: postgres.pid is None)
    assert postgres.start() == url
    assert await value(url, "SELECT sum(n) FROM kept") == 3


async def test_a_note_with_the_process_id_of_somebody_else_does_not_block(postgres: embedded.Postgres) -> None:
    url = postgres.start()
    postgres.kill()
    note = postgres.data / "postmaster.pid"
    lines = note.read_text().splitlines()
    note.write_text("\n".join([str(os.getppid()), *lines[1:]]) + "\n")
    assert postgres.start() == url


async def test_backends_that_outlive_their_killed_server_are_ended(postgres: embedded.Postgres) -> None:
    url = postgres.start()
    connection = await asyncpg.connect(url)
    backend = await connection.fetchval("SELECT pg_backend_pid()")
    os.kill(backend, signal.SIGSTOP)  # it cannot notice that its server is gone
    postgres.kill()
    assert postgres.start() == url
    assert not processes.alive(backend)
    connection.terminate()


async def test_an_interrupted_first_start_is_begun_again(postgres: embedded.Postgres, data_dir: Path) -> None:
    half = data_dir / "postgres" / "data.new"
    half.mkdir(parents=True)
    (half / "PG_VERSION").write_text("18\n")
    assert await value(postgres.start(), "SELECT 1") == 1


async def test_a_lost_password_is_replaced(postgres: embedded.Postgres, data_dir: Path) -> None:
    url = postgres.start()
    postgres.stop()
    (data_dir / "secrets" / "postgres.password").unlink()
    assert postgres.start() != url
    assert await value(postgres.url, "SELECT 1") == 1


def test_a_cluster_of_another_release_is_named(postgres: embedded.Postgres) -> None:
    postgres.start()
    postgres.stop()
    (postgres.data / "PG_VERSION").write_text("15\n")
    with pytest.raises(servers.Failed, match="made by Postgres 15; this is 18"):
        postgres.start()
    (postgres.data / "PG_VERSION").write_text("18\n")
    assert postgres.start()


async def test_both_addresses_ask_for_the_password(postgres: embedded.Postgres) -> None:
    postgres.start()
    for url in (postgres.url, postgres.socket_url):
        assert await value(url, "SELECT 1") == 1
        with pytest.raises(asyncpg.InvalidPasswordError):
            await asyncpg.connect(url, password="wrong")


async def test_a_path_too_long_for_a_socket_gets_a_short_one(tmp_path: Path) -> None:
    deep = tmp_path.joinpath(*["a directory with, a 'long' name"] * 4)
    server = embedded.Postgres(deep, testing=True)
    server.start()
    sockets = Path(unquote(server.socket_url.partition("host=")[2].partition("&")[0]))
    try:
        assert await value(server.socket_url, "SELECT 1") == 1
        assert sockets.exists()
    finally:
        server.stop()
    assert not sockets.exists()


def test_secrets_are_in_private_files_and_in_no_process_list(data_dir: Path) -> None:
    started = [embedded.Postgres(data_dir, testing=True), embedded.Nats(data_dir)]
    try:
        for server in started:
            server.start()
            assert server.pid is not None
            secret = (data_dir / "secrets" / f"{server.name}.password").read_text().strip()
            for name in ("cmdline", "environ"):
                assert secret.encode() not in Path(f"/proc/{server.pid}/{name}").read_bytes()
    finally:
        for server in started:
            server.stop()
    assert stat.S_IMODE(data_dir.stat().st_mode) == 0o700
    files = [path for path in data_dir.iterdir() if path.is_file()] + list((data_dir / "secrets").iterdir())
    assert {path.name: stat.S_IMODE(path.stat().st_mode) for path in files} == {path.name: 0o600 for path in files}


@pytest.mark.parametrize("kind", ["Postgres", "Nats"])
def test_a_second_owner_is_refused_with_a_clear_word(kind: str, data_dir: Path) -> None:
    first, second = (getattr(embedded, kind)(data_dir) for _ in range(2))
    first.start()
    try:
        with pytest.raises(processes.InUse, match=rf"{first.name} in .* is in use .*pid {os.getpid()}"):
            second.start()
    finally:
        first.stop()


@pytest.mark.parametrize("kind", ["Postgres", "Nats"])
def test_a_port_that_is_taken_at_the_first_start_is_chosen_anew(kind: str, data_dir: Path) -> None:
    server = getattr(embedded, kind)(data_dir)
    server.start()
    port = server.port
    server.stop()
    with socket.create_server(("127.0.0.1", port)):
        server.start()
        assert server.port != port
        server.stop()


@pytest.mark.parametrize("kind", ["Postgres", "Nats"])
def test_the_sigkill_of_its_owner_leaves_no_orphan(kind: str, data_dir: Path) -> None:
    program = (
        "import sys, time; from infra import embedded\n"
        f"server = embedded.{kind}(sys.argv[1]); server.start(); print(server.pid, flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", program, data_dir], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        pid = int(owner.stdout.readline())
        assert processes.alive(pid)
        owner.kill()
    assert until(lambda: not processes.alive(pid))
    successor = getattr(embedded, kind)(data_dir)
    assert successor.start()
    successor.stop()


@pytest.mark.parametrize("kind", ["Postgres", "Nats"])
def test_an_orphan_that_was_left_all_the_same_is_ended(kind: str, data_dir: Path) -> None:
    first, second = (getattr(embedded, kind)(data_dir) for _ in range(2))
    url = first.start()
    orphan = first.pid
    first._lock.close()  # as if its owner were gone; the server runs on
    os.kill(orphan, signal.SIGINT if kind == "Postgres" else signal.SIGTERM)
    assert second.start() == url
    assert not processes.alive(orphan)
    second.stop()
    first.stop()


@as_root
async def test_as_root_it_runs_in_a_user_namespace_and_the_files_stay_roots(postgres: embedded.Postgres) -> None:
    url = postgres.start()
    assert await value(url, "SELECT 1") == 1
    assert postgres.data.stat().st_uid == 0
    inside, outside, how_many = Path(f"/proc/{postgres.pid}/uid_map").read_text().split()
    assert int(inside) != 0
    assert (int(outside), int(how_many)) == (0, 1)


@pytest.fixture
def no_namespaces(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From this call on the kernel refuses user namespaces, as it does in most containers."""

    def refused(uid: int, gid: int) -> None:
        raise PermissionError(1, "as in a container")

    return lambda: monkeypatch.setattr(processes, "enter_user_namespace", refused)


@as_root
async def test_where_namespaces_are_forbidden_root_starts_it_as_nobody(
    postgres: embedded.Postgres, no_namespaces: Callable[[], None]
) -> None:
    no_namespaces()
    url = postgres.start()
    assert await value(url, "SELECT 1") == 1
    assert os.stat(f"/proc/{postgres.pid}").st_uid == postgres.data.stat().st_uid != 0
    assert stat.S_IMODE(postgres.directory.stat().st_mode) == 0o700


@as_root
async def test_where_namespaces_are_forbidden_root_hands_its_cluster_over_to_nobody(
    postgres: embedded.Postgres, no_namespaces: Callable[[], None]
) -> None:
    url = postgres.start()
    await value(url, "CREATE TABLE kept AS SELECT 1 AS n")
    postgres.stop()
    no_namespaces()
    again = embedded.Postgres(postgres.directory, testing=True)
    assert again.start() == url
    try:
        assert await value(again.socket_url, "SELECT n FROM kept") == 1
        assert stat.S_IMODE(postgres.directory.stat().st_mode) == 0o700
        assert os.stat(f"/proc/{again.pid}").st_uid == again.data.stat().st_uid != 0
        again.kill()
        assert again.start() == url
    finally:
        again.stop()


@as_root
async def test_binaries_in_a_closed_folder_are_copied(
    postgres: embedded.Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = embedded.postgres_package()
    home = tmp_path / "home"
    shutil.copytree(package / embedded.RELEASE, home / package.name / embedded.RELEASE, symlinks=True)
    shutil.copytree(package.with_name(f"{package.name}.libs"), home / f"{package.name}.libs", symlinks=True)
    home.chmod(0o700)
    os.chown(home, 12345, 12345)
    monkeypatch.setattr(embedded, "postgres_package", lambda: home / package.name)
    assert await value(postgres.start(), "SELECT 1") == 1
    note = postgres.directory / "postgres.binaries"
    copies = [Path(note.read_text().strip())]
    postgres.kill()  # and whoever comes next finds the copy
    postgres._lock.close()
    again = embedded.Postgres(postgres.directory, testing=True)
    assert await value(again.start(), "SELECT 1") == 1
    copies.append(Path(note.read_text().strip()))
    again.stop()
    assert [copy.exists() for copy in copies] == [False, False]
    assert not note.exists()


async def test_nats_keeps_its_streams_through_a_kill(broker: embedded.Nats) -> None:
    url = broker.start()
    connection = await nats.connect(url)
    streams = connection.jetstream()
    await streams.add_stream(name="KEPT", subjects=["kept.>"])
    for number in range(50):
        await streams.publish("kept.it", str(number).encode())
    await connection.close()
    assert broker.pid is not None
    os.kill(broker.pid, signal.SIGKILL)
    assert until(lambda: broker.pid is None)
    assert broker.start() == url
    connection = await nats.connect(url)
    assert (await connection.jetstream().stream_info("KEPT")).state.last_seq == 50
    await connection.close()


def test_nats_refuses_who_has_no_password(broker: embedded.Nats) -> None:
    broker.start()
    with socket.create_connection(("127.0.0.1", broker.port), timeout=10) as client, client.makefile("rwb") as stream:
        assert b'"auth_required":true' in stream.readline()
        stream.write(b'CONNECT {"verbose":true}\r\n')
        stream.flush()
        said = [stream.readline().strip() for _ in range(2)]  # it asks for a sign of life while it asks about us
        assert b"-ERR 'Authorization Violation'" in said


async def test_a_store_that_was_deleted_is_begun_again(broker: embedded.Nats) -> None:
    url = broker.start()
    broker.kill()
    shutil.rmtree(broker.home)
    assert broker.start() == url
    connection = await nats.connect(url)
    assert (await connection.jetstream().account_info()).streams == 0
    await connection.close()


async def test_template_databases_are_migrated_and_empty(database: str, blank_database: str) -> None:
    assert await value(database, "SELECT count(*) FROM undrift.events") == 0
    assert await value(blank_database, "SELECT to_regclass('undrift.events')") is None


async def test_a_log_that_grew_large_is_put_aside_under_the_running_server(
    postgres: embedded.Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = postgres.start()
    log, earlier = postgres.directory / "postgres.log", postgres.directory / "postgres.log.1"
    monkeypatch.setattr(servers, "LOG_BYTES", 10)
    postgres.trim_log()
    assert log.read_text() == ""
    assert "ready to accept connections" in earlier.read_text()
    with pytest.raises(asyncpg.UndefinedTableError):
        await value(url, "SELECT 'a secret' FROM nothing")
    assert 'relation "nothing" does not exist' in log.read_text()
    assert "a secret" not in log.read_text()
