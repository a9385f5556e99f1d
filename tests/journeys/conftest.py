"""One real `undrift up` for the journeys that drive it from outside, and the console script as a person runs it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.doubles.panel import Panel
from tests.journeys import nodes
from tests.journeys.system import System, system

__all__ = ["system"]  # a fixture

UNDRIFT = str(Path(sys.executable).with_name("undrift"))
ENDS_WITHIN_S = 10.0


@dataclass(frozen=True)
class Ran:
    """How a program ended."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        return json.loads(self.out)


def environment(**changes: str) -> dict[str, str]:
    """This one without what another instance would be found by."""
    own = {name: text for name, text in os.environ.items() if not name.startswith("UNDRIFT_")}
    return {**own, "COLUMNS": "200", **changes}


def undrift(*arguments: object, **changes: str) -> Ran:
    """Runs a command of the console script to its end."""
    done = subprocess.run(
        [UNDRIFT, *map(str, arguments)], env=environment(**changes), capture_output=True, text=True, timeout=120
    )
    assert "Traceback" not in done.stderr, done.stderr
    return Ran(done.returncode, done.stdout, done.stderr)


@dataclass
class Instance:
    """A running `undrift up`; `roots` is a folder that requests may touch."""

    directory: Path
    roots: Path
    process: subprocess.Popen[bytes]
    log: Path
    folders: int = field(default=0)

    @property
    def ready(self) -> dict[str, Any]:
        """What ready.json says now."""
        found: dict[str, Any] = json.loads((self.directory / "ready.json").read_bytes())
        return found

    def run(self, *arguments: object) -> Ran:
        """A command about this instance, found by its data directory."""
        return undrift(*arguments, "--data-dir", self.directory)

    def ask(self, *arguments: object, code: int = 0) -> Any:
        """The JSON that a command answers with."""
        ran = self.run(*arguments, "--json")
        assert code == ran.code, ran.err
        return ran.json()

    def folder(self, **files: str) -> Path:
        """A new folder below the root with these files; `__` in a name stands for a slash."""
        self.folders += 1
        made = self.roots / f"folder-{self.folders}"
        made.mkdir()
        for name, text in files.items():
            path = made / name.replace("__", "/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return made


@pytest.fixture(scope="session")
def panel() -> Iterator[Panel]:
    with Panel() as one:
        yield one


@pytest.fixture(scope="session")
def node(panel: Panel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """One node of a Panel's for all journeys that only use it: each takes over servers of its own."""
    made = System(tmp_path_factory.mktemp("node"), settings=nodes.settings(panel))
    try:
        yield made.start()
    finally:
        made.stop()


@pytest.fixture(scope="session")
def instance(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instance]:
    """`undrift up` on a directory and a port of its own; it ends in time when it is told to."""
    base = tmp_path_factory.mktemp("up")
    directory, roots, log = base / "data", base / "roots", base / "up.log"
    roots.mkdir()
    with open(log, "wb") as errors:
        command = [UNDRIFT, "up", "--data-dir", str(directory), "--port", "0", "--root", str(roots)]
        patient = environment(UNDRIFT_UP_SILENCE_S="60")  # with processes that a test has stopped
        process = subprocess.Popen(command, env=patient, stdout=errors, stderr=errors)
    started = Instance(directory, roots, process, log)
    try:
        _wait_until_ready(started)
        yield started
        process.send_signal(signal.SIGTERM)
        assert process.wait(ENDS_WITHIN_S) == 0
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def _wait_until_ready(started: Instance, patience_s: float = 60.0) -> None:
    deadline = time.monotonic() + patience_s
    while not (started.directory / "ready.json").exists():
        assert started.process.poll() is None, started.log.read_text()
        assert time.monotonic() < deadline, started.log.read_text()
        time.sleep(0.05)
