"""A person is erased: their key is gone, nothing of theirs opens or shows anything, and all the rest goes on."""

from __future__ import annotations

import asyncio
import json
import subprocess
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import pytest
from msgspec.structs import replace

from infra.blobs import Blobs
from infra.bus import Bus
from infra.erasures import Erasures
from services import cli_data
from services.cli_common import Instance
from services.erasing import Eraser, Report
from tests.journeys import libraries
from tests.journeys.canaries import Canary, erase, somebody
from tests.journeys.libraries import created
from tests.journeys.sse import follow
from tests.journeys.system import ADMIN, UNDRIFT, System, until

SHARED = b"a picture that somebody else has, too"


@pytest.fixture(scope="module")
def canary(system: System) -> Canary:
    canary = Canary(system)
    canary.live(SHARED)
    return canary


def test_nobody_is_erased_by_looking(system: System, canary: Canary) -> None:
    said = erase(system, canary.words["zelda"].upper())
    assert said.returncode == 0, said.stderr
    answer = json.loads(said.stdout)
    assert (answer["id"], answer["erased"]) == (canary.user.id, None)
    found = answer["found"]
    assert (found["devices"], found["uploads"], found["sessions"]) == (2, 2, 1)
    assert found["blobs"] >= 4
    assert canary.user.call("GET", "/api/v1/auth/me").status == 200
    assert not (system.directory / "secrets" / "erased.list").exists()


def test_who_is_not_there_is_not_erased(system: System) -> None:
    for arguments in (["nobody-of-that-name", "--yes"], ["admin", "--tenant", "other", "--yes"]):
        said = erase(system, *arguments)
        assert said.returncode == 1, said
        assert json.loads(said.stdout)["code"] == "not_found"


def test_nothing_of_an_erased_person_is_left(system: System, canary: Canary) -> None:
    other = somebody(system)
    device = other.device()
    device.upload("mine", SHARED)
    before = canary.found()
    assert {"zelda", "laptop", "folder", "diary"} <= before["dump"] & before["nats"], before
    assert {"content"} <= before["blobs"], before
    assert "upload" in before["uploads"], before
    assert before.keys() == {"dump", "nats", "blobs", "uploads"}, before

    said = erase(system, canary.user.id, "--yes")
    assert said.returncode == 0, said
    answer = json.loads(said.stdout)["erased"]
    assert answer["complete"]
    assert answer["messages"] >= 8

    assert canary.found() == {}
    assert canary.user.call("GET", "/api/v1/auth/me").status == 401
    for gone in (canary.laptop, canary.phone):
        assert gone.call("GET", "/api/v1/sync/changes").status == 401
    assert libraries.login(system, canary.words["zelda"]).status == 401
    assert device.download("mine").body == SHARED
    assert system.undrift("doctor")["well"]

    said = erase(system, canary.user.id, "--yes")
    assert (said.returncode, json.loads(said.stdout)["erased"]["position"]) == (0, answer["position"])
    assert system.undrift("doctor")["well"]


def test_the_log_goes_on_and_is_read_as_erased(system: System, canary: Canary) -> None:
    erase(system, canary.user.id, "--yes")
    mine = system.sql("select pos from undrift.events where metadata::jsonb ->> 'owner' = %s", canary.user.id)
    events = [one for one in system.events() if (one["position"],) in mine]
    assert {"accounts.erased", "devices.deleted", "library.created", "uploads.expired"} <= {
        one["type"] for one in events
    }
    assert {one["data"]["path"] for one in events if "path" in one["data"]} == {"erased"}
    assert {one["data"]["name"] for one in events if one["type"] == "devices.registered"} == {"erased"}


def test_a_rebuild_brings_nothing_back(system: System, canary: Canary) -> None:
    erase(system, canary.user.id, "--yes")
    system.undrift("rebuild", "library", "accounts", "devices")
    assert canary.found() == {}
    assert until(lambda: system.undrift("doctor")["well"])


def test_a_name_is_free_again(system: System, canary: Canary) -> None:
    erase(system, canary.user.id, "--yes")
    again = libraries.user(system, canary.words["zelda"])
    assert again.id != canary.user.id
    assert again.device().upload("new", b"new")
    said = erase(system, canary.words["zelda"])
    assert json.loads(said.stdout)["id"] == again.id
    assert erase(system, again.id, "--yes").returncode == 0


def test_a_purge_of_one_person_keeps_the_stream_of_all(system: System) -> None:
    """The relay takes the holes for what they are: it makes nothing anew."""
    canary = Canary(system)
    canary.live()
    made = system.log.read_bytes().count(b"the stream is made anew")
    assert erase(system, canary.user.id, "--yes").returncode == 0
    somebody(system).device().upload("after", b"after")
    system.kill("core")
    system.whole()
    assert until(lambda: system.undrift("doctor")["well"])
    assert system.log.read_bytes().count(b"the stream is made anew") == made
    assert canary.found() == {}
    assert system.get("/api/v1/feeds/events?after=0&limit=1", token=ADMIN).status == 200


def test_what_is_under_way_is_erased_as_well(system: System) -> None:
    """Devices write, and a stream is open, until nothing is answered any more."""
    canary = Canary(system)
    canary.live()

    def write(lane: int) -> int:
        device, last = (canary.laptop, canary.phone)[lane % 2], 200
        for n in range(10_000):
            if last != 200:
                return last
            data = f"{canary.words['content']} {lane} {n}".encode()
            last = device.call("POST", "/api/v1/sync/report", {"changes": [created(f"{lane}/{n}", data)]}).status
        return last

    with follow(system, "/api/v1/sync/changes", token=canary.laptop.token) as stream, ThreadPoolExecutor(4) as pool:
        writing = [pool.submit(write, lane) for lane in range(4)]
        assert erase(system, canary.user.id, "--yes").returncode == 0
        for _ in stream:
            pass  # it ends
        assert {one.result() for one in writing} <= {401, 404}
    assert until(lambda: canary.found() == {}), canary.found()
    assert until(lambda: system.undrift("doctor")["well"])
    open_still = "select count(*) from undrift.sessions where owner = %s"
    assert system.sql(open_still, canary.user.id) == [(0,)]


def test_without_nats_the_core_completes_it(system: System) -> None:
    canary = Canary(system)
    canary.live()
    with system.paused("nats"):
        said = erase(system, canary.user.id, "--yes")
        assert said.returncode == 3, said
        assert not json.loads(said.stdout)["erased"]["complete"]
        assert canary.user.call("GET", "/api/v1/auth/me").status == 401
    assert until(lambda: canary.found() == {}), canary.found()
    assert until(lambda: system.undrift("doctor")["well"])


def test_once_somebody_is_on_the_list_they_are_erased(system: System) -> None:
    """As after a kill of the command at its first step."""
    canary = Canary(system)
    canary.live()
    Erasures(system.directory).add("main", canary.user.id, datetime.now(UTC))
    assert until(lambda: canary.found() == {}), canary.found()
    assert until(lambda: system.undrift("doctor")["well"])
    assert canary.phone.call("GET", "/api/v1/sync/changes").status == 401


def test_of_very_many_messages_the_whole_stream_is_made_anew(system: System) -> None:
    canary = Canary(system)
    canary.live()
    made = system.log.read_bytes().count(b"the stream is made anew")

    async def erased() -> list[Report]:
        async with cli_data.opened(Instance(data_dir=str(system.directory))) as data:
            bus = Bus(data.settings.nats.url, data.settings.nats, user="relay")
            await bus.connect()
            try:
                eraser = Eraser(
                    data.store, system.directory, Blobs(system.directory / "blobs" / "library"), bus, overwrites=3
                )
                return [await eraser.erase("main", canary.user.id) for _ in range(2)]
            finally:
                await bus.close()

    first, second = asyncio.run(erased())
    assert first == replace(second, blobs=first.blobs)
    assert (first.complete, first.messages > 3) == (True, True)
    assert canary.found() == {}
    assert until(lambda: system.undrift("doctor")["well"])
    assert system.log.read_bytes().count(b"the stream is made anew") == made + 1


def test_a_doctor_sees_what_an_erased_person_should_not_have(system: System) -> None:
    canary = Canary(system)
    assert erase(system, canary.user.id, "--yes").returncode == 0
    row = "insert into undrift.stored values ('main', %s, repeat('a', 64), repeat('b', 64), 1) returning owner"
    assert system.sql(row, canary.user.id) == [(canary.user.id,)]
    command = [UNDRIFT, "doctor", "--json", "--data-dir", str(system.directory)]
    said = json.loads(subprocess.run(command, capture_output=True, text=True, timeout=120).stdout)
    [finding] = [one for one in said["findings"] if one["check"] == "erasures"]
    assert (finding["well"], finding["summary"]) == (False, f"{canary.user.id} is erased and has blobs")
    system.sql("delete from undrift.stored where owner = %s returning 1", canary.user.id)
    assert until(lambda: system.undrift("doctor")["well"])
