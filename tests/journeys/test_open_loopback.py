"""The routes that are open to this machine are open to nobody else, also where the gateway listens everywhere."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator, Mapping

import pytest

from tests.journeys.libraries import user
from tests.journeys.system import ADMIN, QUICK, System

SETTINGS = f'{QUICK}\n[gateway]\nhost = "0.0.0.0"\n[auth]\nopen_loopback = true\n'
ROUTES = (("POST", "/api/admin/sync"), ("GET", "/api/data/servers"), ("GET", "/api/sync/jobs"))


@pytest.fixture(scope="module")
def everywhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    made = System(tmp_path_factory.mktemp("everywhere"), settings=SETTINGS)
    try:
        yield made.start()
    finally:
        made.stop()


@pytest.fixture(scope="module")
def elsewhere() -> str:
    """An address of this machine that is not its loopback: who comes to it comes from it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            pytest.skip("this machine has no address but its loopback")
        return str(probe.getsockname()[0])


def ask(address: str, port: int, route: tuple[str, str], headers: Mapping[str, str]) -> tuple[int, dict[str, object]]:
    connection = http.client.HTTPConnection(address, port, timeout=60)
    try:
        connection.request(*route, headers=dict(headers))
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route[1])
def test_another_machine_needs_a_key(everywhere: System, elsewhere: str, route: tuple[str, str]) -> None:
    port = int(everywhere.ready["url"].rpartition(":")[2])
    here = {"Host": f"localhost:{port}"}
    assert ask("127.0.0.1", port, route, here)[0] not in (401, 403)
    disguises: list[dict[str, str]] = [{}, {"X-Forwarded-For": "127.0.0.1"}, {"Forwarded": "for=127.0.0.1"}]
    for headers in disguises:
        status, said = ask(elsewhere, port, route, {**here, **headers})
        assert (status, bool(said.get("error") or said.get("message"))) == (401, True)
    for headers in ({"Host": "evil.example"}, {**here, "Origin": "https://evil.example"}):
        assert ask("127.0.0.1", port, route, headers)[0] == 401


def test_a_user_may_not_start_the_network(everywhere: System, elsewhere: str) -> None:
    port = int(everywhere.ready["url"].rpartition(":")[2])
    for address in ("127.0.0.1", elsewhere):
        headers = {"Host": f"localhost:{port}", "Authorization": f"Bearer {user(everywhere).token}"}
        status, said = ask(address, port, ROUTES[0], headers)
        assert status in (401, 403)
        assert said["status"] == "error"
    assert everywhere.call(*ROUTES[0], token=ADMIN).status not in (401, 403)
