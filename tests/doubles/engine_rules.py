"""What the Docker Engine accepts and how it refuses: fields, versions, and the rules of limits with its own words.

The rules are those of moby's daemon/daemon_unix.go and container/container_unix.go.
"""

from __future__ import annotations

from typing import Any

MIB = 1024 * 1024
API, OLDEST_API = "1.43", "1.24"
CORES = 4
MEMORY = 8 * 1024 * MIB

_RESOURCES = {
    "BlkioWeight",
    "CpuPeriod",
    "CpuQuota",
    "CpuShares",
    "CpusetCpus",
    "CpusetMems",
    "Memory",
    "MemoryReservation",
    "MemorySwap",
    "NanoCpus",
    "OomKillDisable",
    "PidsLimit",
}
UPDATE = _RESOURCES | {"RestartPolicy"}
HOST = _RESOURCES | {
    "AutoRemove",
    "Binds",
    "CapAdd",
    "CapDrop",
    "Dns",
    "LogConfig",
    "Mounts",
    "NetworkMode",
    "PortBindings",
    "ReadonlyRootfs",
    "RestartPolicy",
    "SecurityOpt",
    "Tmpfs",
    "UsernsMode",
}
CONFIG = {
    "AttachStderr",
    "AttachStdin",
    "AttachStdout",
    "Cmd",
    "Domainname",
    "Entrypoint",
    "Env",
    "ExposedPorts",
    "HostConfig",
    "Hostname",
    "Image",
    "Labels",
    "OpenStdin",
    "StdinOnce",
    "StopSignal",
    "Tty",
    "User",
    "WorkingDir",
}
_WHOLE = {"BlkioWeight", "CpuPeriod", "CpuQuota", "CpuShares", "Memory", "MemoryReservation", "MemorySwap", "PidsLimit"}


class Refusal(Exception):
    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


def known(body: Any, fields: set[str], what: str) -> dict[str, Any]:
    """The real engine overlooks what it does not know; here it is a mistake of ours."""
    if not isinstance(body, dict):
        raise Refusal(400, f"{what}: not an object")
    if unknown := sorted(body.keys() - fields):
        raise Refusal(400, f"{what}: unknown fields {unknown}")
    for name in _WHOLE & body.keys():
        if isinstance(body[name], bool) or not isinstance(body[name], int):
            raise Refusal(400, f"json: cannot unmarshal into Go struct field {what}.{name} of type int64")
    return body


def limits(host: dict[str, Any], update: bool) -> list[str]:
    """Refuses what cannot be; the warnings."""
    memory, swap, reservation = (host.get(name) or 0 for name in ("Memory", "MemorySwap", "MemoryReservation"))
    period, quota = host.get("CpuPeriod") or 0, host.get("CpuQuota") or 0
    weight = host.get("BlkioWeight") or 0
    if memory != 0 and memory < 6 * MIB:
        raise Refusal(400, "Minimum memory limit allowed is 6MB")
    if memory > 0 and 0 < swap < memory:
        raise Refusal(400, "Minimum memoryswap limit should be larger than memory limit, see usage")
    if memory == 0 and swap > 0 and not update:
        raise Refusal(400, "You should always set the Memory limit when using Memoryswap limit, see usage")
    if 0 < reservation < 6 * MIB:
        raise Refusal(400, "Minimum memory reservation allowed is 6MB")
    if memory > 0 and reservation > 0 and memory < reservation:
        raise Refusal(400, "Minimum memory limit can not be less than memory reservation limit, see usage")
    if period and not 1000 <= period <= 1_000_000:
        raise Refusal(400, "CPU cfs period can not be less than 1ms (i.e. 1000) or larger than 1s (i.e. 1000000)")
    if 0 < quota < 1000:
        raise Refusal(400, "CPU cfs quota can not be less than 1ms (i.e. 1000)")
    _cpuset(host.get("CpusetCpus") or "")
    if weight and not 10 <= weight <= 1000:
        raise Refusal(400, "Range of blkio weight is from 10 to 1000")
    if host.get("OomKillDisable") and not memory:
        return [
            "OOM killer is disabled for the container, but no memory limit is set, this can result in the system "
            "running out of resources."
        ]
    return []


def _cpuset(text: str) -> None:
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        try:
            wanted = range(int(first), int(last or first) + 1)
        except ValueError:
            raise Refusal(400, f"Invalid value {text} for cpuset cpus") from None
        if any(number >= CORES for number in wanted):
            available = f"0-{CORES - 1}"
            raise Refusal(400, f"Requested CPUs are not available - requested {text}, available: {available}")


def updated(present: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Into what is there: what is 0 or empty stays as it was."""
    memory, swap = wanted.get("Memory") or 0, wanted.get("MemorySwap") or 0
    if memory > (present.get("MemorySwap") or 0) and swap == 0 and memory and (present.get("MemorySwap") or 0) >= 0:
        raise Refusal(
            409,
            "Memory limit should be smaller than already set memoryswap limit, update the memoryswap at the same time",
        )
    present.update({name: value for name, value in wanted.items() if value})
