"""Devices that have caught up: their ack reaches the head of the library, and there was something new to them."""

from __future__ import annotations

from domain import devices
from projections import library as library_read
from services.gateway.routes import Call

# What is new to a device are the changes that it did not make itself: those between what was judged before and its
# ack, and those behind its ack.
_NEWS = f"""
select (select count(*) from {library_read.SCHEMA}.versions where tenant = $1 and owner = $2
        and from_pos > $4 and from_pos <= $5 and device is distinct from $3) as changes,
    exists (select from {library_read.SCHEMA}.versions where tenant = $1 and owner = $2
        and from_pos > $5 and device is distinct from $3) as behind
"""


async def judge(call: Call, device: str, judged: int, acked: int) -> None:
    """Says that a device has caught up, if its ack at position `acked` leaves nothing behind and covers a change that
    was new to it behind position `judged`, up to which its acks have been looked at.

    The position is noted after the event, and the event is decided on the device's own stream: whatever is lost or
    comes twice in between, an ack that is said again finds the one event, or makes it.
    """
    process, owner = call.api.process, call.principal.owner
    news = await process.db.fetchrow(_NEWS, call.tenant, owner, device, judged, acked)
    assert news is not None
    if news["behind"]:
        return
    if news["changes"]:
        command = devices.SayCaughtUp(acked, news["changes"])
        await process.store.execute(devices, device, command, tenant=call.tenant, metadata=call.metadata())
    await process.db.execute(
        "update undrift.device_state set judged_pos = greatest(judged_pos, $2) where device = $1", device, acked
    )
