"""Servers in containers: against a double of the Docker Engine, and the same against a real one where one answers."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from msgspec import structs

from domain import errors
from domain.server_config import Address, Allocations, Limits, Mount, Stop
from infra.runtimes import Launch, docker_spec
from infra.runtimes.docker import Docker
from infra.runtimes.docker_api import Engine as Client
from infra.runtimes.docker_api import Machine
from infra.runtimes.docker_console import LINE, Following, Place
from infra.runtimes.docker_container import signal_of
from tests.doubles.engine import Engine
from tests.doubles.engine_rules import MIB, Refusal
from tests.infra import engines
from tests.infra.engines import IMAGE, UUID, inspect, launch, limits, lines, runtime, settings

#: Says that it is there, then repeats its input, and ends when told to stop.
GAME = 'echo ready; while read line; do echo "got $line"; [ "$line" = stop ] && exit 4; done'
CAPABILITIES = "setpcap mknod audit_write net_raw dac_override fowner fsetid net_bind_service sys_chroot setfcap"
SLEEPS = "echo ready; while :; do sleep 0.05; done"


@pytest.fixture(scope="module", params=["double", "real"])
def socket(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("engine")
    if request.param == "real":
        with engines.real(folder) as path:
            yield path
    else:
        with engines.double(folder) as engine:
            yield engine.socket


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    """A double of its own, for what a real one is not put through."""
    with engines.double(tmp_path) as made:
        yield made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "files"
    made.mkdir()
    made.chmod(0o777)
    return made


@pytest.fixture
async def docker(socket: str, tmp_path: Path) -> AsyncIterator[Docker]:
    async with runtime(socket, tmp_path / "data", stop_s=5.0) as made:
        yield made
    await engines.sweep(socket)


# With any engine.


async def test_a_server_runs_in_its_folder_with_its_environment(docker: Docker, folder: Path) -> None:
    (folder / "here").write_text("the file\n")
    script = 'cat here; echo "{{SECOND}} after $FIRST"; echo "ip $SERVER_IP"; exit 3'
    running = await docker.start(launch(folder, script, environment={"FIRST": "one", "SECOND": "two words"}))
    said = await lines(running, "ip ")
    assert said == ["the file", "two words after one", f"ip {await docker.interface()}"]
    assert await running.ended() == 3
    assert [line.decode() for line in await running.recent(2)] == said[-2:]
    assert await running.recent(10) == [line.encode() for line in said]


async def test_its_console_is_heard_and_spoken_to_until_it_ends_as_told(docker: Docker, folder: Path) -> None:
    running = await docker.start(launch(folder, GAME))
    assert await lines(running, "ready") == ["ready"]
    for word in ("one", "zwei €"):
        await running.say(word)
        assert (await lines(running, "got"))[-1] == f"got {word}"
    await running.stop(Stop("command", "stop"))
    assert await running.ended() == 4
    rest = [line.decode() async for line in running.output()]
    assert rest[-1] == "got stop"
    await running.say("nobody hears that")
    await running.kill()
    await running.limit(limits(80))


async def test_it_is_ended_by_a_signal_by_the_engine_and_by_force(docker: Docker, folder: Path) -> None:
    ask = f"trap 'echo asked; exit 7' INT TERM; {SLEEPS}"
    for how in (Stop("signal", "SIGINT"), Stop("stop", None)):
        running = await docker.start(launch(folder, ask))
        await lines(running, "ready")
        await running.stop(how)
        assert await running.ended() == 7
        assert [line async for line in running.output()] == [b"asked"]
    running = await docker.start(launch(folder, f"trap 'echo no' INT TERM; {SLEEPS}"))
    await lines(running, "ready")
    await running.kill()
    assert await running.ended() == -9


async def test_who_does_not_stop_is_killed_and_nobody_waits_for_it(socket: str, tmp_path: Path, folder: Path) -> None:
    async with runtime(socket, tmp_path / "data", stop_s=2.0) as docker:
        running = await docker.start(launch(folder, f"trap 'echo no' TERM; {SLEEPS}"))
        await lines(running, "ready")
        ended = asyncio.create_task(running.ended())
        await running.stop(Stop("stop", None))
        assert not ended.done()
        assert await ended == -9
    await engines.sweep(socket)


async def test_limits_change_in_place(docker: Docker, socket: str, folder: Path) -> None:
    running = await docker.start(launch(folder, GAME))
    made = (await inspect(socket, UUID))["HostConfig"]
    assert (made["Memory"], made["MemoryReservation"], made["PidsLimit"]) == (73_600_000, 64_000_000, 512)
    try:
        await running.limit(limits(128, swap=64, cpu=50, threads="0"))
    except errors.SyncFailed as error:
        pytest.skip(f"this engine cannot: {error}")
    now = (await inspect(socket, UUID))["HostConfig"]
    assert (now["Memory"], now["MemorySwap"], now["MemoryReservation"]) == (147_200_000, 211_200_000, 128_000_000)
    assert (now["CpuQuota"], now["CpuPeriod"], now["CpusetCpus"]) == (50_000, 100_000, "0")
    assert running.identity.pid == (await inspect(socket, UUID))["State"]["Pid"]
    await running.kill()


async def test_what_runs_is_adopted_and_what_has_ended_is_told_once(socket: str, tmp_path: Path, folder: Path) -> None:
    data = tmp_path / "data"
    async with runtime(socket, data) as first:
        before = await first.start(launch(folder, GAME))
        assert await lines(before, "ready") == ["ready"]
        identity = before.identity
    async with runtime(socket, data) as second:
        adopted = (await second.adopt())[UUID]
        assert adopted.identity == identity
        await adopted.say("hello")
        assert "ready" not in (heard := await lines(adopted, "got hello"))
        assert heard[-1] == "got hello"
        with pytest.raises(errors.SyncFailed, match="runs"):
            await second.start(launch(folder, GAME))
        with pytest.raises(errors.SyncFailed, match="runs"):
            await second.remove(UUID)
        await adopted.say("stop")
        for _ in range(200):
            if not (await inspect(socket, UUID))["State"]["Running"]:
                break
            await asyncio.sleep(0.02)
    async with runtime(socket, data) as third:
        ended = (await third.adopt())[UUID]
        assert await ended.ended() == 4
        assert [line async for line in ended.output()][-1] == b"got stop"
        assert await third.adopt() == {}
    async with runtime(socket, data) as fourth:
        assert await fourth.adopt() == {}
        await fourth.remove(UUID)
        await fourth.remove(UUID)
        assert await inspect(socket, UUID) == {}
    async with runtime(socket, tmp_path / "other") as other:
        assert await other.adopt() == {}


async def test_a_start_makes_the_container_anew(docker: Docker, socket: str, folder: Path) -> None:
    ids = set()
    for value in ("old", "new"):
        running = await docker.start(launch(folder, 'echo "is $WHAT"', environment={"WHAT": value}))
        assert await lines(running, "is") == [f"is {value}"]
        assert await running.ended() == 0
        ids.add((await inspect(socket, UUID))["Id"])
    assert len(ids) == 2


async def test_what_it_uses(docker: Docker, folder: Path) -> None:
    running = await docker.start(launch(folder, "echo ready; while :; do :; done"))
    await lines(running, "ready")
    first = await running.usage()
    if not first.memory_bytes:
        pytest.skip("this engine has no statistics here")
    assert first.cpu_absolute == 0.0
    await asyncio.sleep(0.3)
    second = await running.usage()
    assert second.uptime_ms > first.uptime_ms >= 0
    assert 0 < second.cpu_absolute <= 250  # of two cores: podman counts the time of one
    assert 0 < second.memory_bytes < 64 * MIB
    await running.kill()
    await running.ended()
    assert (await running.usage()).memory_bytes == 0


# With the double: what it is told, and its troubles.


async def test_the_container_is_made_as_the_real_wings_does(engine: Engine, tmp_path: Path, folder: Path) -> None:
    mounted = tmp_path / "maps"
    mounted.mkdir()
    wanted = Launch(
        uuid=UUID,
        folder=str(folder),
        image=IMAGE,
        invocation="echo {{WORD}}",
        environment={"TZ": "UTC", "STARTUP": "echo {{WORD}}", "SERVER_IP": "127.0.0.1", "WORD": "hi"},
        limits=limits(1024, swap=-1, cpu=0, threads="0-1,3"),
        mounts=(Mount(str(mounted), "/data", True),),
        allocations=Allocations(
            True, Address("10.0.0.9", 25565), {"127.0.0.1": (25565,), "10.0.0.9": (25565, 0, 70_000)}
        ),
        labels={"mine": "yes", docker_spec.INSTALLATION: "forged"},
        oom_disabled=True,
    )
    async with runtime(engine.socket, tmp_path / "data", user="123:456", pids=77) as docker:
        running = await docker.start(wanted)
        await running.ended()
        installation = (tmp_path / "data" / "containers" / "installation").read_text().strip()
    made = engine.named(UUID)
    assert made.config.pop("User") == ("123:456" if os.geteuid() == 0 else f"{os.geteuid()}:{os.getegid()}")
    inside, outside = {"HostIp": "172.18.0.1", "HostPort": "25565"}, {"HostIp": "10.0.0.9", "HostPort": "25565"}
    assert made.config == {
        "Hostname": UUID,
        "AttachStdin": True,
        "AttachStdout": True,
        "AttachStderr": True,
        "OpenStdin": True,
        "Tty": True,
        "ExposedPorts": {"25565/tcp": {}, "25565/udp": {}},
        "Image": IMAGE,
        "Env": ["TZ=UTC", "STARTUP=echo {{WORD}}", "SERVER_IP=172.18.0.1", "WORD=hi"],
        "Labels": {
            "mine": "yes",
            "Service": "Undrift",
            "ContainerType": "server_process",
            "undrift.installation": installation,
            "undrift.server": UUID,
        },
    }
    assert made.host == {
        "Memory": 1_177_600_000,
        "MemoryReservation": 1_024_000_000,
        "MemorySwap": -1,
        "CpuQuota": -1,
        "CpuPeriod": 100_000,
        "CpuShares": 1024,
        "CpusetCpus": "0-1,3",
        "BlkioWeight": 500,
        "PidsLimit": 77,
        "OomKillDisable": True,
        "PortBindings": {"25565/tcp": [inside, outside], "25565/udp": [inside, outside]},
        "Mounts": [
            {"Type": "bind", "Source": str(folder), "Target": "/home/container", "ReadOnly": False},
            {"Type": "bind", "Source": str(mounted), "Target": "/data", "ReadOnly": True},
        ],
        "Tmpfs": {"/tmp": "rw,exec,nosuid,size=100M"},
        "LogConfig": {"Type": "json-file", "Config": {"max-size": "5m", "max-file": "1"}},
        "SecurityOpt": ["no-new-privileges"],
        "ReadonlyRootfs": True,
        "CapDrop": CAPABILITIES.split(),
        "NetworkMode": "ip-10-0-0-9",
    }
    assert engine.networks["ip-10-0-0-9"]["Options"] == {"com.docker.network.host_ipv4": "10.0.0.9"}


async def test_limits_are_lifted_in_place(engine: Engine, tmp_path: Path, folder: Path) -> None:
    async with runtime(engine.socket, tmp_path / "data") as docker:
        running = await docker.start(launch(folder, GAME, limits=limits(64, cpu=50, threads="1")))
        await running.limit(limits(0, swap=0, cpu=0))
        now = dict(engine.named(UUID).host)
        engine.named(UUID).host["MemorySwap"] = 10 * MIB
        with pytest.raises(errors.SyncFailed, match="Memory limit should be smaller than already set memoryswap"):
            await running.limit(structs.replace(limits(64), memory_swap=0))
    assert (now["Memory"], now["MemorySwap"], now["CpuQuota"], now["CpusetCpus"]) == (8192 * MIB, -1, -1, "0-3")


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"memory_swap": 1_000_000}, "Minimum memoryswap limit should be larger than memory limit, see usage"),
        ({"memory": 1_000_000}, "Minimum memory limit allowed is 6MB"),
        ({"memory": 10_000_000, "memory_swap": -1}, "can not be less than memory reservation limit"),
        ({"cpuset": "0-64"}, "Requested CPUs are not available - requested 0-64, available: 0-3"),
        ({"cpuset": "x"}, "Invalid value x for cpuset cpus"),
        ({"cpu_quota": 500}, "CPU cfs quota can not be less than 1ms"),
        ({"io_weight": 5}, "Range of blkio weight is from 10 to 1000"),
    ],
)
async def test_absurd_limits_are_refused_in_the_engines_words(
    engine: Engine, tmp_path: Path, folder: Path, changed: dict[str, int | str], said: str
) -> None:
    known = {name: getattr(limits(), name) for name in Limits.__struct_fields__}
    absurd = Limits(**{**known, **changed})
    async with runtime(engine.socket, tmp_path / "data") as docker:
        running = await docker.start(launch(folder, GAME))
        before = dict(engine.named(UUID).host)
        with pytest.raises(errors.SyncFailed, match=said):
            await running.limit(absurd)
        assert engine.named(UUID).host == before
        await running.kill()
        await running.ended()
        with pytest.raises(errors.SyncFailed, match=said):
            await docker.start(launch(folder, GAME, limits=absurd))


async def test_a_missing_image_is_pulled_and_its_progress_is_on_the_console(
    engine: Engine, tmp_path: Path, folder: Path
) -> None:
    engine.registry |= {"ghcr.io/x/game:latest", "ghcr.io/x/game:2", "ghcr.io/x/broken:latest"}
    async with runtime(engine.socket, tmp_path / "data") as docker:
        running = await docker.start(launch(folder, "echo up", image="ghcr.io/x/game:2"))
        pulled = ["latest: Pulling from ghcr.io/x/game:2", "8d3f: Downloading [=>  ]", "8d3f: Pull complete"]
        assert await lines(running, "up") == [*pulled, "up"]
        await running.ended()
        running = await docker.start(launch(folder, "echo up", image="ghcr.io/x/game:2"))
        assert await lines(running, "up") == ["up"]
        await running.ended()
        for image, why in (
            ("ghcr.io/x/broken", "ghcr.io/x/broken could not be pulled: unexpected EOF"),
            ("nobody/has-it", "pull access denied for nobody/has-it"),
            ("~here", "here is to be of this machine and is not here"),
            ("../containers/x", "not one of an image"),
            ("", "not one of an image"),
        ):
            with pytest.raises(errors.SyncFailed, match=why):
                await docker.start(launch(folder, "echo up", image=image))
    told: list[tuple[str, bytes]] = []
    heard = Docker(settings(engine.socket, tmp_path / "data"), heard=lambda uuid, line: told.append((uuid, line)))
    running = await heard.start(launch(folder, "echo up", image="ghcr.io/x/game"))
    assert await lines(running, "up") == ["up"]
    assert told[0] == (UUID, b"latest: Pulling from ghcr.io/x/game")
    await heard.close()


async def test_an_engine_that_restarts_loses_no_line_and_doubles_none(
    engine: Engine, tmp_path: Path, folder: Path
) -> None:
    script = "i=0; while [ $i -lt 400 ]; do echo line $i; i=$((i+1)); [ $((i % 4)) = 0 ] && sleep 0.01; done; exit 5"
    async with runtime(engine.socket, tmp_path / "data") as docker:
        running = await docker.start(launch(folder, script))
        ended = asyncio.create_task(running.ended())
        found: list[str] = []
        async for line in running.output():
            found.append(line.decode())
            if len(found) in (50, 170):
                await asyncio.to_thread(engine.away)
                with pytest.raises(errors.Unavailable):
                    await running.usage()
                await asyncio.to_thread(engine.back)
        assert found == [f"line {number}" for number in range(400)]
        assert await ended == 5


async def test_an_engine_that_is_wrong_about_an_end_is_not_believed(
    engine: Engine, tmp_path: Path, folder: Path
) -> None:
    async with runtime(engine.socket, tmp_path / "data") as docker:
        running = await docker.start(launch(folder, GAME))
        engine.hasty = True
        ended = asyncio.create_task(running.ended())
        while ("POST", f"/containers/{engine.named(UUID).id}/wait") not in engine.asked:
            await asyncio.sleep(0.01)
        await running.say("one")
        assert (await lines(running, "got one"))[-1] == "got one"
        engine.trouble = lambda method, path: Refusal(500, "busy") if path.endswith("/wait") else None
        await running.say("stop")
        assert [line async for line in running.output()][-1] == b"got stop"
        assert not ended.done()
        engine.trouble = lambda method, path: None
        assert await ended == 4


async def test_what_was_started_as_the_engine_went_away_is_found_at_the_next_start(
    engine: Engine, tmp_path: Path, folder: Path
) -> None:
    async with runtime(engine.socket, tmp_path / "data") as docker:

        def lost(method: str, path: str) -> Refusal | None:
            if not path.endswith("/json") or not any(asked[1].endswith("/start") for asked in engine.asked):
                return None
            raise ConnectionResetError

        engine.trouble = lost
        with pytest.raises(errors.Unavailable):
            await docker.start(launch(folder, GAME))
        engine.trouble = lambda method, path: None
        running = await docker.start(launch(folder, GAME))
        assert running.identity.pid == (await inspect(engine.socket, UUID))["State"]["Pid"]
        assert await lines(running, "ready") == ["ready"]
        await running.say("stop")
        assert [line async for line in running.output()][-1] == b"got stop"
        assert await running.ended() == 4
        await docker.start(launch(folder, GAME))
        with pytest.raises(errors.SyncFailed, match="runs"):
            await docker.start(launch(folder, GAME))


async def test_input_is_heard_after_the_engines_restart(engine: Engine, tmp_path: Path, folder: Path) -> None:
    async with runtime(engine.socket, tmp_path / "data") as docker:
        running = await docker.start(launch(folder, GAME))
        await running.say("one")
        await lines(running, "got one")
        await asyncio.to_thread(engine.away)
        with pytest.raises(errors.Unavailable):
            await running.say("two")
        await asyncio.to_thread(engine.back)
        await running.say("three")
        assert "got three" in await lines(running, "got three")


async def test_without_an_engine_nothing_can_be_done_at_present(tmp_path: Path, folder: Path) -> None:
    async with runtime(str(tmp_path / "none.sock"), tmp_path / "data") as docker:
        for call in (docker.start(launch(folder, GAME)), docker.adopt(), docker.remove(UUID)):
            with pytest.raises(errors.Unavailable, match=r"does not answer at .*none\.sock"):
                await call


async def test_secrets_are_in_no_error(engine: Engine, tmp_path: Path, folder: Path) -> None:
    async with runtime(engine.socket, tmp_path / "data") as docker:
        with pytest.raises(errors.SyncFailed, match="invalid environment variable") as raised:
            await docker.start(launch(folder, GAME, environment={"": "hunter2-and-more"}))
        assert "hunter2" not in str(raised.value)
        assert raised.value.__cause__ is None
        assert engine.containers == {}


async def test_what_cannot_start_leaves_nothing_and_says_why(engine: Engine, tmp_path: Path, folder: Path) -> None:
    mapped = Allocations(False, None, {"10.0.0.9": (25565,)})
    other = "11111111-5c7b-4f1e-9d2a-6e8f1c3b5a7d"
    async with runtime(engine.socket, tmp_path / "data") as docker:
        await docker.start(launch(folder, GAME, allocations=mapped))
        with pytest.raises(errors.SyncFailed, match=r"Bind for 10\.0\.0\.9:25565 failed: port is already allocated"):
            await docker.start(launch(folder, GAME, uuid=other, allocations=mapped))
        assert [one.name for one in engine.containers.values()] == [UUID]
        with pytest.raises(errors.SyncFailed, match="bind source path does not exist"):
            await docker.start(launch(tmp_path / "nowhere", GAME, uuid=other))


async def test_containers_of_somebody_else_are_left_alone(engine: Engine, tmp_path: Path, folder: Path) -> None:
    async with runtime(engine.socket, tmp_path / "one") as one:
        running = await one.start(launch(folder, "exit 0"))
        await running.ended()
    async with runtime(engine.socket, tmp_path / "other") as other:
        for call in (other.start(launch(folder, "exit 0")), other.remove(UUID)):
            with pytest.raises(errors.SyncFailed, match="belongs to somebody else"):
                await call
    assert engine.named(UUID).status == "exited"


async def test_a_container_made_and_never_started_is_swept(engine: Engine, tmp_path: Path, folder: Path) -> None:
    async with runtime(engine.socket, tmp_path / "data") as docker:
        engine.trouble = lambda method, path: Refusal(500, "disk full") if path.endswith("/start") else None
        with pytest.raises(errors.SyncFailed, match="disk full"):
            await docker.start(launch(folder, GAME))
        assert engine.containers == {}
        engine.trouble = lambda method, path: (
            Refusal(500, "no") if path.endswith("/start") or method == "DELETE" else None
        )
        with pytest.raises(errors.SyncFailed):
            await docker.start(launch(folder, GAME))
        engine.trouble = lambda method, path: None
        assert engine.named(UUID).status == "created"
        assert await docker.adopt() == {}
        assert engine.containers == {}


async def test_a_container_that_somebody_removes_has_ended_and_nobody_knows_how(
    engine: Engine, tmp_path: Path, folder: Path
) -> None:
    async with runtime(engine.socket, tmp_path / "data") as docker:
        running = await docker.start(launch(folder, GAME))
        one = engine.named(UUID)
        del engine.containers[one.id]
        assert await running.ended() is None
        assert [line async for line in running.output()] == []
        await running.say("x")
        await running.kill()
        await running.limit(limits(80))
        await running.stop(Stop("stop", None))
        assert await running.recent(5) == []
        engine.containers[one.id] = one


@pytest.mark.parametrize(
    ("api", "oldest", "said"),
    [("1.40", "1.24", "too old: its API is 1.40"), ("1.60", "1.55", "too new"), ("x", "1.24", "no Docker Engine")],
)
async def test_an_engine_too_old_or_too_new_is_said_to_be(tmp_path: Path, api: str, oldest: str, said: str) -> None:
    with Engine(tmp_path, api, oldest) as engine:
        async with runtime(engine.socket, tmp_path / "data") as docker:
            with pytest.raises(errors.SyncFailed, match=said):
                await docker.adopt()


@pytest.mark.parametrize(("api", "used"), [("1.41", "1.41"), ("1.52", "1.47")])
async def test_the_newest_version_that_both_know_is_spoken(tmp_path: Path, api: str, used: str) -> None:
    with Engine(tmp_path, api, "1.40") as engine:
        client = Client(engine.socket)
        assert await client.machine() == Machine(8192 * MIB, 4, True)
        assert client._version == used
        await client.close()


# What it is made of.


def _fed(data: bytes, size: int, place: Place = Place()) -> tuple[list[bytes], Following]:
    following = Following(place)
    found = [line for at in range(0, len(data), size) for line in following.feed(data[at : at + size])]
    return found, following


@pytest.mark.parametrize("size", [1, 7, 31, 100_000])
def test_a_log_is_cut_into_lines(size: int) -> None:
    first, second = b"2026-11-21T07:42:17.000000001Z ", b"2026-11-21T07:42:17.000000002Z "
    long = b"x" * LINE
    data = first + b"a\r\n" + first + b"\r\n" + second + long + second + b"rest\n" + second + long + second + b"\r\n"
    found, following = _fed(data, size)
    assert found == [b"a", b"", long, b"rest", long]
    at = following.place.at
    assert (at % 10**9, following.place.lines) == (2, 3)
    assert list(Following(Place(at, 1)).feed(data)) == [b"rest", long]


def test_the_stamp_of_a_lines_end_is_none_of_the_line() -> None:
    found, _ = _fed(
        b"2026-11-21T08:34:43Z line2026-11-21T08:34:43Z \r\n2026-11-21T08:34:44Z at 2026-11-21T08:34:43Z\n", 9
    )
    assert found == [b"line", b"at 2026-11-21T08:34:43Z"]


def test_a_zone_and_a_short_fraction_are_read() -> None:
    _, one = _fed(b"2026-11-21T09:42:17.5+02:00 a\n", 3)
    _, other = _fed(b"2026-11-21T07:42:17.500000000Z a\n", 3)
    assert one.place == other.place
    assert other.place.since == "1795246937.500000000"


@pytest.mark.parametrize(
    ("value", "name"),
    [("SIGINT", "SIGINT"), ("^C", "SIGINT"), ("c", "SIGINT"), ("term", "SIGTERM"), ("", "SIGKILL"), (None, "SIGKILL")],
)
def test_signals_by_their_names(value: str | None, name: str) -> None:
    assert signal_of(value) == name
