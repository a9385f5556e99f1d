"""A real `undrift up` with quick timers, and plain HTTP to it: what journeys and faults share."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import psycopg
import pytest

from infra import processes

T = TypeVar("T")

UNDRIFT = str(Path(sys.executable).with_name("undrift"))
NAMES = {"postgres", "nats", "gateway", "core", "worker-now", "worker"}
WORKERS = ("worker", "worker-now")
OPEN = ("queued", "running", "stopping")
ADMIN = "admin"  # stands for the installation's own token
PATIENCE_S = 60.0

#: Quick timers, patience with processes that a test has stopped, and no limit on requests.
QUICK = """
[limits]
family3 = 1000000
[jobs]
beat_s = 0.3
lease_s = 2.0
poll_s = 0.3
[scheduler]
tick_s = 0.2
[relay]
check_s = 1.0
[up]
silence_s = 60
backoff_s = 0.05
backoff_max_s = 1.0
"""


@dataclass(frozen=True)
class Answer:
    """An answer as it came; header names are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def position(self) -> int:
        return int(self.headers["undrift-position"])


def until(true: Callable[[], T], patience_s: float = PATIENCE_S) -> T:
    """The first thing that is true, or what it was in the end."""
    deadline = time.monotonic() + patience_s
    while not (found := true()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return found


def at_once(many: int, call: Callable[[int], T]) -> list[T]:
    """What `many` calls answer that run at the same time."""
    with ThreadPoolExecutor(many) as pool:
        return list(pool.map(call, range(many)))


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def children(worker: int) -> list[int]:
    """The process ids of a worker's children, as far as they have become one."""
    try:
        found = map(int, Path(f"/proc/{worker}/task/{worker}/children").read_text().split())
        return [pid for pid in found if b"services.worker.child" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    except (FileNotFoundError, ProcessLookupError):
        return []


@dataclass
class System:
    """An `undrift up` of its own in `base`; requests may touch `roots`."""

    base: Path
    settings: str = QUICK
    variables: Mapping[str, str] = field(default_factory=dict)
    port: int = 0
    process: subprocess.Popen[bytes] | None = None
    wrote: int = 0  # the last position that a command was answered with, whoever sent it
    _folders: int = 0

    def __post_init__(self) -> None:
        self.roots.mkdir(parents=True, exist_ok=True)

    @property
    def directory(self) -> Path:
        return self.base / "data"

    @property
    def roots(self) -> Path:
        return self.base / "roots"

    @property
    def log(self) -> Path:
        return self.base / "up.log"

    # Its processes.

    def start(self) -> System:
        ready = self.directory / "ready.json"
        ready.unlink(missing_ok=True)  # of one that was killed
        file = self.base / "undrift.toml"
        file.write_text(self.settings)
        own = {name: text for name, text in os.environ.items() if not name.startswith("UNDRIFT_")}
        command: list[str | Path] = [UNDRIFT, "up", "--data-dir", self.directory, "--port", str(self.port)]
        command += ["--root", self.roots, "--config", file]
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(command, env={**own, **self.variables}, stdout=log, stderr=log)
        assert until(lambda: ready.exists() or self.ended), self.said()
        assert not self.ended, self.said()
        return self

    @property
    def ended(self) -> bool:
        return self.process is None or self.process.poll() is not None

    def stop(self) -> None:
        """Ends it as a person would; fails when it does not end in time, or not well."""
        if self.process is None:
            return
        self.process.send_signal(signal.SIGTERM)
        try:
            assert self.process.wait(20) == 0, self.said()
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()
            self.process = None

    def said(self) -> str:
        """The end of its log."""
        return self.log.read_text(errors="replace")[-20_000:]

    @property
    def ready(self) -> dict[str, Any]:
        """What ready.json says now."""
        found: dict[str, Any] = json.loads((self.directory / "ready.json").read_bytes())
        return found

    @property
    def pids(self) -> dict[str, int]:
        found: dict[str, int] = self.ready["processes"]
        return found

    def kill(self, name: str, signum: int = signal.SIGKILL) -> int:
        """Sends a signal to a process; answers its id, 0 where there was none."""
        pid = self.pids.get(name, 0)
        if pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signum)
        return pid

    def replaced(self, name: str, pid: int) -> None:
        """Waits until another process than `pid` has that name, and everything answers."""
        assert until(lambda: self.pids.get(name, pid) != pid), self.said()
        self.whole()

    def whole(self, *but: str) -> None:
        """Waits until every process runs, but those that are not ours, and the gateway serves."""
        assert until(lambda: self.pids.keys() >= NAMES - set(but) and self.answers()), self.said()

    def answers(self) -> bool:
        with contextlib.suppress(OSError, http.client.HTTPException):
            return self.get("/readyz").status == 200
        return False

    @contextlib.contextmanager
    def paused(self, *names: str) -> Iterator[None]:
        """Processes that stand still meanwhile."""
        held = [self.kill(name, signal.SIGSTOP) for name in names]
        try:
            yield
        finally:
            for pid in held:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

    @contextlib.contextmanager
    def idle(self) -> Iterator[None]:
        """No worker works meanwhile: what is queued stays so."""
        with self.paused(*WORKERS):
            yield

    @contextlib.contextmanager
    def numb(self) -> Iterator[None]:
        """The workers' children stand still meanwhile, new ones too: jobs are running and come to no end."""
        held: set[int] = set()

        def hold() -> bool:
            with contextlib.suppress(FileNotFoundError):  # it may be down meanwhile
                for child in [child for worker in WORKERS for child in children(self.pids.get(worker, 0))]:
                    if child not in held:
                        with contextlib.suppress(ProcessLookupError):
                            os.kill(child, signal.SIGSTOP)
                            held.add(child)
            return done

        done = False
        hold()
        with ThreadPoolExecutor(1) as pool:
            holding = pool.submit(until, hold, 3600)
            try:
                yield
            finally:
                done = True
                holding.result()
                for child in held:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(child, signal.SIGCONT)

    # Requests to it.

    def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        token: str | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float = 120,
    ) -> Answer:
        """One request on a connection of its own. A body that is not bytes is sent as JSON, with its media type."""
        sent = dict(headers or {})
        if token is not None:
            sent["Authorization"] = f"Bearer {self.ready['admin_token'] if token == ADMIN else token}"
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
            sent.setdefault("Content-Type", "application/json")
        address = urlsplit(self.ready["url"])
        connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=timeout)
        try:
            connection.request(method, path, body, sent)
            answer = connection.getresponse()
            found = {name.lower(): value for name, value in answer.getheaders()}
            if method != "GET":
                self.wrote = max(self.wrote, int(found.get("undrift-position", 0)))
            return Answer(answer.status, found, answer.read())
        finally:
            connection.close()

    def get(self, path: str, **more: Any) -> Answer:
        return self.call("GET", path, **more)

    def post(self, path: str, body: Any = None, **more: Any) -> Answer:
        return self.call("POST", path, body, **more)

    def ok(self, method: str, path: str, body: Any = None, **more: Any) -> Any:
        """The JSON of an answer that must be 200."""
        answer = self.call(method, path, body, **more)
        assert answer.status == 200, (method, path, answer.status, answer.body, self.said()[-3000:])
        return answer.json()

    def sync(self, source: Path, target: Path, *, headers: Mapping[str, str] | None = None, **options: Any) -> Answer:
        body = {"sourceDirectory": str(source), "targetDirectory": str(target), **options}
        return self.post("/api/v1/sync/files", body, token=ADMIN, headers=headers)

    def integration(self, id: str, source: Path, target: Path, interval: int | None = None, **config: Any) -> Any:
        """A new integration of kind `files`."""
        config = {"sourceDirectory": str(source), "targetDirectory": str(target), **config}
        body = {"id": id, "name": f"Integration {id}", "kind": "files", "config": config}
        return self.ok(
            "POST", "/api/sync/integrations", body if interval is None else {**body, "syncInterval": interval}
        )

    def queue(self, integration: str, type: str = "full_sync", **more: Any) -> str:
        """The id of a new job."""
        body = {"integrationId": integration, "type": type, **more}
        return str(self.ok("POST", "/api/sync/jobs", body)["jobId"])

    def job(self, id: str) -> Any:
        return self.ok("GET", f"/api/sync/jobs/{id}", headers={"Undrift-Min-Position": str(self.wrote)})

    def status(self, id: str) -> str:
        return str(self.job(id)["status"])

    def wait(self, id: str, *statuses: str, patience_s: float = PATIENCE_S) -> Any:
        """The job once it has one of these statuses, by default any that is an end."""
        wanted = statuses or ("completed", "failed", "stopped", "paused")
        until(lambda: self.status(id) in wanted, patience_s)
        found = self.job(id)
        assert found["status"] in wanted, (found, self.said())
        return found

    def events(self, after: int = 0, token: str = ADMIN) -> list[dict[str, Any]]:
        """The tenant's events after a position."""
        found: list[dict[str, Any]] = []
        while True:
            page = self.ok("GET", f"/api/v1/feeds/events?after={after}&limit=1000", token=token)
            found += page["events"]
            if page["next"] == after:
                return found
            after = page["next"]

    def head(self) -> int:
        return int(self.ok("GET", "/readyz")["head"])

    def folder(self, **files: str) -> Path:
        """A new folder below the root with these files; `__` in a name stands for a slash."""
        made = self.place()
        made.mkdir()
        for name, text in files.items():
            path = made / name.replace("__", "/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return made

    def place(self) -> Path:
        """A path below the root where there is nothing yet."""
        self._folders += 1
        return self.roots / f"folder-{self._folders}"

    # Its insides.

    def sql(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        """What the database's owner reads."""
        with psycopg.connect(self.ready["database_url"], autocommit=True) as connection:
            return connection.execute(statement.encode(), values).fetchall()

    def undrift(self, *arguments: object) -> Any:
        """The JSON of a command of the console script about this instance."""
        command = [UNDRIFT, *map(str, arguments), "--json", "--data-dir", str(self.directory)]
        own = {name: text for name, text in os.environ.items() if not name.startswith("UNDRIFT_")}
        done = subprocess.run(command, env=own, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, (arguments, done.stdout, done.stderr)
        return json.loads(done.stdout)

    def key(self, name: str, *scopes: str, tenant: str = "main", roots: Sequence[Path] = ()) -> str:
        """The token of a new key."""
        more = [part for scope in scopes for part in ("--scope", scope)]
        more += [part for root in roots for part in ("--root", str(root))]
        return str(self.undrift("keys", "add", name, "--tenant", tenant, *more)["token"])


def gone(pids: Sequence[int]) -> bool:
    """Whether none of these processes runs any more."""
    return not any(processes.alive(pid) for pid in pids)


@pytest.fixture(scope="session")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """One instance for all journeys that only use it: each makes its own folders, integrations and keys."""
    base = tmp_path_factory.mktemp("system")
    made = System(base)
    for name in ("declared-source", "declared-target"):
        (made.roots / name).mkdir()
    (made.roots / "declared-source" / "file").write_text("declared")
    made.settings += f"""
[[integrations]]
id = "declared"
name = "Declared in the file"
kind = "files"
sync_interval = 3600
config = {{ sourceDirectory = "{made.roots}/declared-source", targetDirectory = "{made.roots}/declared-target" }}
"""
    try:
        yield made.start()
    finally:
        made.stop()
