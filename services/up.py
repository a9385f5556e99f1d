"""`undrift up`: one command that starts everything on this machine, keeps it running and ends it in order."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import errno
import functools
import os
import socket
import sys
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import asyncpg
import msgspec

from infra import config, configfile, embedded, log, processes, secrets, servers, traces
from infra.eventstore import migrate
from services import integrations
from services.supervised import FAREWELL
from services.supervisor import CannotRun, Program, Stopped, Supervisor

_LOOPBACK = ("", "localhost", "127.0.0.1", "::1")
_ANYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104  where a client connects instead
_NOT_YET = (OSError, asyncpg.CannotConnectNowError, asyncpg.TooManyConnectionsError)


def settings(
    data_dir: str | None = None,
    host: str | None = None,
    port: int | None = None,
    roots: Sequence[str] = (),
    config_file: str | None = None,
) -> config.Settings:
    """The settings of `undrift up` with these options; None and () mean that an option was not given.

    With a port of its own it listens nowhere else. Raises config.InvalidSetting.
    """
    given: list[tuple[str, Any]] = [("data_dir", data_dir), ("gateway.host", host), ("gateway.port", port)]
    if roots:
        given.append(("files.roots", list(roots)))
    if port is not None:
        given.append(("gateway.also_listen", []))
    return configfile.load(config_file, overrides=[(name, value) for name, value in given if value is not None])


def programs(file: Path, *, node: bool = False, sftp: bool = False) -> list[Program]:
    """The processes, in the order in which they are asked to end: what clients hold first. With a `node` those that
    servers of a Panel's need, and with `sftp` who serves their files."""

    def module(name: str, *options: str) -> list[str]:
        # -P: a folder called `services` where the person happens to stand is not ours
        return [sys.executable, "-P", "-m", f"services.{name}", *options, "--config", str(file)]

    own = [Program("node", module("node"), stage=1, farewell=FAREWELL)] if node else []
    return [
        Program("gateway", module("gateway"), stage=0),
        *([Program("sftp", module("sftp"), stage=0)] if sftp else []),
        Program("worker-now", module("worker", "--lane", "now"), stage=1),
        Program("worker", module("worker"), stage=1),
        *own,
        Program("core", module("core"), stage=2),
    ]


def up(chosen: config.Settings, make_programs: Callable[[Path], Sequence[Program]] | None = None) -> int:
    """Runs until SIGTERM or Ctrl-C; the exit code: 0, 1 when it could not run, 2 for a wrong setting.

    Belongs in the main thread of a process of its own. `make_programs` gets the settings file for the processes.
    """
    if make_programs is None:
        node = bool(chosen.panel.url)
        make_programs = functools.partial(
            programs, node=node and chosen.servers.runtime != "none", sftp=node and chosen.sftp.enabled
        )
    log.setup(chosen.log)
    directory = chosen.directory
    try:
        processes.private_directory(directory)
        with processes.lock(directory / "up.lock", f"the data directory {directory}"):
            return _Installation(chosen).run(make_programs)
    except config.InvalidSetting as error:
        return _complain(str(error), 2)
    except (processes.InUse, servers.Failed, CannotRun, migrate.Drift, OSError, asyncpg.PostgresError) as error:
        return _complain(str(error) or type(error).__name__, 1)


def _complain(reason: str, code: int) -> int:
    print(f"undrift up: {reason}", file=sys.stderr)
    return code


class _Installation:
    """One data directory while `up` runs in it."""

    def __init__(self, chosen: config.Settings) -> None:
        self.settings = chosen
        self.directory = chosen.directory
        self.file = self.directory / "settings.json"
        self.ready_file = self.directory / "ready.json"
        self.postgres = None if chosen.database.url else embedded.Postgres(self.directory)
        self.nats = None if chosen.nats.url else embedded.Nats(self.directory)
        self.greeted = False

    def run(self, make_programs: Callable[[Path], Sequence[Program]]) -> int:
        self.ready_file.unlink(missing_ok=True)
        self._complete_roots()
        integrations.check(self.settings)
        configfile.check_proxies(self.settings)
        traces.check(self.settings.traces)
        self.settings.gateway.port = _usable_port(self.settings.gateway.host, self.settings.gateway.port)
        sftp = self.settings.sftp
        if self.settings.panel.url and sftp.enabled:
            sftp.port = _usable_port(sftp.host, sftp.port, "sftp.port")
        self.token = secrets.admin_token(self.directory, secrets.load_master(self.directory))
        owned = [server for server in (self.postgres, self.nats) if server is not None]
        environment = {name: text for name, text in os.environ.items() if not name.startswith("UNDRIFT_")}
        supervisor = Supervisor(self.settings.up, owned, make_programs(self.file), environment, self._changed)
        with supervisor.signals():
            try:
                supervisor.start_servers()
                self._connect()
                asyncio.run(_migrate(self.settings.database.url, self.settings.up.start_s))
                supervisor.run()
            except Stopped:
                pass
            finally:
                self.ready_file.unlink(missing_ok=True)
                supervisor.end()
        return 0

    def _complete_roots(self) -> None:
        """Every root must be there; one inside the data directory always is."""
        own = processes.private_directory(self.directory / "files")
        roots = [os.path.abspath(os.path.expanduser(root)) for root in self.settings.files.roots]
        for root in roots:
            if not os.path.isdir(root):
                raise config.InvalidSetting(f"files.roots (--root): expected a folder, got {root!r}")
        self.settings.files.roots = list(dict.fromkeys([*roots, str(own)]))

    def _connect(self) -> None:
        """Where the servers are is known now; what depends on that is decided and written for the processes."""
        alone = self.postgres is not None and self.settings.gateway.host in _LOOPBACK
        if self.settings.auth.open_loopback is None:
            self.settings.auth.open_loopback = alone
        if self.settings.webhooks.allow_loopback is None:
            self.settings.webhooks.allow_loopback = alone
        if self.postgres is not None:
            self.settings.database.url = self.postgres.socket_url
        if self.nats is not None:
            self.settings.nats.url, self.settings.nats.passwords = self.nats.address, self.nats.passwords
            self.settings.nats.issuer = self.nats.issuer
            self.settings.nats.public_url = self.settings.nats.public_url or self.nats.address
        processes.write_private(self.file, configfile.dump(self.settings))

    def _changed(self, supervisor: Supervisor) -> None:
        if not self.greeted and not supervisor.all_ready:
            return
        processes.write_private(self.ready_file, self._ready(supervisor))
        if not self.greeted:
            self.greeted = True
            self._greet()

    def _ready(self, supervisor: Supervisor) -> bytes:
        found = {
            "url": self.url,
            "nats_url": self.nats.url if self.nats is not None else self.settings.nats.url,
            "database_url": self.postgres.url if self.postgres is not None else self.settings.database.url,
            "admin_token": self.token,
            "version": metadata.version("undrift"),
            "processes": supervisor.pids,
        }
        if "sftp" in supervisor.pids:
            sftp = self.settings.sftp
            found["sftp_url"] = f"sftp://{_reached(sftp.host)}:{sftp.port}"
        return msgspec.json.format(msgspec.json.encode(found), indent=1) + b"\n"

    @property
    def url(self) -> str:
        """Where a client on this machine finds the gateway."""
        return f"http://{_reached(self.settings.gateway.host)}:{self.settings.gateway.port}"

    def _greet(self) -> None:
        usual = self.directory == Path(os.path.abspath(configfile.default_data_dir()))
        where = "" if usual else f" --data-dir {self.directory}"
        token = self.directory / "secrets" / "admin.token"
        text = (
            f"Undrift {metadata.version('undrift')} is ready: {self.url}\n"
            f"The admin token is in {token}\n"
            "Try:\n"
            f'  curl -H "Authorization: Bearer $(cat {token})" {self.url}/api/sync/jobs\n'
            f"  undrift files sync{where} SOURCE TARGET\n"
            f"  undrift jobs list{where}"
        )
        with contextlib.suppress(OSError):  # whoever started us may not listen any more
            print(text, flush=True)


def _reached(host: str) -> str:
    """As a URL has it, where a client on this machine connects."""
    host = _ANYWHERE.get(host, host)
    return f"[{host}]" if ":" in host else host


def _usable_port(host: str, port: int, setting: str = "--port") -> int:
    """The port, or a free one for 0; kept by every restart of the gateway. Raises CannotRun for one that is taken.

    That is the usual reason why nothing can start, so it is said before anything is started.
    """
    for _ in range(1 if port else 50):
        chosen = port or processes.choose_port()
        problem = _problem_with(host, chosen, setting)
        if problem is None:
            return chosen
    raise CannotRun(problem)


def _problem_with(host: str, port: int, setting: str) -> str | None:
    for address in (host,) if host else ("127.0.0.1", "::1"):
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        try:
            socket.create_server((address, port), family=family).close()
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return f"port {port} of {address} is taken; choose another with {setting}"
            if error.errno == errno.EACCES:
                return f"port {port} of {address} is not allowed to this user; choose another with {setting}"
    return None


async def _migrate(url: str, patience_s: float) -> None:
    """Bring the database to the present schema, as soon as it answers."""
    deadline = time.monotonic() + patience_s
    while True:
        try:
            await migrate.migrate(url)
        except _NOT_YET:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.5)
        else:
            return


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line of `python -m services.up`."""
    parser = argparse.ArgumentParser(prog="undrift up", description="Start Undrift on this machine.")
    parser.add_argument("--data-dir", metavar="DIR", help=f"where everything is kept ({configfile.default_data_dir()})")
    parser.add_argument("--host", help="address to listen on (127.0.0.1 and ::1)")
    parser.add_argument("--port", type=int, help="port to listen on (8080, and 3001 beside it; 0: any)")
    parser.add_argument("--root", metavar="PATH", action="append", default=[], help="folder that requests may touch")
    parser.add_argument("--config", metavar="FILE", help="settings, see undrift.toml in the README")
    given = parser.parse_args(arguments)
    try:
        chosen = settings(given.data_dir, given.host, given.port, given.root, given.config)
    except config.InvalidSetting as error:
        return _complain(str(error), 2)
    return up(chosen)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
