"""Byte by byte what the Wings document says of a sync, with a Panel that is everything but well, over TLS."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from aiohttp import web
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from tests.doubles import panel as double
from tests.journeys.certificates import certificate
from tests.journeys.nodes import ask, settings, taken_over
from tests.journeys.system import Answer, System, until
from tests.journeys.test_sockets import SUSPENDED, admitted, hear, is_cut, opened, say

OTHER = "11111111-5c7b-4f1e-9d2a-6e8f1c3b5a7d"
FAILED = "An unexpected error was encountered while processing this request"
LATE = "The server could not process this request in time, please try again."
NOT_HERE = "The requested resource does not exist on this instance."
UUID4 = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
#: As Guzzle sends it.
GUZZLE = {"Accept": "application/json", "Content-Type": "application/json", "Content-Length": "0"}


class Site:
    """The Panel's address: what answers there can be another one, or nobody."""

    def __init__(self, folder: Path) -> None:
        self.certificates = {
            "good": certificate(folder, "good"),
            "expired": certificate(folder, "expired", days=-1),
            "of another address": certificate(folder, "of another address", address="127.0.0.2"),
        }
        self.authorities = folder / "authorities.pem"
        self.authorities.write_bytes(b"".join(path.read_bytes() for path in sorted(folder.glob("*.pem"))))
        self.certificates["that nobody vouches for"] = certificate(folder, "unknown")
        self.panel = double.Panel(certificate=self.certificates["good"]).__enter__()

    def close(self) -> None:
        self.panel.__exit__()

    def reopen(self, certificate: ssl.SSLContext | None = None) -> None:
        """The same servers behind another certificate, where nobody listens any more."""
        before = self.panel
        certificate = certificate or self.certificates["good"]
        self.panel = double.Panel(before.port, certificate).__enter__()
        self.panel.servers = before.servers


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    made = Site(tmp_path_factory.mktemp("certificates"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def node(site: Site, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    said = settings(site.panel, budget_s=1.2, timeout_s=0.3, ca_file=f'"{site.authorities}"')
    system = System(tmp_path_factory.mktemp("node"), settings=said)
    try:
        yield system.start()
    finally:
        system.stop()


@pytest.fixture
def panel(site: Site) -> Iterator[double.Panel]:
    yield site.panel
    site.panel.trouble = None


@pytest.fixture(scope="module")
def uuid(node: System, site: Site) -> str:
    return taken_over(node, site.panel)


def sync(node: System, uuid: str, **headers: str) -> Answer:
    answer = ask(node, "POST", f"/api/servers/{uuid}/sync", **(headers or GUZZLE))
    assert UUID4.fullmatch(answer.headers["x-request-id"])
    return answer


def shown(node: System, uuid: str) -> Any:
    return ask(node, "GET", f"/api/servers/{uuid}").json()["configuration"]


def failed(answer: Answer, error: str = FAILED) -> None:
    assert answer.status == 500, answer
    assert answer.body == f'{{"error":"{error}","request_id":"{answer.headers["x-request-id"]}"}}'.encode()
    assert answer.headers["content-type"].startswith("application/json")


def unchanged(node: System, panel: double.Panel, uuid: str, trouble: double.Answer | None) -> None:
    """A sync that fails: nothing is as the Panel wanted it, neither then nor later."""
    before = shown(node, uuid)
    panel.change(uuid, suspended=not before["suspended"], build={"memory_limit": 1024})
    panel.trouble = trouble
    failed(sync(node, uuid))
    assert shown(node, uuid) == before


# The rows of the table.


def test_ok(node: System, panel: double.Panel, uuid: str) -> None:
    """204 with nothing in it, whatever comes along; twice over the same connection."""
    address = urlsplit(node.ready["url"])
    with socket.create_connection((address.hostname or "", address.port or 0), timeout=30) as raw:
        for body in (b"", b"{}", b"\xff not JSON"):
            raw.sendall(
                f"POST /api/servers/{uuid}/sync HTTP/1.1\r\nHost: {address.netloc}\r\nUser-Agent: GuzzleHttp/7\r\n"
                f"Authorization: Bearer {double.TOKEN}\r\nAccept: application/json\r\n"
                f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode()
                + body
            )
            said = b""
            while b"\r\n\r\n" not in said:
                said += raw.recv(65536)
            head, _, rest = said.partition(b"\r\n\r\n")
            assert (head.split(b"\r\n")[0], rest) == (b"HTTP/1.1 204 No Content", b"")
            names = {line.partition(b":")[0].lower() for line in head.split(b"\r\n")[1:]}
            assert not names & {b"content-type", b"content-length", b"transfer-encoding"}
            assert {b"x-request-id", b"access-control-allow-origin", b"undrift-position"} <= names


CROSS = {
    "access-control-allow-credentials": "true",
    "access-control-allow-methods": "GET, POST, PATCH, PUT, DELETE, OPTIONS",
    "access-control-allow-headers": "Accept, Accept-Encoding, Authorization, Cache-Control, Content-Type,"
    " Content-Length, Origin, X-Real-IP, X-CSRF-Token",
    "access-control-max-age": "7200",
}


def test_every_answer_says_who_may_ask(node: System, panel: double.Panel, uuid: str) -> None:
    path, token = f"/api/servers/{uuid}", double.TOKEN
    answers = [
        (204, node.post(f"{path}/sync", token=token)),
        (200, node.get(path, token=token)),
        (401, node.get(path)),
        (403, node.get(path, token="wrong")),
        (404, node.get(f"{path}x", token=token)),
        (404, node.get(f"{path}/nothing", token=token)),
        (405, node.call("PUT", path, token=token)),
        (400, node.post("/api/servers", b"{", token=token, headers={"Content-Type": "application/json"})),
        (415, node.post("/api/servers", b"a", token=token, headers={"Content-Type": "text/plain"})),
        (422, node.post("/api/servers", {"uuid": "x"}, token=token)),
        (204, node.call("OPTIONS", path)),
    ]
    for status, answer in answers:
        assert answer.status == status, answer
        assert UUID4.fullmatch(answer.headers["x-request-id"])
        assert {**CROSS, "access-control-allow-origin": panel.url}.items() <= answer.headers.items()
        if status >= 400:
            assert isinstance(answer.json()["error"], str)  # what the Panel reads of it
    for origin, told in [("http://localhost:3000", "http://localhost:3000"), ("https://evil.example", panel.url)]:
        answer = node.get(path, token=token, headers={"Origin": origin})
        assert answer.headers["access-control-allow-origin"] == told


@pytest.mark.parametrize("id", [OTHER, OTHER[:8], OTHER.upper(), "x", "%2e%2e", "a" * 300])
def test_an_unknown_server_is_not_asked_for(node: System, panel: double.Panel, id: str) -> None:
    asked = len(panel.seen)
    for method, path in [("POST", "/sync"), ("GET", ""), ("DELETE", ""), ("GET", "/history")]:
        answer = ask(node, method, f"/api/servers/{id}{path}")
        assert (answer.status, answer.body) == (404, f'{{"error":"{NOT_HERE}"}}'.encode())
    for path, body in [("ws/deny", {"jtis": []}), ("rollback", {"position": 1})]:
        answer = ask(node, "POST", f"/api/servers/{id}/{path}", body)
        assert (answer.status, answer.body) == (404, f'{{"error":"{NOT_HERE}"}}'.encode())
    assert len(panel.seen) == asked


def test_neither_case_nor_beginning_of_a_uuid_counts(node: System, uuid: str) -> None:
    for id in (uuid[:8], uuid.upper(), f"{uuid}0", uuid.replace("-", "")):
        assert ask(node, "GET", f"/api/servers/{id}").status == 404


def test_one_that_the_panel_has_forgotten_is_404_and_stays(node: System, panel: double.Panel) -> None:
    uuid = taken_over(node, panel)
    del panel.servers[uuid]
    answer = sync(node, uuid)
    said = f'{{"error":"{NOT_HERE}","request_id":"{answer.headers["x-request-id"]}"}}'
    assert (answer.status, answer.body) == (404, said.encode())
    assert ask(node, "GET", f"/api/servers/{uuid}").status == 200
    answer = ask(node, "POST", "/api/servers", {"uuid": OTHER})  # one that it has not made
    assert answer.status == 404
    assert ask(node, "GET", f"/api/servers/{OTHER}").status == 404


def refuses(status: int, code: str = "HttpException") -> Callable[[web.Request], web.Response]:
    fault = {"errors": [{"code": code, "status": str(status), "detail": "no"}]}
    return lambda _: web.json_response(fault, status=status)


def says(text: str | bytes) -> Callable[[web.Request], web.Response]:
    body = text.encode() if isinstance(text, str) else text
    return lambda _: web.Response(body=body, content_type="application/json")


async def too_much(request: web.Request) -> web.StreamResponse:
    """Says how large it would be."""
    answer = web.StreamResponse()
    answer.content_length = 17 << 20
    await answer.prepare(request)
    await answer.write(b" ")
    await asyncio.sleep(3)
    return answer


async def silence(_: web.Request) -> None:
    await asyncio.sleep(3)  # longer than anybody waits, and then as if nothing had been


async def drips(request: web.Request) -> web.StreamResponse:
    answer = web.StreamResponse(headers={"Content-Length": "1000"})
    await answer.prepare(request)
    for _ in range(1000):
        await answer.write(b" ")
        await asyncio.sleep(0.1)
    return answer


async def stops_short(request: web.Request) -> web.StreamResponse:
    answer = web.StreamResponse(headers={"Content-Length": "1000"})
    await answer.prepare(request)
    await answer.write(b'{"settings":')
    assert request.transport is not None
    request.transport.close()
    return answer


PERMANENT: dict[str, double.Answer] = {
    "400": refuses(400, "BadRequestHttpException"),
    "401": refuses(401),
    "403": refuses(403, "HttpForbiddenException"),
    "409": refuses(409, "ServerStateConflictException"),
    "422 without a word": lambda _: web.Response(status=422),
    "429": refuses(429, "ThrottleRequestsException"),
    "elsewhere": lambda _: web.Response(status=301, headers={"Location": "https://example.org/"}),
    "to another path": lambda request: web.Response(status=308, headers={"Location": f"{request.path}/"}),
    "empty": says(""),
    "a page": says("<!doctype html><title>Maintenance</title>"),
    "cut": says('{"settings": {'),
    "a list": says("[]"),
    "null": says("null"),
    "two": says("{}{}"),
    "bytes": says(b"\xff\xfe"),
    "deep": says("[" * 100_000),
    "no settings": lambda _: web.json_response({"process_configuration": double.process()}),
    "too much": too_much,
}
PASSING: dict[str, double.Answer] = {
    "500": refuses(500, "ErrorException"),
    "503": lambda _: web.Response(status=503, text="<html>"),
    "silent": silence,
    "slow": drips,
    "stops short": stops_short,
}


def asked_for(panel: double.Panel, uuid: str) -> int:
    return sum(one.path == f"/api/remote/servers/{uuid}" for one in panel.seen)


@pytest.mark.parametrize("trouble", PERMANENT.values(), ids=PERMANENT)
def test_what_the_panel_refuses_is_500_at_once(
    node: System, panel: double.Panel, uuid: str, trouble: double.Answer
) -> None:
    asked = asked_for(panel, uuid)
    unchanged(node, panel, uuid, trouble)
    assert asked_for(panel, uuid) == asked + 1


@pytest.mark.parametrize("trouble", PASSING.values(), ids=PASSING)
def test_what_may_pass_is_asked_again_and_then_500(
    node: System, panel: double.Panel, uuid: str, trouble: double.Answer
) -> None:
    asked = asked_for(panel, uuid)
    unchanged(node, panel, uuid, trouble)
    assert asked_for(panel, uuid) > asked + 1


def test_what_has_passed_is_no_error(node: System, panel: double.Panel, uuid: str) -> None:
    left = [refuses(502), None]
    panel.trouble = lambda request: (found := left.pop(0) if len(left) > 1 else None) and found(request)
    assert sync(node, uuid).status == 204


def test_a_panel_that_nobody_is_at_or_somebody_else(node: System, site: Site, uuid: str) -> None:
    before = shown(node, uuid)
    site.panel.change(uuid, suspended=not before["suspended"])
    site.close()
    failed(sync(node, uuid))
    for name in ("that nobody vouches for", "expired", "of another address"):
        site.reopen(site.certificates[name])
        failed(sync(node, uuid))
        assert site.panel.seen == []  # nobody else learns the token
        site.close()
    site.reopen()
    assert shown(node, uuid) == before
    assert sync(node, uuid).status == 204
    assert shown(node, uuid)["suspended"] != before["suspended"]


def test_what_is_not_done_in_time_is_500_and_never_done(node: System, panel: double.Panel, uuid: str) -> None:
    before = shown(node, uuid)
    panel.change(uuid, suspended=not before["suspended"])
    with node.idle():
        failed(sync(node, uuid), LATE)
    time.sleep(1.0)
    assert shown(node, uuid) == before


@pytest.mark.parametrize("back", [False, True])
def test_an_older_answer_never_comes_after_a_newer_one(
    node: System, panel: double.Panel, uuid: str, back: bool
) -> None:
    """What the Panel said first is on its way for longer; meanwhile it has changed its mind, perhaps back to what it
    wanted before, so that whoever asks then finds nothing to change."""
    assert sync(node, uuid).status == 204
    first = panel.servers[uuid].settings
    panel.change(uuid, suspended=not first["suspended"])
    once = iter([True])

    async def slowly(request: web.Request) -> web.Response | None:
        if not next(once, False):
            return None
        said = await panel._one(request)
        await asyncio.sleep(0.25)
        return said

    panel.trouble = slowly
    with ThreadPoolExecutor(1) as pool:
        asked = len(panel.seen)
        older = pool.submit(sync, node, uuid)
        assert until(lambda: len(panel.seen) > asked)
        panel.servers[uuid].settings = {**first, "invocation": first["invocation"] if back else "newer"}
        newer = sync(node, uuid)
        assert (older.result().status, newer.status) == (204, 204)
    now = shown(node, uuid)
    assert (now["suspended"], now["invocation"]) == (first["suspended"], panel.servers[uuid].settings["invocation"])


# What the Panel says, and is of no use.


def changed(**values: Any) -> Callable[[Any], None]:
    """Sets `settings.<name>`, or `<name>` inside a map of it with `map__name`."""

    def change(found: dict[str, Any]) -> None:
        for name, value in values.items():
            *maps, key = ["settings", *name.split("__")]
            place = found
            for part in maps:
                place = place[part]
            place[key] = value

    return change


def replaced(**values: Any) -> Callable[[Any], None]:
    return lambda found: found.update(values)


WRONG: dict[str, Callable[[Any], None]] = {
    "another server": changed(uuid=OTHER),
    "the same in other letters": lambda found: changed(uuid=found["settings"]["uuid"].upper())(found),
    "no process configuration": lambda found: found.pop("process_configuration"),
    "null process configuration": replaced(process_configuration=None),
    "list for process configuration": replaced(process_configuration=[1]),
    "null settings": replaced(settings=None),
    "empty settings": replaced(settings=[]),
    "negative memory": changed(build__memory_limit=-1),
    "absurd memory": changed(build__memory_limit=10**12),
    "memory beyond any number": changed(build__memory_limit=10**30),
    "memory in words": changed(build__memory_limit="1 GB"),
    "memory in parts": changed(build__memory_limit=0.5),
    "negative swap": changed(build__swap=-2),
    "negative io": changed(build__io_weight=-1),
    "absurd io": changed(build__io_weight=1001),
    "negative processor": changed(build__cpu_limit=-1),
    "absurd processor": changed(build__cpu_limit=10**9),
    "absurd disk": changed(build__disk_space=10**12),
    "cores in words": changed(build__threads="0;reboot"),
    "port of none": changed(allocations__default={"ip": "127.0.0.1", "port": 0}),
    "port of too many": changed(allocations__mappings={"127.0.0.1": [65_536]}),
    "suspended in words": changed(suspended="no"),
    "variable without a name": changed(environment={"": "x"}),
    "variable with a sign": changed(environment={"A=B": "x"}),
    "variable with an end": changed(environment={"A": "x\0y"}),
    "variable of a map": changed(environment={"A": {}}),
    "variables in a list": changed(environment=["A"]),
    "10 MB of command": changed(invocation="x" * 10_000_000),
    "10 MB of variables": changed(environment={f"V{number}": "x" * 900 for number in range(10_000)}),
    "10 MB of denials": changed(egg={"id": "e", "file_denylist": ["x" * 90] * 100_000}),
    "unknown parser": replaced(
        process_configuration=double.process(configs=[{"parser": "exe", "file": "a", "replace": []}])
    ),
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_what_is_of_no_use_is_500(node: System, panel: double.Panel, uuid: str, wrong: Callable[[Any], None]) -> None:
    found = json.loads(json.dumps({"settings": double.settings(uuid), "process_configuration": double.process()}))
    wrong(found)
    unchanged(node, panel, uuid, says(json.dumps(found)))


RIGHT: dict[str, tuple[Callable[[Any], None], dict[str, Any]]] = {
    "PHP's empty maps": (
        changed(environment=[], labels=[], allocations__mappings=[]),
        {"environment": {}, "labels": {}},
    ),
    "empty lists for other maps": (
        lambda found: (changed(meta=[])(found), found["process_configuration"].update(startup=[], stop=[]))[0],
        {"meta": {"name": "", "description": ""}},
    ),
    "nulls": (
        changed(environment=None, mounts=None, meta__description=None, egg={"id": "e", "file_denylist": None}),
        {"environment": {}, "mounts": [], "egg": {"id": "e", "file_denylist": []}},
    ),
    "a disk without end": (changed(build__disk_space=-1), {}),
    "nothing at all": (changed(build__memory_limit=0, build__cpu_limit=0, build__swap=-1, build__io_weight=None), {}),
    "variables of any kind": (
        changed(environment={"A": 5, "B": True, "C": None, "D": 1.5, "E": "", "F": 5.0}),
        {"environment": {"A": "5", "B": "true", "C": "", "D": "1.5", "E": "", "F": "5"}},
    ),
    "what this release does not know": (changed(future={"a": [1]}, build__later=1), {}),
    "some MB of variables": (changed(environment={f"V{number}": "x" * 50_000 for number in range(50)}), {}),
}


@pytest.mark.parametrize(("right", "expected"), RIGHT.values(), ids=RIGHT)
def test_what_is_odd_and_meant_so_is_taken(
    node: System, panel: double.Panel, uuid: str, right: Callable[[Any], None], expected: dict[str, Any]
) -> None:
    found = json.loads(json.dumps({"settings": double.settings(uuid), "process_configuration": double.process()}))
    right(found)
    panel.trouble = says(json.dumps(found))
    assert sync(node, uuid).status == 204
    now = shown(node, uuid)
    assert expected.items() <= now.items()
    assert not now["suspended"]


# Websockets, beside what test_sockets has.


def handshake(node: System, uuid: str, **options: Any) -> int:
    """The status of one that is refused, 101 else."""
    address = urlsplit(node.ready["url"]).netloc
    try:
        with connect(f"ws://{address}/api/servers/{uuid}/ws", close_timeout=1, **options):
            return 101
    except InvalidStatus as refused:
        return refused.response.status_code


def test_which_pages_may_connect(node: System, panel: double.Panel, uuid: str) -> None:
    wrong = ["https://evil.example", panel.url.replace("https", "http"), f"{panel.url}.evil.example", "null", None]
    assert {handshake(node, uuid, origin=origin) for origin in wrong} == {403}
    assert {handshake(node, uuid, origin=origin) for origin in (panel.url, "http://localhost:3000")} == {101}
    bearer = {"Authorization": f"Bearer {double.TOKEN}"}  # which is not what opens it
    assert handshake(node, uuid, origin="https://evil.example", additional_headers=bearer) == 403


def test_whoever_leaves_makes_room(node: System, panel: double.Panel, uuid: str) -> None:
    with ExitStack() as stack:
        for _ in range(29):
            stack.enter_context(opened(node, panel, uuid))
        with opened(node, panel, uuid):
            assert handshake(node, uuid, origin=panel.url) == 400
        assert until(lambda: handshake(node, uuid, origin=panel.url) == 101)


def test_what_a_token_permits(node: System, panel: double.Panel, uuid: str) -> None:
    with opened(node, panel, uuid) as socket:
        for permissions in (["control.start"], ["WEBSOCKET.CONNECT"], [""]):
            say(socket, "auth", panel.token(uuid, "ann", *permissions))
            assert hear(socket)[0] == "jwt error"
        say(socket, "auth", panel.token(uuid, permissions=None))
        assert hear(socket)[0] == "jwt error"
        admitted(socket, panel.token(uuid, "ann", "*"))


def test_nobody_is_let_in_before_the_door_is_shut(node: System, panel: double.Panel) -> None:
    uuid = taken_over(node, panel)
    token = panel.token(uuid)
    panel.change(uuid, suspended=True)
    assert sync(node, uuid).status == 204
    for _ in range(20):
        with opened(node, panel, uuid) as socket:
            with suppress(ConnectionClosed):
                say(socket, "auth", token)
            with pytest.raises(ConnectionClosed) as closed:
                socket.recv(timeout=10)
        assert closed.value.rcvd is not None
        assert (closed.value.rcvd.code, closed.value.rcvd.reason) == SUSPENDED


def test_a_token_of_before_the_start_opens_nothing(node: System, panel: double.Panel, uuid: str) -> None:
    before = panel.token(uuid)
    with opened(node, panel, uuid) as socket:
        admitted(socket, before)
        time.sleep(1.0)  # the time of a token has whole seconds
        node.replaced("gateway", node.kill("gateway"))
        assert is_cut(socket)
    with opened(node, panel, uuid) as socket:
        say(socket, "auth", before)
        event, args = hear(socket)
        assert (event, "revoked" in args[0]) == ("jwt error", True)
        admitted(socket, panel.token(uuid))
