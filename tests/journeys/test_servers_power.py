"""Servers that run: started, heard, limited, suspended, crashed and deleted through the API of a node."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from aiohttp import web
from websockets.sync.client import ClientConnection

from infra import processes
from tests.doubles import panel as double
from tests.journeys.nodes import ask, panel, settings, taken_over, untroubled
from tests.journeys.system import System, until
from tests.journeys.test_sockets import hear, is_cut, opened, say

__all__ = ["panel", "untroubled"]  # fixtures

#: A little server: it says what it was started with, and then again whatever it is told, until that is to stop.
SERVER = """
echo "word is $WORD of $SERVER_MEMORY"; echo $$ > pid; sleep {{SLOW}}; echo ready
while read -r line; do
  case "$line" in
    stop) echo bye; exit 0;;
    crash) exit 3;;
    *) echo "you said $line";;
  esac
done
"""
EVERYTHING = ("websocket.connect", "control.console", "control.start", "control.stop", "control.restart")
MORE = "[servers]\nstop_s = 3.0\nstats_s = 0.2\n"


@pytest.fixture(scope="module")
def node(panel: double.Panel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    system = System(tmp_path_factory.mktemp("power"), settings=settings(panel) + MORE)
    try:
        yield system.start()
    finally:
        system.stop()


def made(node: System, panel: double.Panel, **changed: Any) -> str:
    environment = {"WORD": "one", "SLOW": "0"}
    return taken_over(node, panel, **{"invocation": SERVER, "environment": environment, **changed})


def power(node: System, uuid: str, action: str) -> None:
    answer = ask(node, "POST", f"/api/servers/{uuid}/power", {"action": action})
    assert (answer.status, answer.body) == (202, b""), answer


def state(node: System, uuid: str) -> str:
    found: str = ask(node, "GET", f"/api/servers/{uuid}").json()["state"]
    return found


def reaches(node: System, uuid: str, wanted: str) -> None:
    assert until(lambda: state(node, uuid) == wanted, 20), (events(node, uuid), node.said()[-3000:])


def pid(node: System, uuid: str) -> int:
    file = node.directory / "servers" / uuid / "pid"
    assert until(lambda: file.exists() and file.read_text().strip(), 20), node.said()[-3000:]
    return int(file.read_text())


def started(node: System, panel: double.Panel, **changed: Any) -> str:
    uuid = made(node, panel, **changed)
    power(node, uuid, "start")
    reaches(node, uuid, "running")
    return uuid


@contextlib.contextmanager
def listening(node: System, panel: double.Panel, uuid: str, *permissions: str) -> Iterator[ClientConnection]:
    with opened(node, panel, uuid) as socket:
        say(socket, "auth", panel.token(uuid, "ann", *(permissions or EVERYTHING)))
        assert hear(socket) == ("auth success", [])
        assert hear(socket)[0] == "status"
        yield socket


def heard(socket: ClientConnection, event: str, wanted: Callable[[str], bool] = bool, timeout: float = 20) -> str:
    """The first of these that is wanted; what else is said does not matter."""
    deadline = time.monotonic() + timeout
    missed = []
    while (left := deadline - time.monotonic()) > 0:
        try:
            name, args = hear(socket, left)
        except TimeoutError:
            break
        if name == event and wanted(args[0] if args else ""):
            return str(args[0]) if args else ""
        if name != "stats":
            missed.append((name, args))
    raise AssertionError((event, missed[-20:]))


def line(socket: ClientConnection, text: str) -> None:
    heard(socket, "console output", lambda found: text in found)


def topics(node: System, uuid: str) -> list[str]:
    rows = node.sql("select topic from undrift.events where stream_id = %s order by version", f"servers/main/{uuid}")
    return [row[0] for row in rows]


def events(node: System, uuid: str) -> list[str]:
    rows = node.sql(
        "select convert_from(state, 'UTF8') from undrift.events where stream_id = %s order by version desc limit 10",
        f"servers/main/{uuid}",
    )
    return [row[0] for row in rows]


def last(node: System, uuid: str, topic: str) -> dict[str, Any]:
    rows = node.sql(
        "select convert_from(state, 'UTF8') from undrift.events where stream_id = %s and topic = %s"
        " order by version desc limit 1",
        f"servers/main/{uuid}",
        f"servers.{topic}",
    )
    found: dict[str, Any] = json.loads(rows[0][0]) if rows else {}
    return found


# By HTTP.


def test_a_server_is_started_told_something_and_stopped(node: System, panel: double.Panel) -> None:
    uuid = started(node, panel)
    with listening(node, panel, uuid) as socket:
        answer = ask(node, "POST", f"/api/servers/{uuid}/commands", {"commands": ["hello", "world"]})
        assert (answer.status, answer.body) == (204, b"")
        line(socket, "you said hello")
        line(socket, "you said world")
    used = ask(node, "GET", f"/api/servers/{uuid}").json()["utilization"]
    assert used["state"] == "running"
    assert used["memory_bytes"] > 0
    assert used["uptime"] > 0
    power(node, uuid, "stop")
    reaches(node, uuid, "offline")
    changed = last(node, uuid, "power_changed")
    assert (changed["power"], changed["exit_code"]) == ("offline", 0)
    assert "servers.crashed" not in topics(node, uuid)
    answer = ask(node, "POST", f"/api/servers/{uuid}/commands", {"commands": ["hello"]})
    assert answer.status == 502
    assert answer.json() == {"error": "Cannot send commands to a stopped server instance."}


def test_what_cannot_be_asked(node: System, panel: double.Panel) -> None:
    uuid = made(node, panel)
    answer = ask(node, "POST", f"/api/servers/{uuid}/power", {"action": "explode"})
    assert (answer.status, "not valid" in answer.json()["error"]) == (422, True)
    unknown = "11111111-5c7b-4f1e-9d2a-6e8f1c3b5a7d"
    for path, body in (("power", {"action": "start"}), ("commands", {"commands": ["x"]})):
        assert ask(node, "POST", f"/api/servers/{unknown}/{path}", body).status == 404
    panel.change(uuid, suspended=True)
    assert ask(node, "POST", f"/api/servers/{uuid}/sync").status == 204
    answer = ask(node, "POST", f"/api/servers/{uuid}/power", {"action": "start"})
    assert (answer.status, answer.json()) == (400, {"error": "Cannot start or restart a server that is suspended."})


def test_it_may_start_as_soon_as_it_is_taken_over(node: System, panel: double.Panel) -> None:
    uuid = panel.add(invocation=SERVER, environment={"WORD": "one", "SLOW": "0"})
    assert ask(node, "POST", "/api/servers", {"uuid": uuid, "start_on_completion": True}).status == 202
    reaches(node, uuid, "running")
    power(node, uuid, "kill")
    reaches(node, uuid, "offline")
    assert last(node, uuid, "power_changed")["exit_code"] == -9


# As pages of the Panel do.


def test_a_page_starts_it_and_hears_what_it_says(node: System, panel: double.Panel) -> None:
    uuid = made(node, panel, environment={"WORD": "one", "SLOW": "1"})
    with listening(node, panel, uuid) as socket:
        say(socket, "set state", "start")
        assert heard(socket, "status") == "starting"
        line(socket, "word is one of 256")
        assert heard(socket, "status") == "running"
        say(socket, "send command", "hello")
        line(socket, "you said hello")
        used = json.loads(heard(socket, "stats", lambda text: json.loads(text)["memory_bytes"] > 0))
        assert used.keys() == {
            "memory_bytes", "memory_limit_bytes", "cpu_absolute", "network", "uptime", "state", "disk_bytes",
        }  # fmt: skip
        assert (used["state"], used["memory_limit_bytes"]) == ("running", 294_400_000)
        with listening(node, panel, uuid, "websocket.connect") as other:
            say(other, "send command", "unheard")
            say(other, "send logs")
            line(other, "word is one")
            line(other, "you said hello")
        say(socket, "set state", "restart")
        for power in ("stopping", "offline", "starting", "running"):
            assert heard(socket, "status") == power
        say(socket, "set state", "stop")
        assert heard(socket, "status", lambda text: text == "offline")
        say(socket, "send command", "nobody is there")
        say(socket, "send logs")
        say(socket, "send stats")
        assert json.loads(heard(socket, "stats", lambda text: json.loads(text)["state"] == "offline"))["uptime"] == 0


def test_much_of_what_it_says_is_dropped_and_its_listeners_stay(node: System, panel: double.Panel) -> None:
    uuid = started(node, panel)
    with listening(node, panel, uuid) as socket:
        panel.change(uuid, invocation="yes flood | head -200000; echo that was it; cat")
        say(socket, "set state", "restart")
        heard(socket, "daemon message", lambda text: "throttling" in text)
        say(socket, "set state", "kill")
        assert heard(socket, "status", lambda text: text == "offline") == "offline"


# What the Panel says of one that runs.


def test_without_the_panel_nothing_is_started(node: System, panel: double.Panel) -> None:
    uuid = made(node, panel)
    with listening(node, panel, uuid) as socket:
        panel.trouble = lambda _: web.Response(status=403)
        say(socket, "set state", "start")
        heard(socket, "daemon message", lambda text: "could not be started" in text)
    assert topics(node, uuid)[-2:] == ["servers.power_asked", "servers.start_failed"]
    assert state(node, uuid) == "offline"


def test_a_start_has_the_configuration_of_the_panel_of_now(node: System, panel: double.Panel) -> None:
    uuid = started(node, panel)
    panel.change(uuid, environment={"WORD": "two", "SLOW": "0"}, build={"memory_limit": 512})
    with listening(node, panel, uuid) as socket:
        say(socket, "set state", "restart")
        line(socket, "word is two of 512")
        panel.change(uuid, suspended=True)  # it is known to the Panel alone until somebody asks
        say(socket, "set state", "restart")
        assert is_cut(socket)
    reaches(node, uuid, "offline")
    assert "servers.suspended" in topics(node, uuid)


def test_what_the_panel_wants_in_files_is_there_before_it_starts(node: System, panel: double.Panel) -> None:
    uuid = panel.add(invocation="cat server.properties; cat", environment={"MOTD": "hello there"})
    rules = [
        {"match": "server-port", "replace_with": "{{server.build.default.port}}"},
        {"match": "motd", "replace_with": "{{server.environment.MOTD}}"},
        {"match": "ip", "replace_with": "{{config.docker.network.interface}}"},
    ]
    panel.servers[uuid].process = double.process(
        configs=[
            {"parser": "properties", "file": "server.properties", "replace": rules},
            {"parser": "properties", "file": "../outside", "replace": rules},
        ],
        startup={"done": [], "user_interaction": [], "strip_ansi": False},
    )
    assert ask(node, "POST", "/api/servers", {"uuid": uuid}).status == 202
    with listening(node, panel, uuid) as socket:
        say(socket, "set state", "start")
        heard(socket, "daemon message", lambda text: text.startswith("../outside: "))
        for text in ("server-port=25565", "motd=hello there", "ip=127.0.0.1"):
            line(socket, text)
    assert not (node.directory / "servers" / "outside").exists()


def test_a_sync_changes_limits_at_once_and_a_suspension_ends_it(node: System, panel: double.Panel) -> None:
    uuid = started(node, panel, invocation=f"trap '' TERM; {SERVER}")
    process = pid(node, uuid)
    limited = ask(node, "GET", f"/api/servers/{uuid}").json()["utilization"]["memory_limit_bytes"]
    panel.change(uuid, build={"memory_limit": 512})
    with listening(node, panel, uuid) as socket, listening(node, panel, uuid):
        answer = ask(node, "POST", f"/api/servers/{uuid}/sync", Prefer="return=representation").json()
        assert [one["field"] for one in answer["differences"]] == ["build.memory_limit"]
        used = heard(socket, "stats", lambda text: json.loads(text)["memory_limit_bytes"] != limited)
        assert json.loads(used)["memory_limit_bytes"] == 588_800_000
        assert processes.alive(process)
        panel.change(uuid, suspended=True)
        answer = ask(node, "POST", f"/api/servers/{uuid}/sync", Prefer="return=representation").json()
        assert answer["clients_cut"] == 2
        assert is_cut(socket)
    reaches(node, uuid, "offline")
    assert not processes.alive(process)


# How it ends.


def test_one_that_crashes_is_started_once_more(node: System, panel: double.Panel) -> None:
    uuid = started(node, panel)
    with listening(node, panel, uuid) as socket:
        say(socket, "send command", "crash")
        heard(socket, "daemon message", lambda text: "crashed state" in text)
        heard(socket, "daemon message", lambda text: text == "Exit code: 3")
        line(socket, "ready")
        reaches(node, uuid, "running")
        say(socket, "send command", "crash")
        heard(socket, "daemon message", lambda text: "less than 60 seconds ago" in text)
    reaches(node, uuid, "offline")
    crashes = node.sql(
        "select convert_from(state, 'UTF8')::json->>'again' from undrift.events where stream_id = %s"
        " and topic = 'servers.crashed' order by version",
        f"servers/main/{uuid}",
    )
    assert [row[0] for row in crashes] == ["true", "false"]


def test_where_crashes_do_not_count_it_stays_down(node: System, panel: double.Panel) -> None:
    uuid = started(node, panel, crash_detection_enabled=False)
    with listening(node, panel, uuid) as socket:
        say(socket, "send command", "crash")
        assert heard(socket, "status", lambda text: text == "offline")
    assert "servers.crashed" not in topics(node, uuid)
    assert last(node, uuid, "power_changed")["exit_code"] == 3


def test_a_pattern_that_takes_for_ever_holds_up_nobody(node: System, panel: double.Panel) -> None:
    uuid = panel.add(invocation="echo aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa!; cat")
    startup = {"done": ["regex:^(a+)+$", "regex:("], "user_interaction": [], "strip_ansi": False}
    panel.servers[uuid].process = double.process(startup=startup)
    assert ask(node, "POST", "/api/servers", {"uuid": uuid}).status == 202
    power(node, uuid, "start")
    reaches(node, uuid, "starting")
    bystander = started(node, panel)
    reaches(node, uuid, "running")
    for one in (uuid, bystander):
        power(node, one, "kill")


def test_a_deleted_server_leaves_nothing(node: System, panel: double.Panel) -> None:
    uuid = started(node, panel)
    process, folder = pid(node, uuid), node.directory / "servers" / uuid
    (folder / "deep" / "er").mkdir(parents=True)
    (folder / "away").symlink_to(node.base)
    assert ask(node, "DELETE", f"/api/servers/{uuid}").status == 204
    assert until(lambda: not folder.exists() and not processes.alive(process), 20), node.said()[-3000:]
    assert (node.base / "up.log").exists()


def test_without_a_node_nothing_is_known_of_what_servers_use(node: System, panel: double.Panel) -> None:
    uuid = started(node, panel)
    with node.paused("node"):
        shown = ask(node, "GET", f"/api/servers/{uuid}").json()
        assert (shown["state"], shown["utilization"]["memory_bytes"]) == ("running", 0)
        assert shown in ask(node, "GET", "/api/servers").json()
        power(node, uuid, "kill")  # it is carried out later
    reaches(node, uuid, "offline")
    stopped = ask(node, "POST", f"/api/servers/{uuid}/commands", {"commands": ["x"]})
    assert stopped.status == 502


def test_servers_outlive_the_node_and_end_with_up(node: System, panel: double.Panel) -> None:
    uuid, gone = started(node, panel), started(node, panel)
    process, ended = pid(node, uuid), pid(node, gone)
    before = node.pids["node"]
    with listening(node, panel, uuid) as socket:
        os.kill(before, signal.SIGKILL)
        os.kill(ended, signal.SIGKILL)  # nobody is there to see it
        node.replaced("node", before)
        assert until(lambda: "servers.crashed" in topics(node, gone), 20), node.said()[-3000:]
        say(socket, "send command", "still there")
        line(socket, "you said still there")
        assert processes.alive(process)
        reaches(node, gone, "running")
        before = node.kill("node", signal.SIGTERM)  # a restart of the node is none of theirs
        node.replaced("node", before)
        assert until(lambda: "memory_bytes" in heard(socket, "stats"))
        assert processes.alive(process)
    os.kill(node.pids["node"], signal.SIGKILL)  # whoever should end them is not there, or begins just now
    node.stop()
    assert not processes.alive(process)
    node.start()
    kept = len(f"{process}\n")
    assert ask(node, "GET", f"/api/servers/{uuid}").json()["utilization"]["disk_bytes"] == kept
    reaches(node, uuid, "running")
    assert processes.alive(pid(node, uuid))
