"""Consumers outside: they read their own tenant's events from NATS, from any position or time on, and nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import nats
import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from nats.errors import TimeoutError as NatsTimeout
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy
from nats.js.client import JetStreamContext

from tests.journeys.system import ADMIN, System

PACKAGES = Path(os.environ.get("UNDRIFT_NODE_PACKAGES", str(Path(__file__).parents[2])))

pytestmark = pytest.mark.usefixtures("history")


@pytest.fixture(scope="module")
def other(system: System) -> str:
    """The token of another tenant's administrator."""
    system.undrift("tenants", "add", "consumers-other")
    return system.key("consumers-other", "admin", tenant="consumers-other")


@pytest.fixture(scope="module")
def history(system: System, other: str) -> None:
    """Something has happened in both tenants."""
    for number in range(3):
        system.sync(system.folder(file=str(number)), system.place())
    for number in range(2):
        body = {"id": f"foreign-{number}", "name": "x", "kind": "files", "config": {}}
        body["config"] = {"sourceDirectory": str(system.folder(file="x")), "targetDirectory": str(system.place())}
        system.ok("POST", "/api/sync/integrations", body, token=other)


def issued(system: System, token: str = ADMIN, **more: Any) -> dict[str, Any]:
    found: dict[str, Any] = system.ok("POST", "/api/v1/feeds/credentials", {"name": "billing", **more}, token=token)
    return found


class Consumer:
    """A connection with a credential; `refused` is what the server said against it."""

    def __init__(self, made: dict[str, Any], client: Client, refused: list[str], closed: asyncio.Event) -> None:
        self.made, self.client, self.refused, self.closed = made, client, refused, closed
        self.id = str(made["user"])
        self.stream: JetStreamContext = client.jetstream(domain=made["domain"], timeout=5)

    async def read(self, many: int, batch: int = 100, **config: Any) -> list[tuple[int, str, bytes]]:
        """Position, subject and data of so many events, by a consumer made for that."""
        wanted = ConsumerConfig(ack_policy=AckPolicy.NONE, **config)
        made = await self.stream.add_consumer("EVENTS", wanted)
        reading = await self.stream.pull_subscribe_bind(made.name, "EVENTS")
        found = list[Msg]()
        while len(found) < many:
            found += await reading.fetch(min(many - len(found), batch), timeout=10)
        await reading.unsubscribe()
        await self.stream.delete_consumer("EVENTS", made.name)
        return [(one.metadata.sequence.stream, one.subject, one.data) for one in found]

    async def ask(self, what: str, body: Any = None, reply: str | None = None) -> Any:
        """What the gate says to a request; with a `reply` of its own nothing is waited for."""
        subject = f"{self.made['apiPrefix']}.{what}"
        data = b"" if body is None else json.dumps(body).encode()
        if reply is not None:
            await self.client.publish(subject, data, reply=reply)
            return None
        return json.loads((await self.client.request(subject, data, timeout=5)).data)

    async def is_refused(self, doing: Any) -> bool:
        self.refused.clear()
        await doing
        for _ in range(2):
            await self.client.flush()
        return any("permissions violation" in text for text in self.refused)


async def is_answered(consumer: Consumer) -> bool:
    try:
        return "error" not in await consumer.ask("INFO")
    except NatsTimeout:
        return False


@asynccontextmanager
async def connected(made: dict[str, Any]) -> AsyncIterator[Consumer]:
    refused: list[str] = []
    closed = asyncio.Event()

    async def keep(error: Exception) -> None:
        refused.append(str(error))

    async def end() -> None:
        closed.set()

    client = await nats.connect(
        made["url"],
        user=made["user"],
        password=made["password"],
        inbox_prefix=made["inboxPrefix"].encode(),
        error_cb=keep,
        disconnected_cb=end,
        allow_reconnect=False,
    )
    try:
        yield Consumer(made, client, refused, closed)
    finally:
        await client.close()


async def is_let_in(made: dict[str, Any], **instead: Any) -> bool:
    """In the protocol's own words: nats-py leaves a connection open that is refused."""
    told = {"user": made["user"], "pass": made["password"]} | instead
    address = urlsplit(made["url"])
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    try:
        await reader.readline()
        writer.write(f"CONNECT {json.dumps({'verbose': False, 'pedantic': False, **told})}\r\nPING\r\n".encode())
        while line := await reader.readline():
            if line.startswith((b"PONG", b"-ERR")):
                return line.startswith(b"PONG")
        return False
    finally:
        writer.close()
        await asyncio.gather(writer.wait_closed(), return_exceptions=True)


async def _ignore(_: object) -> None:
    pass


async def test_it_says_what_a_client_needs(system: System) -> None:
    made = issued(system)
    assert urlsplit(made["url"]).port == urlsplit(system.ready["nats_url"]).port
    assert made["password"] not in json.dumps(system.events())
    assert (made["stream"], made["subjects"]) == ("EVENTS", ["evt.main.>"])
    assert made["user"] == made["domain"] == made["consumerPrefix"] == made["durables"][0]
    listed = system.ok("GET", "/api/v1/feeds/credentials", token=ADMIN)["credentials"]
    assert made["credential"] in listed
    assert system.ok("GET", f"/api/v1/feeds/credentials/{made['user']}", token=ADMIN) == made["credential"]


async def test_the_same_key_shows_the_same_token(system: System) -> None:
    asked = {"name": "again", "topics": ["jobs.*"], "expiresIn": 3600}
    first, second = (
        system.ok("POST", "/api/v1/feeds/credentials", asked, token=ADMIN, headers={"Idempotency-Key": "credential-1"})
        for _ in range(2)
    )
    assert first == second
    assert first["credential"]["expiresAt"] is not None


async def test_the_whole_feed_is_replayed_from_position_one(system: System) -> None:
    events = system.events()
    async with connected(issued(system)) as consumer:
        found = await consumer.read(len(events), deliver_policy=DeliverPolicy.ALL)
    assert [(one["position"], one["type"].split(".")) for one in events] == [
        (position, subject.split(".")[3:]) for position, subject, _ in found
    ]
    assert {subject.split(".")[1] for _, subject, _ in found} == {"main"}


async def test_it_begins_at_a_position_or_a_time(system: System) -> None:
    events = system.events()
    middle = events[len(events) // 2]["position"]
    behind = [one["position"] for one in events if one["position"] >= middle]
    async with connected(issued(system)) as consumer:
        by_position = {"deliver_policy": DeliverPolicy.BY_START_SEQUENCE, "opt_start_seq": middle}
        assert behind == [position for position, _, _ in await consumer.read(len(behind), **by_position)]
        before = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - 3600))
        by_time = {"deliver_policy": DeliverPolicy.BY_START_TIME, "opt_start_time": before}
        assert [events[0]["position"]] == [position for position, _, _ in await consumer.read(1, **by_time)]


async def test_another_tenant_reads_its_own(system: System, other: str) -> None:
    events = system.events(token=other)
    async with connected(issued(system, other)) as consumer:
        found = await consumer.read(len(events))
    assert [one["position"] for one in events] == [position for position, _, _ in found]
    assert {subject.split(".")[1] for _, subject, _ in found} == {"consumers-other"}


async def test_fewer_topics(system: System) -> None:
    wanted = [one["position"] for one in system.events() if one["type"].startswith(("jobs.queued", "keys."))]
    made = issued(system, topics=["jobs.queued", "keys.*", "keys.added"])
    assert made["credential"]["topics"] == ["jobs.queued", "keys.*"]
    async with connected(made) as consumer:
        assert wanted == [position for position, _, _ in await consumer.read(len(wanted))]
        for subject in ("evt.main.>", "evt.main.*.jobs.*", "evt.main.*.jobs.completed"):
            said = await consumer.ask(
                f"CONSUMER.CREATE.EVENTS.{consumer.id}-x",
                {"stream_name": "EVENTS", "config": {"name": f"{consumer.id}-x", "filter_subject": subject}},
            )
            assert said["error"]["code"] == 403


async def test_a_durable_consumer_acknowledges_and_goes_on_where_it_was(system: System) -> None:
    made = issued(system)
    first, second = (one["position"] for one in system.events()[:2])
    for expected in (first, second):
        async with connected(made) as consumer:
            reading = await consumer.stream.pull_subscribe("evt.main.>", durable=consumer.id, stream="EVENTS")
            [message] = await reading.fetch(1, timeout=10)
            assert message.metadata.sequence.stream == expected
            await message.ack_sync(timeout=10)


async def test_what_happens_now_arrives(system: System) -> None:
    made = issued(system, topics=["jobs.completed"])
    async with connected(made) as consumer:
        config = ConsumerConfig(deliver_policy=DeliverPolicy.NEW, ack_policy=AckPolicy.EXPLICIT)
        reading = await consumer.stream.pull_subscribe("", durable=f"{consumer.id}-1", stream="EVENTS", config=config)
        waiting = asyncio.create_task(reading.fetch(1, timeout=30))
        await asyncio.sleep(0.2)
        done = await asyncio.to_thread(system.sync, system.folder(file="x"), system.place())
        [message] = await waiting
        assert done.status == 200
        assert message.headers is not None
        assert message.headers["ce-type"] == "jobs.completed"


WRITES: dict[str, Callable[[str], str]] = {
    "an event": lambda id: "evt.main._.jobs.queued",
    "another tenant's event": lambda id: "evt.consumers-other._.jobs.queued",
    "an ask": lambda id: "ask.files",
    "JetStream itself": lambda id: "$JS.API.CONSUMER.CREATE.EVENTS.x",
    "its own domain by another name": lambda id: f"$JS.nc{'0' * 18}.API.INFO",
    "an acknowledgement of another": lambda id: f"$JS.ACK.EVENTS.nc{'0' * 18}.1.1.1.1.1",
    "an acknowledgement of a name it may not have": lambda id: f"$JS.ACK.EVENTS.{id}-x.1.1.1.1.1",
    "the gate's place": lambda id: f"feeds.in.$JS.{id}.API.INFO",
    "an answer": lambda id: f"feeds.out.{id}.x",
    "an inbox": lambda id: f"_INBOX.nc{'0' * 18}.x",
    "its own inbox": lambda id: f"_INBOX.{id}.x",
    "the server": lambda id: "$SYS.REQ.SERVER.PING",
    "the authoriser": lambda id: "$SYS.REQ.USER.AUTH",
}
HEARS = (">", "evt.>", "evt.main.>", "evt.consumers-other.>", "$JS.>", "$SYS.>", "_INBOX.>", "_INBOX.*.*", "feeds.>")


async def test_it_can_write_nothing(system: System) -> None:
    made = issued(system)
    head = system.head()
    async with connected(made) as consumer:
        for what, subject in WRITES.items():
            assert await consumer.is_refused(consumer.client.publish(subject(consumer.id), b"x")), what
    assert system.head() == head


async def test_it_hears_nothing_but_its_answers(system: System) -> None:
    async with connected(issued(system)) as consumer:
        for subject in (*HEARS, f"_INBOX.nc{'0' * 18}.>"):
            assert await consumer.is_refused(consumer.client.subscribe(subject, cb=_ignore)), subject


REFUSED = (
    "STREAM.CREATE.EVENTS",
    "STREAM.UPDATE.EVENTS",
    "STREAM.DELETE.EVENTS",
    "STREAM.PURGE.EVENTS",
    "STREAM.MSG.GET.EVENTS",
    "STREAM.MSG.DELETE.EVENTS",
    "STREAM.LIST",
    "STREAM.INFO.OTHER",
    "STREAM.SNAPSHOT.EVENTS",
    "DIRECT.GET.EVENTS",
    "DIRECT.GET.EVENTS.evt.consumers-other.>",
    "CONSUMER.LIST.EVENTS",
    "CONSUMER.PAUSE.EVENTS.x",
    "CONSUMER.MSG.NEXT.OTHER.x",
    "META.LEADER.STEPDOWN",
    "SERVER.REMOVE",
)


async def test_it_can_ask_for_nothing_else(system: System) -> None:
    async with connected(issued(system)) as consumer:
        for what in REFUSED:
            assert (await consumer.ask(what, {}))["error"]["code"] == 403, what
        about = await consumer.ask("STREAM.INFO.EVENTS")
        assert about["config"]["subjects"] == ["evt.main.>"]
        assert about["state"]["last_seq"] >= system.events()[-1]["position"]
        assert (about["state"]["consumer_count"], about["state"]["messages"]) == (0, 0)


async def test_consumers_of_others_are_out_of_reach(system: System, other: str) -> None:
    async with connected(issued(system, other)) as victim, connected(issued(system)) as rogue:
        reading = await victim.stream.pull_subscribe("", durable=victim.id, stream="EVENTS")
        for verb in ("INFO", "DELETE", "MSG.NEXT", "CREATE"):
            body = {"stream_name": "EVENTS", "config": {"name": victim.id}} if verb == "CREATE" else {}
            assert (await rogue.ask(f"CONSUMER.{verb}.EVENTS.{victim.id}", body))["error"]["code"] == 403, verb
        assert (await rogue.ask("CONSUMER.NAMES.EVENTS"))["consumers"] == []
        assert (await victim.ask("CONSUMER.NAMES.EVENTS"))["consumers"] == [victim.id]
        [message] = await reading.fetch(1, timeout=10)
        assert message.subject.startswith("evt.consumers-other.")


MISMADE: tuple[dict[str, Any], ...] = (
    {"filter_subject": ">"},
    {"filter_subject": "evt.>"},
    {"filter_subject": "evt.*._.jobs.queued"},
    {"filter_subject": "evt.consumers-other.>"},
    {"filter_subjects": ["evt.main._.jobs.*", "evt.consumers-other._.jobs.*"]},
    {"filter_subject": "$JS.>"},
    {"deliver_subject": "ask.files"},
    {"deliver_subject": "evt.main._.jobs.queued"},
    {"deliver_subject": "_INBOX.x", "flow_control": True, "idle_heartbeat": 1},
    {"deliver_group": "x"},
    {"ack_policy": "explicit"},
    {"durable_name": "x"},
    {"priority_groups": ["x"]},
    {"num_replicas": 3},
    {"unheard_of": 1},
)


@pytest.mark.parametrize("wrong", MISMADE, ids=lambda wrong: next(iter(wrong)))
async def test_a_consumer_that_could_do_more_is_not_made(system: System, wrong: dict[str, Any]) -> None:
    async with connected(issued(system)) as rogue:
        name = f"{rogue.id}-wrong"
        for what in (
            f"CONSUMER.CREATE.EVENTS.{name}",
            "CONSUMER.CREATE.EVENTS",
            f"CONSUMER.DURABLE.CREATE.EVENTS.{name}",
        ):
            said = await rogue.ask(what, {"stream_name": "EVENTS", "config": {"name": name, **wrong}})
            assert said["error"]["code"] in (400, 403), what
        assert (await rogue.ask("CONSUMER.NAMES.EVENTS"))["consumers"] == []


async def test_answers_go_to_its_own_inboxes_alone(system: System, other: str) -> None:
    """Whoever asks says where the answer goes."""
    made_there, made_here = issued(system, other), issued(system)
    head = system.head()
    async with connected(made_there) as victim, connected(made_here) as rogue:
        heard: list[str] = []

        async def hear(message: Any) -> None:
            heard.append(message.subject)

        await victim.client.subscribe(f"{victim.made['inboxPrefix']}.>", cb=hear)
        made = await rogue.stream.add_consumer("EVENTS", ConsumerConfig(durable_name=rogue.id))
        places = [f"{victim.made['inboxPrefix']}.x.y", "evt.main._.jobs.forged", "ask.files"]
        places += [f"feeds.out.{victim.id}.x", f"_INBOX.{rogue.id}.>", "_INBOX.>"]
        places += [f"$JS.{victim.id}.API.CONSUMER.DELETE.EVENTS.{victim.id}"]
        for place in places:
            await rogue.ask("INFO", reply=place)
            await rogue.ask(f"CONSUMER.MSG.NEXT.EVENTS.{made.name}", {"batch": 5}, reply=place)
            await rogue.client.publish(f"$JS.ACK.EVENTS.{rogue.id}.1.1.1.1.1", b"+NXT", reply=place)
        await rogue.client.flush()
        await asyncio.sleep(0.5)
        assert (heard, rogue.refused) == ([], [])
        assert (await rogue.stream.consumer_info("EVENTS", made.name)).delivered.stream_seq == 0
    assert system.head() == head


async def test_one_credential_has_so_many_consumers(system: System) -> None:
    async with connected(issued(system)) as consumer:
        said = [
            await consumer.ask("CONSUMER.CREATE.EVENTS", {"stream_name": "EVENTS", "config": {}}) for _ in range(33)
        ]
        assert ["error" in one for one in said] == [False] * 32 + [True]
        assert said[-1]["error"]["code"] == 429


async def test_only_the_right_password_opens(system: System, other: str) -> None:
    made, foreign = issued(system), issued(system, other)
    assert await is_let_in(made)
    for instead in (
        {"pass": foreign["password"]},
        {"user": foreign["user"]},
        {"user": f"nc{'0' * 18}"},
        {"pass": made["password"] + "x"},
        {"pass": system.ready["admin_token"]},
        {"user": "core"},
        {"user": "system"},
        {"user": ""},
    ):
        assert not await is_let_in(made, **instead), instead


async def test_what_is_revoked_ends_within_seconds(system: System) -> None:
    made = issued(system)
    async with connected(made) as consumer, connected(issued(system)) as bystander:
        await consumer.stream.add_consumer("EVENTS", ConsumerConfig(durable_name=consumer.id))
        for _ in range(2):
            done = system.call("DELETE", f"/api/v1/feeds/credentials/{made['user']}", token=ADMIN)
            assert done.status == 204
        async with asyncio.timeout(30):
            await consumer.closed.wait()
        assert not await is_let_in(made)
        shown = system.ok("GET", f"/api/v1/feeds/credentials/{made['user']}", token=ADMIN)
        assert shown["revokedAt"] is not None
        await bystander.ask("INFO")
        assert not bystander.closed.is_set()
    manager = await nats.connect(system.ready["nats_url"])
    names = await manager.jetstream().consumers_info("EVENTS")
    await manager.close()
    assert [one for one in names if one.name.startswith(made["user"])] == []


async def test_what_is_over_ends(system: System) -> None:
    made = issued(system, expiresIn=2)
    async with connected(made) as consumer:
        await consumer.ask("INFO")
        async with asyncio.timeout(30):
            await consumer.closed.wait()
    assert not await is_let_in(made)


async def test_whoever_asks_for_one_thing_after_the_other_is_never_sent_away(system: System) -> None:
    """However fast it is: what it may not have now, it waits for."""
    async with connected(issued(system)) as consumer:
        async with asyncio.timeout(60):
            for _ in range(60):
                answers = [consumer.ask("INFO") for _ in range(50)]
                assert not any("error" in one for one in await asyncio.gather(*answers))
        assert not consumer.closed.is_set()


async def test_whoever_asks_too_much_is_sent_away(system: System) -> None:
    made = issued(system)
    async with connected(made) as rogue, connected(issued(system)) as bystander:
        subject, reply = f"{rogue.made['apiPrefix']}.INFO", f"{rogue.made['inboxPrefix']}.x"
        async with asyncio.timeout(60):
            with contextlib.suppress(NatsError, OSError):  # as it is sent away
                while not rogue.closed.is_set():
                    for _ in range(500):
                        await rogue.client.publish(subject, b"", reply=reply)
                    await rogue.client.flush(timeout=2)
            await rogue.closed.wait()
        assert not await is_let_in(made)
        async with asyncio.timeout(30):
            while not await is_answered(bystander):  # what stood behind the flood is given up
                pass
        assert not bystander.closed.is_set()


async def test_nobody_comes_in_while_core_is_away_but_ours_do(system: System) -> None:
    made = issued(system)
    with system.paused("core"):
        assert not await is_let_in(made)
        await (await nats.connect(system.ready["nats_url"])).close()
    assert await is_let_in(made)


async def test_the_published_client_for_node_replays_and_is_refused_the_rest(
    system: System, other: str, tmp_path: Path
) -> None:
    node = shutil.which("node")
    if node is None or not (PACKAGES / "node_modules" / "@nats-io" / "jetstream").is_dir():
        packages = "@nats-io/transport-node @nats-io/jetstream"
        pytest.skip(f"not installed: npm install {packages}, and UNDRIFT_NODE_PACKAGES names where")
    made, theirs = issued(system), issued(system, other)
    async with connected(theirs) as victim:
        await victim.stream.add_consumer("EVENTS", ConsumerConfig(durable_name=victim.id))
    made["foreign"] = {
        "publish": [subject(made["user"]) for subject in WRITES.values()],
        "subscribe": ["evt.consumers-other.>", *HEARS],
        "consumer": theirs["user"],
    }
    file = tmp_path / "credential.json"
    file.write_text(json.dumps(made))
    events = system.events()
    middle = events[len(events) // 2]["position"]
    script = Path(__file__).parents[1] / "doubles" / "consumer.mjs"
    command: list[str | Path] = [node, script, PACKAGES, file, str(middle), "2020-01-01T00:00:00Z", str(len(events))]
    ran = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    found = json.loads(ran.stdout)
    assert [[one["position"], one["type"]] for one in events] == [[seq, type] for seq, _, type in found["whole"]]
    assert (found["since"], found["behind"][0][0]) == (found["whole"], middle)
    assert found["halves"] == [one["position"] for one in events[:4]]
    assert found["admitted"] == []


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({}, 400),
        ({"name": ""}, 400),
        ({"name": "x", "topics": ["jobs.unheard_of"]}, 400),
        ({"name": "x", "topics": ["evt.>"]}, 400),
        ({"name": "x", "topics": [">"]}, 400),
        ({"name": "x", "topics": ["jobs.*.>"]}, 400),
        ({"name": "x", "topics": "jobs.*"}, 400),
        ({"name": "x", "expiresIn": 0}, 400),
        ({"name": "x", "expiresIn": -5}, 400),
        ({"name": "x", "tenant": "consumers-other"}, 404),
        ({"name": "x", "tenant": "nobody"}, 404),
    ],
)
def test_bad_requests(system: System, body: Any, status: int) -> None:
    assert system.post("/api/v1/feeds/credentials", body, token=ADMIN).status == status


def test_foreign_is_unknown(system: System, other: str) -> None:
    made = issued(system)
    for method in ("GET", "DELETE"):
        answers = [
            system.call(method, f"/api/v1/feeds/credentials/{id}", token=other) for id in (made["user"], "nc-unknown")
        ]
        assert [one.status for one in answers] == [404, 404]
        assert answers[0].json()["message"] == answers[1].json()["message"]
    reader = system.key("consumers-reader", "feeds:read")
    assert system.post("/api/v1/feeds/credentials", {"name": "x"}, token=reader).status == 403
