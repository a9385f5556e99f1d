"""Control groups, of version 2 or 1, whichever has a controller: they limit a server and say what it uses."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from msgspec import Struct

from domain import errors
from domain.server_config import Limits
from infra.runtimes import shim_machine

CONTROLLERS = ("cpu", "cpuset", "memory", "pids", "io")
_V1 = {"cpu": "cpu", "cpuset": "cpuset", "memory": "memory", "pids": "pids", "blkio": "io", "cpuacct": "cpuacct"}
_UNLIMITED_V1 = "-1"
_BUSY_TRIES = 5
#: A group in which nobody is may still be on its way to its first, for so long.
UNUSED_S = 60.0

#: Of a controller: the files to write, in order, each with its text. Of several with the same first word only one is
#: there, as the machine has it.
Files = Mapping[str, tuple[tuple[str, str], ...]]


def version2(limits: Limits, pids: int) -> Files:
    """What the files of a group hold, as runc writes them."""
    swap = limits.memory_swap - limits.memory
    return {
        "memory": (
            ("memory.max", str(limits.memory) if limits.memory > 0 else "max"),
            ("memory.low", str(max(limits.memory_reservation, 0))),
            ("memory.swap.max", str(max(swap, 0)) if limits.memory_swap >= 0 and limits.memory > 0 else "max"),
        ),
        "cpu": (
            ("cpu.max", f"{limits.cpu_quota if limits.cpu_quota > 0 else 'max'} {limits.cpu_period}"),
            ("cpu.weight", str(min(max(round(limits.cpu_shares * 100 / 1024), 1), 10_000))),
        ),
        "cpuset": (("cpuset.cpus", limits.cpuset),),
        "pids": (("pids.max", str(pids)),),
        "io": (
            ("io.weight", f"default {_io_weight(limits)}"),
            ("io.bfq.weight", str(min(max(limits.io_weight, 1), 1000))),
        ),
    }


def version1(limits: Limits, pids: int) -> Files:
    """The same for version 1. An empty list of cores is written as those of the group above."""
    memory = str(limits.memory) if limits.memory > 0 else _UNLIMITED_V1
    both = str(limits.memory_swap) if limits.memory_swap >= 0 and limits.memory > 0 else _UNLIMITED_V1
    weight = str(min(max(limits.io_weight, 10), 1000))
    return {
        "memory": (
            ("memory.limit_in_bytes", memory),
            ("memory.memsw.limit_in_bytes", both),
            ("memory.soft_limit_in_bytes", str(limits.memory_reservation or _UNLIMITED_V1)),
        ),
        "cpu": (
            ("cpu.cfs_period_us", str(limits.cpu_period)),
            ("cpu.cfs_quota_us", str(limits.cpu_quota if limits.cpu_quota > 0 else -1)),
            ("cpu.shares", str(max(limits.cpu_shares, 2))),
        ),
        "cpuset": (("cpuset.cpus", limits.cpuset),),
        "pids": (("pids.max", str(pids)),),
        "io": (("blkio.weight", weight), ("blkio.bfq.weight", weight)),
    }


def _io_weight(limits: Limits) -> int:
    """10 to 1000 as 1 to 10000."""
    return 1 + (min(max(limits.io_weight, 10), 1000) - 10) * 9999 // 990


class Place(Struct, frozen=True):
    """A folder in which groups can be made, of one hierarchy with these controllers."""

    version: int
    folder: str
    controllers: tuple[str, ...]


class Hierarchy(Struct, frozen=True):
    """A mounted one: where, and where in it we are."""

    version: int
    mounted: str
    own: str
    controllers: tuple[str, ...]


def hierarchies(mounts: str, own: str) -> list[Hierarchy]:
    """From the texts of /proc/self/mountinfo and /proc/self/cgroup."""
    groups: dict[tuple[str, ...], str] = {}
    for line in own.splitlines():
        _, listed, path = line.split(":", 2)
        groups[tuple(listed.split(",")) if listed else ()] = path
    found = []
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        root, folder = (_plain(text) for text in before.split()[3:5])
        kind, options = after.split()[0], after.split()[-1]
        if kind == "cgroup2" and () in groups:
            found.append(Hierarchy(2, folder, _within(groups[()], root), ()))
        elif kind == "cgroup":
            for names, path in groups.items():
                if names and set(names) <= set(options.split(",")) and any(name in _V1 for name in names):
                    known = tuple(_V1[name] for name in names if name in _V1)
                    found.append(Hierarchy(1, folder, _within(path, root), known))
    return found


def _plain(text: str) -> str:
    return text.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")


def _within(path: str, root: str) -> str:
    """A group's path below what of its hierarchy is mounted; the top where it lies elsewhere."""
    if root != "/":
        path = path.removeprefix(root) if path == root or path.startswith(root + "/") else "/"
    return "" if path in ("", "/") or path.startswith("/..") else path


def places(name: str) -> list[Place]:
    """Where groups can be made for us, in folders called `name`: each controller at most once. They are made."""
    found: list[Place] = []
    taken: set[str] = set()
    try:
        mounted = hierarchies(Path("/proc/self/mountinfo").read_text(), Path("/proc/self/cgroup").read_text())
    except OSError:
        return []
    for each in sorted(mounted, key=lambda hierarchy: -hierarchy.version):
        place = _place2(each, name) if each.version == 2 else _place1(each, name)
        if place is not None and not taken & set(place.controllers):
            found.append(place)
            taken |= set(place.controllers)
    return found


def _place1(hierarchy: Hierarchy, name: str) -> Place | None:
    """Below our own group."""
    folder = f"{hierarchy.mounted}{hierarchy.own}/{name}"
    try:
        os.makedirs(folder, exist_ok=True)
        if "cpuset" in hierarchy.controllers:
            _inherit(folder)
        usable = os.access(folder, os.W_OK)
    except OSError:
        return None
    return Place(1, folder, hierarchy.controllers) if usable else None


def _inherit(folder: str) -> None:
    """Version 1 admits nobody to a group without cores and memory nodes."""
    above = os.path.dirname(folder)
    for file in ("cpuset.mems", "cpuset.cpus"):
        if not _read(folder, file).strip():
            text = _read(above, file).strip() or _read(above, file.replace(".", ".effective_")).strip()
            _write(folder, file, text)


def _place2(hierarchy: Hierarchy, name: str) -> Place | None:
    """As high as we may and where controllers can be handed down: a group with processes of its own cannot do that,
    unless it is the topmost of the machine."""
    parts = [part for part in hierarchy.own.split("/") if part]
    for depth in range(len(parts) + 1):
        above = "/".join([hierarchy.mounted, *parts[:depth]])
        folder = f"{above}/{name}"
        try:
            os.makedirs(folder, exist_ok=True)
        except OSError:
            continue
        handed = _hand_down(above, CONTROLLERS)
        usable = _hand_down(folder, handed) if handed else ()
        if usable:
            return Place(2, folder, usable)
        with suppress(OSError):
            os.rmdir(folder)
    return None


def _hand_down(folder: str, wanted: tuple[str, ...]) -> tuple[str, ...]:
    """Which of them the groups below have; asked for one by one, since one that is refused refuses all."""
    offered = _read(folder, "cgroup.controllers").split()
    given = _read(folder, "cgroup.subtree_control").split()
    for controller in wanted:
        if controller in offered and controller not in given:
            with suppress(OSError):
                _write(folder, "cgroup.subtree_control", f"+{controller}")
                given.append(controller)
    return tuple(controller for controller in wanted if controller in given)


def tidy(places: list[Place]) -> None:
    """Removes what `places` made, where no group is left in it, and groups that were made for what never began."""
    for place in places:
        with suppress(OSError):
            for name in os.listdir(place.folder):
                group = os.path.join(place.folder, name)
                if os.path.isdir(group) and time.time() - os.stat(group).st_mtime > UNUSED_S:
                    with suppress(OSError):
                        os.rmdir(group)
            os.rmdir(place.folder)


class Used(Struct, frozen=True):
    """Bytes and nanoseconds; None where no group says it."""

    memory: int | None = None
    cpu_ns: int | None = None


class Group:
    """The groups of one server, one in each hierarchy. Everything here blocks for a moment."""

    def __init__(self, places: list[Place]) -> None:
        self.places = places

    @classmethod
    def named(cls, above: list[Place], name: str) -> Group:
        return cls([Place(each.version, os.path.join(each.folder, name), each.controllers) for each in above])

    @property
    def folders(self) -> list[str]:
        return [place.folder for place in self.places]

    @property
    def controllers(self) -> dict[str, str]:
        """Controller -> how it is named where people read it."""
        return {name: f"cgroup v{place.version}" for place in self.places for name in place.controllers}

    def make(self) -> None:
        """Also when somebody tidied up since the places were found. Raises OSError."""
        for place in self.places:
            os.makedirs(place.folder, exist_ok=True)
            above = os.path.dirname(place.folder)
            if place.version == 2:
                _hand_down(above, place.controllers)
            elif "cpuset" in place.controllers:
                _inherit(above)
                _inherit(place.folder)

    def remove(self) -> None:
        """Those in which nobody is."""
        shim_machine.remove_groups(self.folders)

    def apply(self, limits: Limits, pids: int) -> list[str]:
        """Which limits this machine's groups do not know. Raises errors.SyncFailed with those that could not be set,
        when all others are."""
        missing: list[str] = []
        failed: list[str] = []
        for place in self.places:
            files = (version2 if place.version == 2 else version1)(limits, pids)
            for controller in place.controllers:
                missing += self._apply(place, files.get(controller, ()), failed)
        if failed:
            raise errors.SyncFailed("; ".join(failed))
        return missing

    def _apply(self, place: Place, files: tuple[tuple[str, str], ...], failed: list[str]) -> Iterator[str]:
        if place.version == 1 and files and files[0][0].startswith("memory."):
            files = _in_order(place.folder, files)
        known = [(file, text) for file, text in files if os.path.exists(os.path.join(place.folder, file))]
        if files and not known:
            yield files[0][0]
        held = False
        for file, text in known:
            if file == "cpuset.cpus" and place.version == 1 and not text:
                text = _read(os.path.dirname(place.folder), file).strip()
            if file == "memory.memsw.limit_in_bytes" and held:
                continue  # memory alone is more than that still
            problem = _set(place.folder, file, text)
            if problem is not None:
                held = held or file == "memory.limit_in_bytes"
                failed.append(problem)

    def used(self) -> Used:
        memory = cpu = None
        for place in self.places:
            with suppress(OSError, KeyError, ValueError):
                if "memory" in place.controllers:
                    memory = _memory(place)
            with suppress(OSError, KeyError, ValueError):
                if place.version == 1 and "cpuacct" in place.controllers:
                    cpu = int(Path(place.folder, "cpuacct.usage").read_text())
                elif place.version == 2:
                    cpu = int(_table(place.folder, "cpu.stat")["usage_usec"]) * 1000
        return Used(memory, cpu)


def _memory(place: Place) -> int:
    """Without what the kernel could take back at once, as docker counts it."""
    current, inactive = (
        ("memory.current", "inactive_file") if place.version == 2 else ("memory.usage_in_bytes", "total_inactive_file")
    )
    held = int(Path(place.folder, current).read_text())
    return max(held - int(_table(place.folder, "memory.stat").get(inactive, 0)), 0)


def _table(folder: str, file: str) -> dict[str, str]:
    lines = Path(folder, file).read_text().splitlines()
    return dict(line.split(None, 1) for line in lines if " " in line)


def _in_order(folder: str, files: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
    """Memory alone may never be more than memory and swap, not even between two writes."""
    memory, both, *others = files
    now = _read(folder, both[0]).strip()
    grows = now.isdecimal() and (memory[1] == _UNLIMITED_V1 or int(memory[1]) > int(now))
    return (both, memory, *others) if grows else (memory, both, *others)


def _set(folder: str, file: str, text: str) -> str | None:
    """None, or why not. Memory in use cannot be taken away by version 1: its limit is then what is used, so that it
    does not grow."""
    problem = ""
    for attempt in range(_BUSY_TRIES):
        try:
            _write(folder, file, text)
        except FileNotFoundError:
            return None  # it has ended
        except OSError as error:
            problem = error.strerror or "refused"
            if error.errno != errno.EBUSY:
                break
            time.sleep(0.02 * attempt)
        else:
            return None
    else:
        held = _read(folder, file.replace("limit", "usage")).strip()
        if held.isdecimal():
            with suppress(OSError):
                _write(folder, file, str(int(held) + 1024 * 1024))
            return f"It holds {held} bytes, more than the {text} it may have from now on: it cannot grow until it ends"
    return f"This machine does not take {file} = {text or 'nothing'}: {problem}"


def _read(folder: str, file: str) -> str:
    try:
        return Path(folder, file).read_text()
    except OSError:
        return ""


def _write(folder: str, file: str, text: str) -> None:
    descriptor = os.open(os.path.join(folder, file), os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, f"{text}\n".encode())
    finally:
        os.close(descriptor)
