"""The Panel renews the node's token: every process goes by the new one at once, and still after a restart."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.doubles import panel as double
from tests.journeys.system import Answer, System, until
from tests.journeys.test_sockets import admitted, hear, is_cut, opened, say
from tests.journeys.test_two_gateways import Beside, beside

INVALID = {"error": "The data provided in the request could not be validated."}


@pytest.fixture(scope="module")
def second(node: System, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    with beside(node, tmp_path_factory.mktemp("second") / "gateway.log") as url:
        yield Beside(node.base, port=node.port, url=url)


@pytest.fixture(scope="module", autouse=True)
def others(node: System, panel: double.Panel) -> Iterator[None]:
    """Go by the token of before."""
    yield
    first = double.TOKEN_ID, double.TOKEN
    body = {**panel.configuration(), "token_id": first[0], "token": first[1]}
    assert update(node, panel, body).status == 200
    panel.node = first


def update(node: System, panel: double.Panel, body: Any, **headers: str) -> Answer:
    return node.call("POST", "/api/update", body, token=panel.node[1], headers=headers)


def opens(node: System, token: str) -> bool:
    return node.get("/api/servers", token=token).status == 200


def taken(node: System, panel: double.Panel) -> str:
    uuid = panel.add()
    answer = node.call("POST", "/api/servers", {"uuid": uuid}, token=panel.node[1])
    assert answer.status == 202, answer
    return uuid


WRONG: dict[str, dict[str, Any]] = {
    "empty token": {"token": ""},
    "empty id": {"token_id": ""},
    "number": {"token": 5},
    "null": {"token": None},
    "list": {"token": ["a" * 64]},
    "short": {"token": "a" * 31},
    "long": {"token": "a" * 256},
    "dot": {"token": "a" * 32 + "." + "a" * 31},
    "two lines": {"token": "a" * 64 + "\r\nX-Evil: 1"},
    "not ascii": {"token": "é" * 64},
    "id with a dot": {"token_id": "a.b"},
    "remote elsewhere": {"remote": "https://evil.example"},
    "remote on another port": {"remote": "http://127.0.0.1:1"},
    "remote below": {"remote": "/below"},
    "no remote": {"remote": ""},
    "remote that is none": {"remote": "http://["},
    "remote of another type": {"remote": {}},
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_what_is_wrong_changes_nothing(node: System, panel: double.Panel, wrong: dict[str, Any]) -> None:
    before = node.head()
    fresh = {"token_id": "fresh", "token": secrets.token_hex(32), "remote": panel.url}
    if str(wrong.get("remote", "")).startswith("/"):
        wrong = {"remote": panel.url + wrong["remote"]}
    answer = update(node, panel, {**panel.configuration(), **fresh, **wrong})
    assert (answer.status, answer.json()) == (422, INVALID)
    assert opens(node, panel.node[1])
    assert node.head() == before


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'"x"', b"\xff"])
def test_what_is_no_configuration(node: System, panel: double.Panel, body: bytes) -> None:
    assert update(node, panel, body, **{"Content-Type": "application/json"}).status == 400
    assert opens(node, panel.node[1])


def test_the_same_again_changes_nothing(node: System, panel: double.Panel) -> None:
    before = node.head()
    answer = update(node, panel, panel.configuration())
    assert (answer.status, answer.json()) == (200, {"applied": True})
    assert update(node, panel, {"debug": True, "remote": panel.url + "/"}).json() == {"applied": False}
    assert node.head() == before


def test_a_new_token_is_the_only_one_at_once_and_everywhere(node: System, second: System, panel: double.Panel) -> None:
    """This gateway from the answer on, others within a second, and whoever asks the Panel as well."""
    uuid, (_, old) = taken(node, panel), panel.node
    with ExitStack() as stack:
        sockets = [stack.enter_context(opened(one, panel, uuid)) for one in (node, second)]
        before = panel.token(uuid)
        for socket in sockets:
            admitted(socket, before)
        unknown = stack.enter_context(opened(second, panel, uuid))
        assert panel.renew(node.ready["url"]) == 200
        assert (opens(node, old), opens(node, panel.node[1])) == (False, True)
        assert until(lambda: (opens(second, old), opens(second, panel.node[1])) == (False, True), 1.0)
        assert all(is_cut(socket) for socket in sockets)  # whoever knew the old token could have made theirs
        say(unknown, "auth", before)
        assert hear(unknown)[0] == "jwt error"
        admitted(unknown, panel.token(uuid))
    for gateway in (node, second):  # the worker asks the Panel by it
        assert panel.sync(gateway.ready["url"], uuid) == 204
    asked = next(one for one in reversed(panel.seen) if one.path.endswith(uuid))
    assert asked.headers["Authorization"] == "Bearer " + ".".join(panel.node)
    assert asked.headers["User-Agent"].endswith(f"(id:{panel.node[0]})")


def test_many_at_once_leave_one_that_all_know(node: System, second: System, panel: double.Panel) -> None:
    """Each is asked with the token of the moment; the last in the log counts, whoever wrote it."""
    made = [secrets.token_hex(32) for _ in range(8)]
    for number, token in enumerate(made):
        gateway = (node, second)[number % 2]
        until(lambda gateway=gateway: opens(gateway, panel.node[1]), 1.0)  # type: ignore[misc]
        assert update(gateway, panel, {**panel.configuration(), "token": token}).status == 200
        panel.node = panel.node[0], token
    assert until(lambda: all(opens(one, made[-1]) for one in (node, second)), 1.0)
    assert not any(opens(one, token) for one in (node, second) for token in made[:-1])


def test_an_idempotency_key_renews_once(node: System, panel: double.Panel) -> None:
    body = {**panel.configuration(), "token": secrets.token_hex(32)}
    first = update(node, panel, body, **{"Idempotency-Key": "renewed"})
    panel.node = panel.node[0], body["token"]
    again = update(node, panel, body, **{"Idempotency-Key": "renewed"})
    assert (first.status, again.status, first.position) == (200, 200, again.position)


def test_it_is_sealed_and_counts_until_settings_say_something_new(
    node: System, panel: double.Panel, tmp_path: Path
) -> None:
    """For processes that start later, too. What the settings said when it was renewed is older, whoever says it."""
    uuid = taken(node, panel)
    assert panel.renew(node.ready["url"]) == 200
    renewed = panel.node
    stored = node.sql("select convert_from(state, 'UTF8') from undrift.events where topic = 'nodes.token_renewed'")
    sealed = node.sql("select encode(sealed, 'escape') from undrift_keys.secrets")
    for token in (double.TOKEN, renewed[1]):
        assert not any(token in str(row) for row in (*stored, *sealed))
        assert token not in node.log.read_text(errors="replace")
    with beside(node, tmp_path / "later.log") as url:
        later = Beside(node.base, port=node.port, url=url)
        assert (opens(later, double.TOKEN), opens(later, renewed[1])) == (False, True)
        node.replaced("worker-now", node.kill("worker-now"))
        assert panel.sync(url, uuid) == 204
    fresh = secrets.token_hex(32)
    with beside(node, tmp_path / "newer.log", UNDRIFT_PANEL_TOKEN_ID="newer", UNDRIFT_PANEL_TOKEN=fresh) as url:
        newer = Beside(node.base, port=node.port, url=url)
        assert (opens(newer, renewed[1]), opens(newer, fresh)) == (False, True)
        panel.node = "newer", fresh
        assert panel.renew(url) == 200
        assert until(lambda: all(opens(one, panel.node[1]) for one in (node, newer)), 1.0)
        assert not any(opens(node, token) for token in (double.TOKEN, renewed[1], fresh))
