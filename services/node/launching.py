"""What is started: a server's configuration with its secrets, its folder, what it may have mounted."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence

from domain import errors, server_config
from domain.server_config import Configuration, Mount
from infra.config import Settings
from infra.runtimes import Launch
from infra.volumes import Volumes
from services.node import writing


async def prepared(
    settings: Settings, volumes: Volumes, one: Configuration, interface: str
) -> tuple[Launch, Sequence[str]]:
    """From a configuration with its secrets; and what is to be said about it. Its folder is made, and what the Panel
    wants in its files is written. Raises errors.SyncFailed."""
    allowed, refused = mounts(one.mounts, settings.servers.allowed_mounts)
    try:
        folder = await asyncio.to_thread(volumes.make, one.uuid)
        said = await writing.written(volumes, one, interface)
    except OSError as error:
        raise errors.SyncFailed(f"The folder of the server is not as it should be: {error.strerror}") from None
    launch = Launch(
        uuid=one.uuid,
        folder=str(folder),
        image=one.startup.image,
        invocation=one.startup.invocation,
        environment=server_config.variables(one, settings.servers.timezone),
        limits=server_config.limits(one.build),
        mounts=allowed,
        allocations=one.allocations,
        labels=one.startup.labels,
        oom_disabled=one.build.oom_disabled,
    )
    return launch, [*said, *(f"{mount.source} may not be mounted here" for mount in refused)]


def mounts(wanted: Sequence[Mount], allowed: Sequence[str]) -> tuple[tuple[Mount, ...], Sequence[Mount]]:
    """Those below one of the folders, by what they are called, and the others."""
    below = [os.path.normpath(one) for one in allowed]
    good = tuple(one for one in wanted if any(_within(os.path.normpath(one.source), folder) for folder in below))
    return good, [one for one in wanted if one not in good]


def _within(path: str, folder: str) -> bool:
    return os.path.isabs(path) and os.path.commonpath([path, folder]) == folder
