"""`undrift epoch`: the histories that this log has been, and another one by hand."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated

from cyclopts import App
from msgspec import to_builtins

from services.cli_common import Exit, Flag, Instance, emit, remark, say

if TYPE_CHECKING:
    from infra.eventstore.epochs import Epoch

app = App(
    name="epoch",
    help=(
        "List epochs, or open one. Every cursor, position and event id belongs to the epoch it was handed out in. "
        "After a restore another one begins by itself, and those of before are answered 410 with where to begin again."
    ),
)


@app.command(name="list")
def list_(*, instance: Instance = Instance()) -> Exit:
    """List the epochs of the log, the oldest first: since when, and behind which position."""
    found, _ = asyncio.run(_epochs(instance, new=False))
    if instance.json:
        emit({"epochs": [_shown(one) for one in found]})
        return Exit.OK
    for one in found:
        say(f"{one.epoch:>6}  {one.opened_at.isoformat(timespec='seconds')}  behind position {one.from_position}")
    return Exit.OK


@app.command
def new(*, yes: Annotated[bool, Flag] = False, instance: Instance = Instance()) -> Exit:
    """Open another epoch: when the log is not what clients have seen of it and nothing could notice by itself.

    Processes start again, JetStream is made anew, and whoever follows a feed begins from its start. Without `--yes` it
    only says so.

    Parameters
    ----------
    yes
        Do it.
    """
    found, made = asyncio.run(_epochs(instance, new=yes))
    if instance.json:
        emit({"present": _shown(found[-1]), "opened": None if made is None else _shown(made)})
        return Exit.OK
    if made is None:
        say(f"Epoch {found[-1].epoch} would end: every cursor is answered 410, JetStream is made anew")
        remark("Nothing is changed. With --yes another epoch begins.")
        return Exit.OK
    say(f"Epoch {made.epoch} begins behind position {made.from_position}")
    return Exit.OK


def _shown(epoch: Epoch) -> dict[str, object]:
    shown: dict[str, object] = to_builtins(epoch)
    return {"epoch": shown["epoch"], "fromPosition": shown["from_position"], "openedAt": shown["opened_at"]}


async def _epochs(instance: Instance, new: bool) -> tuple[list[Epoch], Epoch | None]:
    """All epochs as they are then, and the one that was opened."""
    from infra.eventstore import epochs
    from services import cli_data

    async with cli_data.opened(instance) as data:
        made = None
        if new:
            made = await epochs.advance(data.database, epochs.remembered(instance.directory))
            epochs.remember(instance.directory, made.epoch)
        return await epochs.all_(data.database), made
