"""The role: a host key of its own, a port, and what its connections share."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import asyncssh
import structlog

from infra import config, processes
from infra.panel import Panel
from infra.volumes import Volumes
from services.main import Process
from services.sftp.activity import Reporter
from services.sftp.logins import Door, House
from services.sftp.rooms import Hub

log = structlog.get_logger("sftp")

_VERSION = "Undrift"
#: Calls into the file system at the same time, of all servers.
_THREADS = 32
#: Of all connections, the part that one server may have; and how often a client is asked whether it is there, in vain.
_PART, _KEEPALIVES = 2, 3
#: How long connections have to go, at the end.
_END_S = 2.0


def host_key(directory: Path) -> asyncssh.SSHKey:
    """Made at the first start; all processes of an installation show the same one."""

    def make() -> str:
        return asyncssh.generate_private_key("ssh-ed25519").export_private_key().decode().strip()

    return asyncssh.import_private_key(processes.secret(directory / "secrets" / "sftp_host_ed25519.key", make) + "\n")


def bind(settings: config.Sftp) -> list[socket.socket]:
    """Raises config.InvalidSetting for an address that cannot be listened on."""
    try:
        found = socket.getaddrinfo(
            settings.host or None, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        family, *_, address = found[0]
        return [socket.create_server(address[:2], family=family, backlog=128)]
    except OSError as error:
        place = f"{settings.host}:{settings.port}"
        raise config.InvalidSetting(f"sftp.port: {place} cannot be listened on ({error.strerror})") from None


async def run(process: Process) -> None:
    """The role."""
    settings = process.settings.sftp
    logging.getLogger("asyncssh").setLevel(logging.CRITICAL)
    os.umask(0o022)
    key = await asyncio.to_thread(host_key, process.settings.directory)
    most = max(settings.connections // _PART, 1)
    hub = Hub(process.store, process.tail, process.bus, Volumes(process.settings), most)
    pool = ThreadPoolExecutor(_THREADS, "sftp")
    try:
        async with Panel(process.settings.panel) as panel:
            reporter = Reporter(panel)
            house = House(settings, hub, panel, reporter, pool)
            async with asyncio.TaskGroup() as group:
                following = [group.create_task(one) for one in (hub.run(), reporter.run())]
                try:
                    await _listen(process, house, key)
                finally:
                    for task in following:
                        task.cancel()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


async def _listen(process: Process, house: House, key: asyncssh.SSHKey) -> None:
    settings = process.settings.sftp
    (listening,) = bind(settings)
    server = await asyncssh.listen(
        sock=listening,
        server_factory=lambda: Door(house),
        server_host_keys=[key],
        server_version=_VERSION,
        allow_pty=False,
        agent_forwarding=False,
        x11_forwarding=False,
        line_editor=False,
        compression_algs=None,
        gss_host=None,
        kbdint_auth=False,
        host_based_auth=False,
        login_timeout=settings.login_s,
        keepalive_interval=settings.idle_s,
        keepalive_count_max=_KEEPALIVES,
        encoding=None,
    )
    host, port = listening.getsockname()[:2]
    process.announced.update(host=host, port=port)
    process.ready.set()
    log.info("listening for SFTP", port=port)
    try:
        await process.stopping.wait()
    finally:
        house.is_closed = True
        server.close()
        for door in list(house.doors):
            door.end()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_END_S):
                while house.doors:
                    await asyncio.sleep(0.01)
