"""`undrift erase`: whatever is personal of a user goes, everywhere, for ever."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated

from msgspec.structs import asdict

from services.cli_common import Exit, Flag, Instance, Problem, emit, remark, say

if TYPE_CHECKING:
    from services.cli_data import Data
    from services.erasing import Eraser, Extent, Report


def erase(
    subject: str,
    /,
    *,
    tenant: str = "main",
    yes: Annotated[bool, Flag] = False,
    instance: Instance = Instance(),
) -> Exit:
    """Erase a user: destroy the key that their names and paths are sealed under, and purge the rest.

    Without `--yes` it only says what there is. With it, nothing brings back what was theirs: not a restart, not a
    rebuild, not a restored dump, for the data directory keeps a list of who is erased (secrets/erased.list, by id). The
    log keeps its events and their hashes; what was personal in them reads "erased". Copies elsewhere, such as backups
    of the database that hold the keys, are yours to see to.

    Parameters
    ----------
    subject
        The user's name or id.
    tenant
        The tenant that they belong to.
    yes
        Do it.
    """
    id, extent, report = asyncio.run(_erase(subject, tenant, yes, instance))
    if instance.json:
        emit(
            {"id": id, "tenant": tenant, "found": asdict(extent), "erased": None if report is None else asdict(report)}
        )
    else:
        _tell(id, extent, report)
    return Exit.OK if report is None or report.complete else Exit.UNREACHABLE


def _tell(id: str, extent: Extent, report: Report | None) -> None:
    say(
        f"{id}: {extent.events} events, {extent.devices} devices, {extent.sessions} sessions, {extent.uploads} uploads"
        f" under way, {extent.blobs} blobs with {extent.bytes} bytes"
    )
    if report is None:
        remark("Nothing is changed. With --yes it is erased, for ever.")
        return
    say(f"Erased at position {report.position}: {report.blobs} blobs, {report.messages} messages in JetStream")
    if not report.complete:
        remark("The key is destroyed. JetStream could not be reached: the core process goes on as soon as it can.")


async def _erase(subject: str, tenant: str, yes: bool, instance: Instance) -> tuple[str, Extent, Report | None]:
    from domain import errors
    from infra import blobs_remote
    from infra.bus import Bus
    from services import cli_data
    from services.erasing import Eraser
    from services.gateway.accounts import name_key

    async with cli_data.opened(instance) as data:
        settings = data.settings
        bus = Bus(settings.nats.url, settings.nats, name="undrift erase", user="relay")
        contents = blobs_remote.contents(settings.blobs.url, settings.directory / "blobs" / "library")
        eraser = Eraser(data.store, settings.directory, contents, bus)
        try:
            id = await eraser.find(tenant, subject, name_key(data.master, tenant, subject))
            extent = await eraser.extent(tenant, id)
            if not yes:
                return id, extent, None
            await bus.connect()
            return id, extent, await _carried_out(data, eraser, tenant, id)
        except errors.NotFound as error:
            raise Problem(Exit.FAILED, str(error), "not_found") from None
        finally:
            await bus.close()


async def _carried_out(data: Data, eraser: Eraser, tenant: str, id: str) -> Report:
    report = await eraser.erase(tenant, id)
    await data.caught_up(report.position)
    return report
