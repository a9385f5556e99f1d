"""What the Docker Engine is told of a server: its container and its limits, as the real Wings makes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from domain.server_config import Allocations, Limits
from infra.runtimes import Launch
from infra.runtimes.docker_api import Machine

#: Where a server finds its files.
HOME = "/home/container"
#: Labels of a container of ours: the installation it belongs to, and the server it is.
INSTALLATION, SERVER = "undrift.installation", "undrift.server"

_TMP_MB = 100
_LOG = {"Type": "json-file", "Config": {"max-size": "5m", "max-file": "1"}}
_DROPPED = (
    "setpcap",
    "mknod",
    "audit_write",
    "net_raw",
    "dac_override",
    "fowner",
    "fsetid",
    "net_bind_service",
    "sys_chroot",
    "setfcap",
)


def resources(limits: Limits, pids: int) -> dict[str, Any]:
    """Of a new container, where 0 and the empty text mean no limit; of the quota of CPU -1 does."""
    return {
        "Memory": limits.memory,
        "MemoryReservation": limits.memory_reservation,
        "MemorySwap": limits.memory_swap if limits.memory or limits.memory_swap < 0 else 0,
        "CpuQuota": limits.cpu_quota or -1,
        "CpuPeriod": limits.cpu_period,
        "CpuShares": limits.cpu_shares,
        "CpusetCpus": limits.cpuset,
        "BlkioWeight": limits.io_weight,
        "PidsLimit": pids,
    }


def updated(limits: Limits, pids: int, machine: Machine) -> dict[str, Any]:
    """Of a container there is, where 0 and the empty text mean what it was: so whoever shall have no limit any more
    is given all that the machine has."""
    made = resources(limits, pids)
    if not limits.memory:
        made |= {"Memory": machine.memory, "MemoryReservation": machine.memory, "MemorySwap": -1}
    if not limits.cpuset:
        made["CpusetCpus"] = "0" if machine.cores < 2 else f"0-{machine.cores - 1}"
    return made


def container(
    launch: Launch,
    *,
    owner: tuple[int, int],
    installation: str,
    network: str,
    interface: str,
    pids: int,
    machine: Machine,
) -> dict[str, Any]:
    """The body that makes it. `interface` is this machine's address in the network, which stands in for 127.0.0.1:
    in a container that is the container itself."""
    bindings = ports(launch.allocations, interface)
    limits = resources(launch.limits, pids)
    if machine.oom_kill_disable:
        limits["OomKillDisable"] = launch.oom_disabled
    return {
        "Hostname": launch.uuid,
        "User": f"{owner[0]}:{owner[1]}",
        "AttachStdin": True,
        "AttachStdout": True,
        "AttachStderr": True,
        "OpenStdin": True,
        "Tty": True,
        "ExposedPorts": {port: {} for port in bindings},
        "Image": image(launch),
        "Env": [f"{name}={value}" for name, value in environment(launch, interface).items()],
        "Labels": {
            **launch.labels,
            "Service": "Undrift",
            "ContainerType": "server_process",
            INSTALLATION: installation,
            SERVER: launch.uuid,
        },
        "HostConfig": {
            **limits,
            "PortBindings": bindings,
            "Mounts": [
                _mount(launch.folder, HOME, False),
                *(_mount(m.source, m.target, m.read_only) for m in launch.mounts),
            ],
            "Tmpfs": {"/tmp": f"rw,exec,nosuid,size={_TMP_MB}M"},  # noqa: S108 - the container's own
            "LogConfig": _LOG,
            "SecurityOpt": ["no-new-privileges"],
            "ReadonlyRootfs": True,
            "CapDrop": list(_DROPPED),
            "NetworkMode": network,
        },
    }


def image(launch: Launch) -> str:
    """Its name; with a `~` before it, it is of this machine and never pulled."""
    return launch.image.removeprefix("~")


def environment(launch: Launch, interface: str) -> Mapping[str, str]:
    made = dict(launch.environment)
    made.setdefault("STARTUP", launch.invocation)
    if made.get("SERVER_IP") == "127.0.0.1":
        made["SERVER_IP"] = interface
    return made


def ports(allocations: Allocations, interface: str) -> dict[str, list[dict[str, str]]]:
    """Each port by TCP and by UDP, at each of its addresses."""
    made: dict[str, list[dict[str, str]]] = {}
    for ip, numbers in allocations.mappings.items():
        for number in numbers:
            if not 0 < number < 65_536:
                continue
            for kind in ("tcp", "udp"):
                bound = {"HostIp": interface if ip == "127.0.0.1" else ip, "HostPort": str(number)}
                made.setdefault(f"{number}/{kind}", []).append(bound)
    return made


def outgoing(allocations: Allocations) -> str | None:
    """The network of a server whose own connections must come from the address it is reached at."""
    if not allocations.force_outgoing_ip or allocations.default is None:
        return None
    return "ip-" + allocations.default.ip.replace(".", "-").replace(":", "-")


def _mount(source: str, target: str, read_only: bool) -> dict[str, Any]:
    return {"Type": "bind", "Source": source, "Target": target, "ReadOnly": read_only}
