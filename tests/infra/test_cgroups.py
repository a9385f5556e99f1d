"""Control groups: what is written for which limits, where they are made, and what a machine does not take."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from domain import errors
from domain.server_config import Build, Limits, limits
from infra.runtimes import cgroups, rlimits, shim_machine
from infra.runtimes.cgroups import Group, Hierarchy, Place, hierarchies

UNLIMITED = limits(Build(0, -1, 500, 0, None, 0, True))
LIMITED = limits(Build(1024, 512, 500, 150, "0-1,3", 0, True))

#: Of the documentation of mountinfo, of a machine with version 2, and of one with both.
MODERN = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot\n"
HYBRID = """25 22 0:22 / /sys/fs/cgroup ro,nosuid - tmpfs tmpfs ro,mode=755
26 25 0:23 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
27 25 0:24 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd
28 25 0:25 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
29 25 0:26 /docker/abc /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
30 25 0:27 / /mnt/a\\040place rw - cgroup cgroup rw,blkio
"""
HYBRID_OWN = """9:name=systemd:/user.slice
4:memory:/docker/abc/inner
3:blkio:/
2:cpu,cpuacct:/docker/abc
0::/user.slice
"""


def test_version_2_is_told_as_runc_tells_it() -> None:
    assert dict(cgroups.version2(LIMITED, 100)) == {
        "memory": (("memory.max", "1177600000"), ("memory.low", "1024000000"), ("memory.swap.max", "512000000")),
        "cpu": (("cpu.max", "150000 100000"), ("cpu.weight", "100")),
        "cpuset": (("cpuset.cpus", "0-1,3"),),
        "pids": (("pids.max", "100"),),
        "io": (("io.weight", "default 4950"), ("io.bfq.weight", "500")),
    }
    free = cgroups.version2(UNLIMITED, 100)
    assert free["memory"] == (("memory.max", "max"), ("memory.low", "0"), ("memory.swap.max", "max"))
    assert free["cpu"][0] == ("cpu.max", "max 100000")
    assert free["cpuset"] == (("cpuset.cpus", ""),)


def test_version_1_is_told_as_docker_tells_it() -> None:
    told = cgroups.version1(LIMITED, 100)
    assert [text for _, text in told["memory"]] == ["1177600000", "1689600000", "1024000000"]
    assert told["cpu"] == (("cpu.cfs_period_us", "100000"), ("cpu.cfs_quota_us", "150000"), ("cpu.shares", "1024"))
    free = cgroups.version1(UNLIMITED, 100)
    assert [text for _, text in free["memory"]] == ["-1", "-1", "-1"]
    assert free["cpu"][1] == ("cpu.cfs_quota_us", "-1")


@pytest.mark.parametrize(
    ("build", "files"),
    [
        (
            Build(1, 0, 10, 1, "0", 0, True),
            {"memory.swap.max": "0", "io.weight": "default 1", "cpu.max": "1000 100000"},
        ),
        (Build(1, -1, 1000, 1, "0", 0, True), {"memory.swap.max": "max", "io.weight": "default 10000"}),
        (Build(0, 5, 99_999, -3, "", 0, True), {"memory.swap.max": "max", "cpu.max": "max 100000"}),
        (Build(-5, 5, -1, 0, "", 0, True), {"memory.max": "max", "memory.low": "0", "io.weight": "default 1"}),
    ],
)
def test_units_at_their_ends(build: Build, files: dict[str, str]) -> None:
    told = dict(pair for pairs in cgroups.version2(limits(build), 1).values() for pair in pairs)
    assert {name: told[name] for name in files} == files


def test_where_groups_are_is_read_from_what_is_mounted() -> None:
    assert hierarchies(MODERN, "0::/user.slice/user-1000.slice\n") == [
        Hierarchy(2, "/sys/fs/cgroup", "/user.slice/user-1000.slice", ())
    ]
    assert hierarchies(MODERN, "0::/\n") == [Hierarchy(2, "/sys/fs/cgroup", "", ())]
    assert hierarchies(MODERN, "0::/../../outside\n") == [Hierarchy(2, "/sys/fs/cgroup", "", ())]
    assert hierarchies(HYBRID, HYBRID_OWN) == [
        Hierarchy(2, "/sys/fs/cgroup/unified", "/user.slice", ()),
        Hierarchy(1, "/sys/fs/cgroup/cpu,cpuacct", "/docker/abc", ("cpu", "cpuacct")),
        Hierarchy(1, "/sys/fs/cgroup/memory", "/inner", ("memory",)),
        Hierarchy(1, "/mnt/a place", "", ("io",)),
    ]
    assert hierarchies("", "") == []


def test_files_that_the_machine_has_are_written_and_others_named(tmp_path: Path) -> None:
    """As plain files: what a kernel does with them is for the real groups below."""
    for name in ("memory.max", "memory.low", "cpu.max", "cpu.weight", "pids.max"):
        (tmp_path / name).write_text("")
    group = Group([Place(2, str(tmp_path), ("memory", "cpu", "pids", "io"))])
    assert group.apply(LIMITED, 7) == ["io.weight"]
    assert (tmp_path / "memory.max").read_text() == "1177600000\n"
    assert (tmp_path / "pids.max").read_text() == "7\n"
    assert not (tmp_path / "memory.swap.max").exists()


def test_what_is_used_is_counted_as_docker_counts_it(tmp_path: Path) -> None:
    (tmp_path / "memory.current").write_text("1000\n")
    (tmp_path / "memory.stat").write_text("anon 700\ninactive_file 300\n")
    (tmp_path / "cpu.stat").write_text("usage_usec 12\nuser_usec 5\n")
    assert Group([Place(2, str(tmp_path), ("memory", "cpu"))]).used() == cgroups.Used(700, 12_000)
    assert Group([Place(2, str(tmp_path / "gone"), ("memory", "cpu"))]).used() == cgroups.Used(None, None)


@pytest.fixture
def group() -> Iterator[Group]:
    """A real one of this machine."""
    name = f"undrift-test-{os.getpid()}"
    places = cgroups.places(name)
    if not places:
        pytest.skip("no control groups here")
    made = Group.named(places, "one")
    made.make()
    yield made
    shim_machine.kill_all(made.folders)
    made.remove()
    cgroups.tidy(places)
    assert not any(os.path.exists(place.folder) for place in places)


@pytest.fixture
def member(group: Group) -> Iterator[Callable[[], subprocess.Popen[bytes]]]:
    """Starts a process in it."""

    def enter() -> None:
        for folder in group.folders:
            Path(folder, "cgroup.procs").write_text("0")

    started: list[subprocess.Popen[bytes]] = []

    def start() -> subprocess.Popen[bytes]:
        started.append(subprocess.Popen(["sleep", "1000"], preexec_fn=enter))
        return started[-1]

    yield start
    for each in started:
        each.kill()
        each.wait()


def said(group: Group, file: str) -> str:
    return next(Path(folder, file).read_text().strip() for folder in group.folders if Path(folder, file).exists())


SMALL, LARGE = (limits(Build(memory, 0, 500, 50, "0", 0, True)) for memory in (50, 500))


@pytest.mark.parametrize(
    "order", [(SMALL, LARGE, UNLIMITED), (UNLIMITED, LARGE, SMALL), (SMALL, UNLIMITED, SMALL, LARGE)]
)
def test_limits_grow_and_shrink_in_any_order(group: Group, order: tuple[Limits, ...]) -> None:
    for each in order:
        group.apply(each, 50)
        if "memory" in group.controllers:
            file = "memory.max" if group.controllers["memory"] == "cgroup v2" else "memory.limit_in_bytes"
            text = said(group, file)
            if each.memory > 0:
                assert each.memory - 4096 < int(text) <= each.memory
            else:
                assert text == "max" or int(text) > 1 << 60


def test_all_that_can_be_set_is_set_when_one_cannot(group: Group) -> None:
    if not {"cpuset", "pids"} <= set(group.controllers):
        pytest.skip("not all controllers are here")
    wrong = limits(Build(0, 0, 500, 0, "4000", 0, True))
    with pytest.raises(errors.SyncFailed, match=r"does not take cpuset.cpus = 4000"):
        group.apply(wrong, 33)
    assert said(group, "pids.max") == "33"


def test_whoever_is_in_it_is_found_and_ended(group: Group, member: Callable[[], subprocess.Popen[bytes]]) -> None:
    started = [member(), member()]
    assert shim_machine.members(group.folders) == {each.pid for each in started}
    group.remove()  # nothing goes while somebody is in it
    assert all(os.path.isdir(folder) for folder in group.folders)
    assert shim_machine.kill_all(group.folders)
    assert [each.wait() for each in started] == [-9, -9]


def test_version_2_ends_all_at_once_and_counts_time() -> None:
    """Its controllers may be those of version 1 here: what needs none is real all the same."""
    found = [each for each in hierarchies(*map(_text, ("mountinfo", "cgroup"))) if each.version == 2]
    folder = f"{found[0].mounted}/undrift-test-{os.getpid()}" if found else ""
    if not folder or not os.access(os.path.dirname(folder), os.W_OK):
        pytest.skip("no version 2 here")
    group = Group([Place(2, folder, ())])
    group.make()
    with subprocess.Popen(
        ["sh", "-c", "sleep 1000 & sleep 1000 & sleep 1000"],
        preexec_fn=lambda: Path(folder, "cgroup.procs").write_text("0") and None,
    ) as process:
        assert process.pid in shim_machine.members([folder])
        assert (group.used().cpu_ns or 0) > 0
        assert shim_machine.kill_all([folder])
        assert process.wait() == -9
    group.remove()
    assert not os.path.exists(folder)


def _text(name: str) -> str:
    return Path("/proc/self", name).read_text()


def test_what_has_ended_takes_any_limit(group: Group) -> None:
    group.remove()
    group.apply(LIMITED, 5)
    assert group.used() == cgroups.Used(None, None)


def test_cores_are_written_as_the_panel_does() -> None:
    assert rlimits.cores("0-2,5,") == (0, 1, 2, 5)
    assert rlimits.cores("") == ()
    for wrong in ("a", "1-", "0-99999999", "-"):
        with pytest.raises(errors.SyncFailed):
            rlimits.cores(wrong)
