"""`undrift doctor` and `undrift rebuild`: what is wrong, and read models made anew."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated, Literal

from services.cli_common import Exit, Flag, Instance, Problem, emit, remark, say

if TYPE_CHECKING:
    from services.doctor import Finding

#: Of `undrift doctor`, beside 0 and 1.
COULD_NOT_LOOK = Exit.USAGE
EXIT_CODES = "Exit codes: 0 all is well, 1 something is not, 2 it could not look."


def doctor(
    *,
    format: Literal["text", "json"] = "text",
    retry_parked: Annotated[bool, Flag] = False,
    instance: Instance = Instance(),
) -> Exit:
    """Look at everything and say what is wrong and what would help: settings of Postgres, the log, its hashes, the
    read models against a fresh fold of the log, JetStream against the log.

    It changes nothing, unless told to.

    Parameters
    ----------
    format
        `json` is the same as --json.
    retry_parked
        First apply the events again that a read model could not apply, after an update that can.
    """
    try:
        findings, retried = asyncio.run(_examine(instance, retry_parked))
    except Problem as problem:
        raise Problem(COULD_NOT_LOOK, problem.message, problem.name) from None
    well = all(finding.well for finding in findings)
    if instance.json or format == "json":
        found = [{"check": one.check, "well": one.well, "summary": one.summary, "help": one.help} for one in findings]
        emit({"well": well, "retried": retried, "findings": found})
    else:
        if retry_parked:
            say(f"{retried} parked events were applied")
        _print(findings, well)
    return Exit.OK if well else Exit.FAILED


def _print(findings: list[Finding], well: bool) -> None:
    width = max(len(one.check) for one in findings)
    for one in findings:
        say(f"{'well ' if one.well else 'NOT  '} {one.check:{width}}  {one.summary}")
        if one.help:
            say(f"{'':5} {'':{width}}  → {one.help}")
    say("All is well" if well else "Not all is well")


async def _examine(instance: Instance, retry: bool) -> tuple[list[Finding], int]:
    from infra import blobs_remote
    from infra.bus import Bus
    from infra.eventstore import epochs
    from services import cli_data, relay
    from services import doctor as examiner

    async with cli_data.opened(instance) as data:
        retried = await examiner.retry_parked(data.database, data.store) if retry else 0
        bus = Bus(data.settings.nats.url, data.settings.nats, name="undrift doctor", user="relay")
        await bus.connect()
        try:
            settings, epoch = data.settings, await epochs.current(data.database)
            mac_key = relay.key(data.master)
            compares = relay.Relay(data.store, bus, settings.relay, settings.nats, mac_key, epoch)
            folder = settings.directory / "blobs" / "library"
            contents = blobs_remote.contents(settings.blobs.url, folder)
            blobs = None if settings.blobs.url else folder
            doctor = examiner.Doctor(data.database, data.store, bus, compares, contents, blobs, settings.directory)
            return await doctor.examine(), retried
        finally:
            await bus.close()


def rebuild(*names: str, instance: Instance = Instance()) -> Exit:
    """Build read models anew from the log, beside the live ones, and put them in their place in one transaction.

    Parameters
    ----------
    names
        Which ones; all of them when none is given.
    """
    rebuilt = asyncio.run(_rebuild(names, instance))
    if instance.json:
        emit({"rebuilt": [{"name": name, "position": position} for name, position in rebuilt]})
    return Exit.OK


async def _rebuild(names: tuple[str, ...], instance: Instance) -> list[tuple[str, int]]:
    import projections
    from services import cli_data
    from services import doctor as examiner

    known = {one.NAME: one for one in projections.ALL}
    for name in names:
        if name not in known:
            raise Problem(Exit.USAGE, f"there is no read model {name}; there are {', '.join(known)}")
    rebuilt = []
    async with cli_data.opened(instance) as data:
        for name in dict.fromkeys(names or known):
            position = await examiner.rebuild(data.database, data.store, known[name])
            rebuilt.append((name, position))
            (remark if instance.json else say)(f"{name} is rebuilt, at position {position}")
    return rebuilt
