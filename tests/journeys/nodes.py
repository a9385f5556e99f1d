"""A node of a Panel's: both over real sockets, with servers that were taken over."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import asyncssh
import pytest

from tests.doubles import panel as double
from tests.journeys.system import QUICK, Answer, System


def settings(panel: double.Panel, **changed: Any) -> str:
    made = {"budget_s": 3.0, "list_s": 0, **changed}
    lines = "".join(f"{name} = {value}\n" for name, value in made.items())
    there = f'url = "{panel.url}"\ntoken_id = "{double.TOKEN_ID}"\ntoken = "{double.TOKEN}"'
    return f"{QUICK}\n[sftp]\nport = 0\n[panel]\n{there}\n{lines}"


@pytest.fixture(scope="module")
def panel() -> Iterator[double.Panel]:
    with double.Panel() as one:
        yield one


@pytest.fixture(scope="module")
def node(panel: double.Panel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    system = System(tmp_path_factory.mktemp("node"), settings=settings(panel))
    try:
        yield system.start()
    finally:
        system.stop()


@pytest.fixture(autouse=True)
def untroubled(panel: double.Panel) -> Iterator[None]:
    yield
    panel.trouble = None


def ask(node: System, method: str, path: str, body: Any = None, **headers: str) -> Answer:
    answer = node.call(method, path, body, token=double.TOKEN, headers=headers)
    assert answer.headers["x-request-id"]
    assert answer.headers["access-control-allow-credentials"] == "true"
    return answer


def taken_over(node: System, panel: double.Panel, **changed: Any) -> str:
    uuid = panel.add(**changed)
    answer = ask(node, "POST", "/api/servers", {"uuid": uuid})
    assert (answer.status, answer.body) == (202, b""), answer
    return uuid


def sftp_address(node: System) -> tuple[str, int]:
    parts = urlsplit(node.ready["sftp_url"])
    assert parts.hostname is not None
    assert parts.port is not None
    return parts.hostname, parts.port


@asynccontextmanager
async def sftp(
    node: System, username: str, password: str, *, version: int = 3, **more: Any
) -> AsyncIterator[asyncssh.SFTPClient]:
    """A client of asyncssh's; its connection is closed at the end. Raises asyncssh.PermissionDenied where the login is
    refused, and asyncssh.Error or OSError for whoever is cut off."""
    host, port = sftp_address(node)
    options: dict[str, Any] = {"client_keys": None, "agent_path": None, **more}
    async with (
        asyncssh.connect(
            host, port, username=username, password=password, known_hosts=None, config=None, **options
        ) as connection,
        connection.start_sftp_client(sftp_version=version) as client,
    ):
        yield client
