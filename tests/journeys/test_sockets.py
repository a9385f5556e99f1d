"""Websockets of servers, as the Panel's pages use them, and how a suspension cuts them off."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from urllib.parse import urlsplit

import jwt
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from tests.doubles import panel as double
from tests.journeys.nodes import ask, taken_over, untroubled
from tests.journeys.system import System, until

__all__ = ["untroubled"]  # a fixture

SUSPENDED = (4409, "server is suspended")


@contextmanager
def opened(node: System, panel: double.Panel, uuid: str, origin: str | None = None) -> Iterator[ClientConnection]:
    address = urlsplit(node.ready["url"])
    with connect(
        f"ws://{address.netloc}/api/servers/{uuid}/ws", origin=origin or panel.url, open_timeout=30, close_timeout=1
    ) as socket:
        yield socket


def say(socket: ClientConnection, event: str, *args: Any) -> None:
    socket.send(json.dumps({"event": event, "args": list(args)}))


def hear(socket: ClientConnection, timeout: float = 30) -> tuple[str, list[Any]]:
    said = json.loads(socket.recv(timeout=timeout))
    return said["event"], said["args"]


def admitted(socket: ClientConnection, token: str) -> None:
    say(socket, "auth", token)
    assert hear(socket) == ("auth success", [])
    assert hear(socket)[0] == "status"


def is_cut(socket: ClientConnection) -> bool:
    """Whether the node ended it, after whatever it had still said."""
    try:
        while True:
            socket.recv(timeout=10)
    except ConnectionClosed:
        return True
    except TimeoutError:
        return False


def refusal(node: System, panel: double.Panel, uuid: str, origin: str | None = None) -> tuple[int, Any]:
    with pytest.raises(InvalidStatus) as raised, opened(node, panel, uuid, origin):
        pass
    return raised.value.response.status_code, json.loads(raised.value.response.body)


def test_a_page_of_the_panels_listens(node: System, panel: double.Panel) -> None:
    uuid = taken_over(node, panel)
    with opened(node, panel, uuid) as socket:
        say(socket, "auth", panel.token(uuid))
        assert hear(socket) == ("auth success", [])
        assert hear(socket) == ("status", ["offline"])


def test_only_pages_of_the_panel(node: System, panel: double.Panel) -> None:
    uuid = taken_over(node, panel)
    assert refusal(node, panel, uuid, "https://evil.example")[0] == 403


def test_an_unknown_server(node: System, panel: double.Panel) -> None:
    unknown = "11111111-5c7b-4f1e-9d2a-6e8f1c3b5a7d"
    not_here = {"error": "The requested resource does not exist on this instance."}
    assert refusal(node, panel, unknown) == (404, not_here)
    assert refusal(node, panel, "x/y")[0] == 404


def test_more_than_thirty_are_refused(node: System, panel: double.Panel) -> None:
    uuid, other = taken_over(node, panel), taken_over(node, panel)
    with ExitStack() as stack:
        for _ in range(30):
            stack.enter_context(opened(node, panel, uuid))
        assert refusal(node, panel, uuid) == (400, {"error": "Too many open websocket connections."})
        stack.enter_context(opened(node, panel, other))


def tokens(panel: double.Panel, uuid: str) -> dict[str, Any]:
    good = panel.token(uuid)
    claims = jwt.decode(good, options={"verify_signature": False})
    return {
        "none": jwt.encode(claims, None, algorithm="none"),
        "another key": jwt.encode(claims, "x" * 64, algorithm="HS256"),
        "another algorithm": jwt.encode(claims, double.TOKEN, algorithm="HS512"),
        "expired": panel.token(uuid, lives_s=-1),
        "not yet": panel.token(uuid, nbf=int(time.time()) + 3600),
        "from before": panel.token(uuid, iat=int(time.time()) - 86_400),
        "another server": panel.token("11111111-5c7b-4f1e-9d2a-6e8f1c3b5a7d"),
        "no permission": panel.token(uuid, "ann", "control.start"),
        "without exp": jwt.encode({k: v for k, v in claims.items() if k != "exp"}, double.TOKEN, algorithm="HS256"),
        "garbage": "garbage",
        "a number": 5,
        "empty": "",
        "large": "x" * 20_000,
    }


def test_no_other_token_opens_it(node: System, panel: double.Panel) -> None:
    uuid = taken_over(node, panel)
    with opened(node, panel, uuid) as socket:
        for name, token in tokens(panel, uuid).items():
            say(socket, "auth", token)
            event, args = hear(socket)
            assert event == "jwt error", (name, event, args)
        say(socket, "set state", "start")
        assert hear(socket)[0] == "jwt error"
        admitted(socket, panel.token(uuid))


def test_nonsense_is_answered_and_much_of_it_is_dropped(node: System, panel: double.Panel) -> None:
    uuid = taken_over(node, panel)
    with opened(node, panel, uuid) as socket:
        for text in ("", "[]", "{", '{"event": 5}', "\x00", '{"args": []}'):
            socket.send(text)
            assert hear(socket)[0] == "daemon error"
        admitted(socket, panel.token(uuid))
        for _ in range(200):
            say(socket, "nothing")
        assert hear(socket) == ("throttled", ["global"])
    with opened(node, panel, uuid) as socket:
        socket.send("x" * 100_000)
        assert is_cut(socket)


def test_what_somebody_wants_is_in_the_log_if_they_may(node: System, panel: double.Panel) -> None:
    uuid = taken_over(node, panel)
    with opened(node, panel, uuid) as socket:
        admitted(socket, panel.token(uuid, "bob", "websocket.connect", "control.stop"))
        say(socket, "set state", "start")
        say(socket, "set state", "explode")
        assert hear(socket)[0] == "daemon error"
        say(socket, "set state", "kill")
        assert until(lambda: asked(node, uuid) == [("kill", "user:bob")])


def asked(node: System, uuid: str) -> list[tuple[str, str]]:
    rows = node.sql(
        "select convert_from(state, 'UTF8') from undrift.events where stream_id = %s and topic = 'servers.power_asked'",
        f"servers/main/{uuid}",
    )
    return [(found["action"], found["by"]) for found in (json.loads(row[0]) for row in rows)]


# How it ends.


def test_a_token_expires_and_a_new_one_goes_on(node: System, panel: double.Panel) -> None:
    uuid = taken_over(node, panel)
    with opened(node, panel, uuid) as socket:
        admitted(socket, panel.token(uuid, lives_s=3))
        assert hear(socket) == ("token expiring", [])
        assert hear(socket) == ("token expired", [])
        say(socket, "send stats")
        assert hear(socket)[0] == "jwt error"
        admitted(socket, panel.token(uuid))
        say(socket, "send stats")
        assert hear(socket)[0] == "stats"


def test_a_suspension_cuts_everybody_off_and_lets_nobody_in(node: System, panel: double.Panel) -> None:
    uuid, other = taken_over(node, panel), taken_over(node, panel)
    token = panel.token(uuid)
    with ExitStack() as stack:
        sockets = [stack.enter_context(opened(node, panel, uuid)) for _ in range(10)]
        for socket in sockets[:8]:  # whoever has not shown a token is cut off as well
            admitted(socket, token)
        bystander = stack.enter_context(opened(node, panel, other))
        admitted(bystander, panel.token(other))
        assert panel.toggle(node.ready["url"], uuid, suspend=True)
        assert all(is_cut(socket) for socket in sockets)
        with opened(node, panel, uuid) as late, pytest.raises(ConnectionClosed) as closed:
            late.recv(timeout=10)
        assert closed.value.rcvd is not None
        assert (closed.value.rcvd.code, closed.value.rcvd.reason) == SUSPENDED
        assert panel.toggle(node.ready["url"], uuid, suspend=False)
        with opened(node, panel, uuid) as back:
            admitted(back, token)
        say(bystander, "send stats")
        assert hear(bystander)[0] == "stats"


def test_who_connects_while_it_is_suspended_is_not_missed(node: System, panel: double.Panel) -> None:
    """Connections all the time while it is switched off and on: none of them outlives the suspension."""
    uuid = taken_over(node, panel)
    for _ in range(5):
        with ExitStack() as stack:
            sockets: list[ClientConnection] = []
            for number in range(20):
                if number == 10:
                    assert panel.toggle(node.ready["url"], uuid, suspend=True)
                sockets.append(stack.enter_context(opened(node, panel, uuid)))
            assert all(is_cut(socket) for socket in sockets)
        assert panel.toggle(node.ready["url"], uuid, suspend=False)


def test_denied_tokens_open_nothing_any_more(node: System, panel: double.Panel) -> None:
    uuid = taken_over(node, panel)
    token, others = panel.token(uuid), panel.token(uuid, "bob")
    jti = jwt.decode(token, options={"verify_signature": False})["jti"]
    with opened(node, panel, uuid) as socket, opened(node, panel, uuid) as other:
        admitted(socket, token)
        admitted(other, others)
        assert ask(node, "POST", f"/api/servers/{uuid}/ws/deny", {"jtis": [jti]}).status == 204
        assert is_cut(socket)
        with opened(node, panel, uuid) as again:
            say(again, "auth", token)
            assert hear(again)[0] == "jwt error"
            admitted(again, panel.token(uuid, iat=int(time.time()) + 2))
        say(other, "send stats")
        assert hear(other)[0] == "stats"


@pytest.mark.parametrize("everywhere", [True, False])
def test_a_user_is_cut_off(node: System, panel: double.Panel, everywhere: bool) -> None:
    one, two = taken_over(node, panel), taken_over(node, panel)
    user = f"carl-{everywhere}"
    with opened(node, panel, one) as first, opened(node, panel, two) as second, opened(node, panel, one) as other:
        admitted(first, panel.token(one, user))
        admitted(second, panel.token(two, user))
        admitted(other, panel.token(one, "dora"))
        body = {"user": user, "servers": [] if everywhere else [one]}
        assert ask(node, "POST", "/api/deauthorize-user", body).status == 204
        assert is_cut(first)
        if everywhere:
            assert is_cut(second)
        else:
            say(second, "send stats")
            assert hear(second)[0] == "stats"
        say(other, "send stats")
        assert hear(other)[0] == "stats"


def test_a_deleted_server_says_so(node: System, panel: double.Panel) -> None:
    uuid = taken_over(node, panel)
    with opened(node, panel, uuid) as socket:
        admitted(socket, panel.token(uuid))
        assert ask(node, "DELETE", f"/api/servers/{uuid}").status == 204
        assert is_cut(socket)
