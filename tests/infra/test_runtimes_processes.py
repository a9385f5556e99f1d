"""Servers as real processes: what they are given, what they say, what limits them, how they end, who outlives whom."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from domain import errors
from domain.server_config import Stop
from infra.runtimes import attached, cgroups, shim_machine
from tests.infra.houses import AS_WE_ARE, ROOT, House, until

SECRET = "a secret; $(touch harmed) `touch harmed` 'é"
needs_root = pytest.mark.skipif(not ROOT, reason="only root has servers run as somebody else")


@pytest.fixture
async def house(data_dir: Path) -> AsyncIterator[House]:
    made = House(data_dir)
    yield made
    await made.leave()


@pytest.fixture
async def ours(data_dir: Path) -> AsyncIterator[House]:
    """Whose servers run as we do."""
    made = House(data_dir, AS_WE_ARE, pids=24)
    yield made
    await made.leave()


@pytest.fixture(params=["groups", "none"])
async def both(request: pytest.FixtureRequest, data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[House]:
    """A machine with control groups, and one without."""
    if request.param == "none":
        monkeypatch.setattr(cgroups, "places", lambda name: [])
    made = House(data_dir, pids=24)
    yield made
    await made.leave()


async def test_it_has_its_own_environment_folder_and_user_and_its_secrets_are_in_no_list(house: House) -> None:
    server = await house.start("echo {{SECRET}}; pwd; id -u; cat", environment={"SECRET": SECRET, "LANG": "de"})
    await until(lambda: len(server.lines) == 3, "what it says of itself")
    folder = str(house.folder("one"))
    assert server.lines == [SECRET, folder, "988" if ROOT else str(os.geteuid())]
    environment = Path(f"/proc/{server.pid}/environ").read_bytes().split(b"\0")
    given = dict(each.decode().split("=", 1) for each in environment if each)
    assert (given.pop("SECRET"), given.pop("LANG"), given.pop("HOME")) == (SECRET, "de", folder)
    assert set(given) == {"PATH", "USER"}
    for pid in (server.pid, house.state("one")["shim"]):
        assert b"a secret" not in Path(f"/proc/{pid}/cmdline").read_bytes()
    of_shim = Path(f"/proc/{house.state('one')['shim']}/environ")
    if ROOT:
        assert b"SECRET" not in of_shim.read_bytes()
    else:  # not even the user it runs as may look into it
        with pytest.raises(PermissionError):
            of_shim.read_bytes()
    assert not (house.folder("one") / "harmed").exists()
    status = dict(
        line.split(":\t", 1) for line in Path(f"/proc/{server.pid}/status").read_text().splitlines() if ":\t" in line
    )
    assert (status["NoNewPrivs"], status["Umask"], int(status["SigBlk"], 16)) == ("1", "0022", 0)
    internal = 0b11 << 31  # of the C library, which ignores these two in whatever it spawns
    assert int(status["SigIgn"], 16) & ~internal == 0
    assert set(os.listdir(f"/proc/{server.pid}/fd")) == {"0", "1", "2"}
    assert os.getsid(server.pid) == server.pid


@needs_root
async def test_it_sees_nothing_of_what_lies_beside_it(house: House) -> None:
    secret = house.settings.directory / "secrets"
    secret.mkdir(parents=True)
    (secret / "key").write_text("ours")
    house.settings.directory.chmod(0o755)
    (house.folder("two") / "file").write_text("theirs")
    os.chmod(house.folder("two"), 0o777)
    looks = f"cat {secret}/key; cat {house.folder('two')}/file; touch made; echo done"
    server = await house.start(looks)
    assert await server.end() == 0
    assert server.lines[-1] == "done"
    assert "ours" not in server.lines
    assert "theirs" not in server.lines
    assert (house.folder("one") / "made").stat().st_uid == 988


async def test_what_is_kept_of_it_is_private(house: House) -> None:
    await house.start("cat")
    assert stat.S_IMODE(house.record("one").stat().st_mode) == 0o700
    for each in house.record("one").iterdir():
        assert stat.S_IMODE(each.stat().st_mode) & 0o077 == 0, each


@pytest.mark.parametrize(
    ("invocation", "code"),
    [
        ("exit 7", 7),
        ("kill -9 $$", -9),
        ("exec sh -c 'kill -SEGV $$'", -11),
        ("no-such-command-here", 127),
        ("true", 0),
    ],
)
async def test_its_exit_code_is_known(house: House, invocation: str, code: int) -> None:
    assert await (await house.start(invocation)).end() == code


async def test_what_cannot_be_started_says_why(house: House) -> None:
    for wrong in ({"invocation": " "}, {"invocation": "true", "uuid": "../x"}):
        with pytest.raises(errors.SyncFailed):
            await house.start(**wrong)
    with pytest.raises(errors.SyncFailed, match="cannot be given"):
        await house.start("true", environment={"A=B": "c"})
    launch = house.launch("true", "gone")
    os.rmdir(launch.folder)
    with pytest.raises(errors.SyncFailed, match="its folder: No such file"):
        await house.runtime.start(launch)
    assert await (await house.start("true", "gone")).end() == 0


async def test_lines_go_in_and_out_and_the_last_are_kept(house: House) -> None:
    server = await house.start('while read -r line; do echo "got $line"; done')
    for number in range(30):
        await server.running.say(f"line {number}\nx\n")
    await server.says("got line 29 x")
    assert [f"got line {number} x" for number in range(30)] == server.lines
    assert await server.running.recent(2) == [b"got line 28 x", b"got line 29 x"]
    with pytest.raises(errors.SyncFailed, match="too long"):
        await server.running.say("x" * 20_000)


async def test_a_line_without_an_end_and_one_without_any_measure(house: House) -> None:
    server = await house.start("head -c 100000 /dev/zero | tr '\\0' x; echo; printf 'windows\\r\\n'; printf last")
    assert await server.end() == 0
    assert [len(server.lines[0]), *server.lines[1:]] == [16 * 1024, "windows", "last"]


async def test_input_that_nobody_reads_is_refused_and_blocks_nobody(house: House) -> None:
    server = await house.start("echo up; exec sleep 1000")
    await server.says("up")
    said = [server.running.say("x" * 10_000) for _ in range(50)]
    refused = {str(each) for each in await asyncio.gather(*said, return_exceptions=True) if each is not None}
    assert refused == {"It does not read its input"}
    await server.running.kill()
    assert await server.end() == -9


async def test_a_flood_neither_blocks_nor_fills_anything(house: House) -> None:
    running = await house.runtime.start(house.launch("yes | head -c 5000000; echo why it ended"))
    assert await running.ended() == 0
    assert any(b"were dropped" in line for line in await running.recent(10_000))
    assert (await running.recent(1)) == [b"why it ended"]
    server = await house.start(f"yes {'0123456789' * 30}", "two")
    await until(lambda: (house.record("two") / "console.1").exists(), "so much output")
    status = Path(f"/proc/{house.state('two')['shim']}/status").read_text()
    assert int(status.partition("VmRSS:")[2].split()[0]) < 40_000
    await server.running.kill()
    assert await server.end() == -9
    kept = [house.record("two") / name for name in ("console", "console.1")]
    assert all(file.stat().st_size <= 1024 * 1024 for file in kept)


async def test_only_one_of_a_server_runs(house: House) -> None:
    server = await house.start("cat")
    for runtime in (house.runtime, house.another()):
        with pytest.raises(errors.SyncFailed, match="runs already"):
            await runtime.start(house.launch("cat"))
        with pytest.raises(errors.SyncFailed, match="It runs"):
            await runtime.remove("one")
    assert (await house.runtime.adopt())["one"] is server.running
    again = (await house.another().adopt())["one"]
    assert again.identity == server.running.identity
    await again.kill()
    assert (await server.end(), await again.ended()) == (-9, -9)
    await house.runtime.remove("one")
    await house.runtime.remove("one")
    assert not house.record("one").exists()
    assert house.folder("one").exists()


async def test_of_two_that_start_it_at_once_one_does(house: House) -> None:
    both = (house.runtime.start(house.launch("cat")), house.another().start(house.launch("cat")))
    made = await asyncio.gather(*both, return_exceptions=True)
    failed = [each for each in made if isinstance(each, BaseException)]
    assert [type(each) for each in failed] == [errors.SyncFailed]


STARTER = """
import asyncio, sys
from infra import config
from infra.runtimes import Launch, processes
from tests.infra.houses import House, limits
from pathlib import Path

async def main():
    house = House(Path(sys.argv[1]))
    one = await house.start("while read line; do echo got $line; done; exit 5")
    await one.running.say("a")
    await one.says("got a")
    await asyncio.sleep(0.2)
    two = await house.start("read line; echo bye; exit 6", "two")
    print("begun", flush=True)
    await asyncio.sleep(1000)

asyncio.run(main())
"""


async def test_it_outlives_whoever_started_it_and_is_taken_up_again(house: House) -> None:
    starter = subprocess.Popen(
        [sys.executable, "-c", STARTER, str(house.settings.directory)], stdout=subprocess.PIPE, start_new_session=True
    )
    with starter:
        assert starter.stdout is not None
        while (line := starter.stdout.readline()) and b"begun" not in line:
            pass
        os.killpg(starter.pid, signal.SIGKILL)
    before = house.state("one")
    with contextlib.suppress(OSError):
        os.kill(house.state("two")["pid"], signal.SIGTERM)
    await until(lambda: (house.record("two") / "end").exists(), "the end of the second")
    adopted = await house.runtime.adopt()
    one, two = house.hear(adopted["one"]), house.hear(adopted["two"])
    assert (one.pid, one.running.identity.started) == (before["pid"], before["started"])
    await one.running.say("b")
    await one.says("got b")
    assert one.lines == ["got b"]
    assert await one.running.recent(10) == [b"got a", b"got b"]
    assert await two.end() == -signal.SIGTERM
    assert set(await house.runtime.adopt()) == {"one"}
    assert set(await house.another().adopt()) == {"one"}


async def test_what_it_said_while_nobody_looked_is_heard_later(house: House) -> None:
    await house.runtime.start(house.launch("echo first; read line; echo last; exit 3"))
    await house.runtime.close()
    runtime = house.another()
    await (await runtime.adopt())["one"].say("on")
    await until(lambda: (house.record("one") / "end").exists(), "its end")
    server = house.hear((await house.another().adopt())["one"])
    assert await server.end() == 3
    assert server.lines == ["first", "last"]


async def test_without_its_shim_nothing_of_it_is_left(both: House) -> None:
    house = both
    server = await house.start("(trap '' HUP TERM; sleep 1000) & echo up; cat")
    await server.says("up")
    left = _all_of(house)
    assert len(left) == 3
    os.kill(house.state("one")["shim"], signal.SIGKILL)
    assert await server.end() is None
    await until(lambda: not any(map(shim_machine.started, left)), "its end")
    again = await house.start("echo again")
    assert await again.end() == 0


def _all_of(house: House) -> set[int]:
    state = house.state("one")
    return shim_machine.members([place["folder"] for place in state["places"]]) or shim_machine.below(state["shim"])


async def test_a_shim_that_ended_unseen_leaves_nothing_either(house: House) -> None:
    server = await house.start("sleep 1000 & echo up; cat")
    await server.says("up")
    left = _all_of(house)
    await house.runtime.close()
    os.kill(house.state("one")["shim"], signal.SIGKILL)
    adopted = (await house.another().adopt())["one"]
    assert await adopted.ended() is None
    assert not any(map(shim_machine.started, left))
    assert await house.another().adopt() == {}


async def test_of_whom_there_is_no_record_nothing_goes_on(house: House) -> None:
    """Whoever finds none starts another."""
    server = await house.start("sleep 1000 & echo up; cat")
    await server.says("up")
    left, folders = _all_of(house), [place["folder"] for place in house.state("one")["places"]]
    shutil.rmtree(house.record("one"))
    assert await server.end() is None
    assert not any(map(shim_machine.started, left))
    assert not any(map(os.path.exists, folders))


async def test_a_process_of_the_same_number_is_not_ours(house: House) -> None:
    server = await house.start("cat")
    await house.runtime.close()
    state = attached.read_state(house.record("one"))
    assert state is not None
    os.kill(state.shim, signal.SIGKILL)
    await until(lambda: not state.lives(), "its end")
    with subprocess.Popen(["sleep", "1000"]) as stranger:
        told = {**house.state("one"), "pid": stranger.pid, "shim": stranger.pid, "places": []}
        shim_machine.write(str(house.record("one") / "state"), told)
        adopted = (await house.another().adopt())["one"]
        assert await adopted.ended() is None
        await adopted.kill()
        assert stranger.poll() is None
        stranger.kill()
    shim_machine.remove_groups([place.folder for place in state.places])
    server.listening.cancel()


@pytest.mark.parametrize(
    ("how", "invocation", "code"),
    [
        (Stop("command", "stop"), "echo up; read line; echo $line; exit 4", 4),
        (Stop("signal", "^C"), "trap 'exit 5' INT; echo up; while :; do sleep 0.05; done", 5),
        (Stop("signal", "C"), "trap 'exit 5' INT; echo up; while :; do sleep 0.05; done", 5),
        (Stop("signal", "SIGUSR1"), "trap 'exit 6' USR1; echo up; while :; do sleep 0.05; done", 6),
        (Stop("stop", None), "echo up; exec cat", -15),
    ],
)
async def test_it_is_asked_to_end_in_its_own_way(house: House, how: Stop, invocation: str, code: int) -> None:
    server = await house.start(invocation)
    await server.says("up")
    await server.running.stop(how)
    assert await server.end() == code
    await server.running.stop(how)
    await server.running.kill()


async def test_what_a_shell_runs_is_asked_to_end_with_it_and_may_finish(house: House) -> None:
    work = "trap 'sleep 0.3; echo saved; exit' TERM; echo up; while :; do sleep 0.05; done"
    server = await house.start(f"sh -c {shlex.quote(work)}; echo never")
    await server.says("up")
    await server.running.stop(Stop("stop", None))
    assert await server.end() == -15
    assert (server.lines[0], server.lines[-1]) == ("up", "saved")


async def test_what_it_leaves_behind_ends_with_it(ours: House) -> None:
    server = await ours.start("setsid sleep 1000 & sleep 0.1; echo up; read line; exit 2")
    await server.says("up")
    left = _all_of(ours)
    await server.running.say("")
    assert await server.end() == 2
    assert not any(map(shim_machine.started, left))


async def test_whoever_was_just_killed_can_be_removed(house: House) -> None:
    server = await house.start("exec cat")  # a shell that may not fork any more ends by itself, with a code of its own
    await server.running.kill()
    await house.runtime.remove("one")
    assert not house.record("one").exists()
    assert await server.end() == -9


@pytest.mark.parametrize(("disabled", "adjusted"), [(True, 0), (False, 500)])
async def test_who_goes_first_when_memory_is_out(house: House, disabled: bool, adjusted: int) -> None:
    server = await house.start("cat", oom_disabled=disabled)
    own = int(Path("/proc/self/oom_score_adj").read_text())
    assert int(Path(f"/proc/{server.pid}/oom_score_adj").read_text()) in (adjusted, max(own, adjusted))


async def test_a_data_directory_may_lie_deep(data_dir: Path) -> None:
    house = House(data_dir / ("d" * 100) / ("e" * 100))
    try:
        server = await house.start("read line; echo $line")
        await server.running.say("deep")
        assert await server.end() == 0
        assert server.lines == ["deep"]
    finally:
        await house.leave()


async def test_a_new_environment_is_of_the_next_start(house: House) -> None:
    server = await house.start("echo is {{WHAT}}; cat", environment={"WHAT": "old"})
    await server.says("is old")
    await server.running.stop(Stop("stop", None))
    await server.end()
    again = await house.start("echo is {{WHAT}}; cat", environment={"WHAT": "new"})
    await again.says("is new")
    assert again.running.identity != server.running.identity
