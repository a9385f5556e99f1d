"""Each process on its own while Postgres is away: it waits, says so, and ends with a word and no traceback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from infra import embedded, processes
from tests.journeys.system import until

NAMES = ("gateway", "core", "worker")


class Started:
    """A process that was started by its own command line."""

    def __init__(self, name: str, base: Path, url: str, **settings: str) -> None:
        own = {key: text for key, text in os.environ.items() if not key.startswith("UNDRIFT_")}
        ours = {
            "UNDRIFT_DATA_DIR": str(base / "data"),
            "UNDRIFT_DATABASE_URL": url,
            "UNDRIFT_DATABASE_DURABLE": "false",
            "UNDRIFT_NATS_URL": "nats://127.0.0.1:9",
            "UNDRIFT_GATEWAY_PORT": str(processes.choose_port()),
            "UNDRIFT_GATEWAY_ALSO_LISTEN": "[]",
            **settings,
        }
        self.log = base / f"{name}.log"
        with open(self.log, "wb") as log:
            command = [sys.executable, "-m", f"services.{name}"]
            self.process = subprocess.Popen(command, env={**own, **ours}, stdout=log, stderr=log)

    def said(self) -> str:
        return self.log.read_text()

    def says(self, text: str) -> None:
        assert until(lambda: text in self.said() or self.process.poll() is not None), self.said()
        assert text in self.said()

    def ended(self, signum: int = 0) -> int:
        """Its exit code, after a signal where one is given."""
        if signum:
            self.process.send_signal(signum)
        code = self.process.wait(30)
        assert "Traceback" not in self.said(), self.said()
        return code


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Started]]:
    made: list[Started] = []

    def begin(name: str, url: str, **settings: str) -> Started:
        made.append(Started(name, tmp_path, url, **settings))
        return made[-1]

    yield begin
    for one in made:
        if one.process.poll() is None:
            one.process.kill()
            one.process.wait()


NOWHERE = "postgresql://undrift_owner:word@127.0.0.1:9/undrift"


def test_what_starts_before_postgres_goes_on_when_it_is_there(start: Callable[..., Started], tmp_path: Path) -> None:
    server = embedded.Postgres(tmp_path / "postgres", testing=True)
    url = server.start()
    server.stop()
    all_of_them = [start(name, url) for name in NAMES]
    for one in all_of_them:
        one.says("waiting for Postgres")
    try:
        assert server.start() == url
        for one in all_of_them:
            one.says("started")
            assert one.said().count("waiting for Postgres") < 5
            assert one.ended(signal.SIGTERM) == 0
    finally:
        server.stop()


@pytest.mark.parametrize("name", NAMES)
def test_it_ends_at_once_while_it_waits(start: Callable[..., Started], name: str) -> None:
    one = start(name, NOWHERE)
    one.says("waiting for Postgres")
    assert one.ended(signal.SIGTERM) == 0


def test_it_does_not_wait_for_ever(start: Callable[..., Started]) -> None:
    one = start("core", NOWHERE, UNDRIFT_UP_START_S="0.5")
    assert one.ended() == 1
    assert "undrift core: Postgres did not answer within 0.5 s (ConnectionRefusedError)" in one.said()


def test_a_wrong_password_is_a_word_and_not_a_traceback(start: Callable[..., Started], database: str) -> None:
    password = database.partition("://")[2].partition(":")[2].partition("@")[0]
    one = start("core", database.replace(password, "canary-of-a-password"))
    assert one.ended() == 1
    assert "undrift core: Postgres refuses: password authentication failed" in one.said()
    assert "canary" not in one.said()
