"""Schedules: when an integration's jobs are due, by interval or by cron in a time zone, and which missed times are run.

A *due time* is what interval or expression say; with jitter it *fires* a little later, always by the same amount.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from importlib import resources
from itertools import islice
from typing import Annotated, Literal, assert_never
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError
from msgspec import Meta, Struct

from domain import errors

Overlap = Literal["queue", "skip", "cancel_other"]
CatchUp = Literal["none", "one", "all"]
Entry = Literal["main", "full"]
ENTRIES: tuple[Entry, ...] = ("main", "full")

INTERVAL_MAX = 31_536_000
JITTER_MAX = 86_400
CATCH_UP_MAX = 1000
TOLERANCE_S = 300
_CRON_LENGTH = 255
#: Clocks are set back by two hours at most: so far an earlier time on the clock may be a later time.
_FOLD = timedelta(hours=3)
_CHECKED_FROM = datetime(2000, 1, 1, tzinfo=UTC)


def _limits(**limits: object) -> Meta:
    """What documents say of a field; `check` says it to whoever gets it wrong."""
    return Meta(extra_json_schema=dict(limits))


_Seconds = Annotated[int | None, _limits(minimum=1, maximum=INTERVAL_MAX)]
_Cron = Annotated[str | None, _limits(maxLength=_CRON_LENGTH, examples=["30 2 * * 1-5"])]


class Schedule(Struct, frozen=True, rename="camel", omit_defaults=True):
    """`every` seconds or a `cron` expression of five fields, read in `timeZone` (IANA). Incremental jobs are due then,
    full ones at `fullEvery` or `fullCron`.

    `jitter`: up to so many seconds later. `overlap`: what becomes of a run whose time comes while another is open: it
    queues, is skipped, or the other is stopped for it. `catchUp`: how many of the times that were missed are run:
    none, one for all, or all, of these the last `catchUpLimit`. `tolerance`: a run that has not begun so many seconds
    after its time is overdue.
    """

    every: _Seconds = None
    cron: _Cron = None
    time_zone: str = "UTC"
    jitter: Annotated[int, _limits(minimum=0, maximum=JITTER_MAX)] = 0
    overlap: Overlap = "queue"
    catch_up: CatchUp = "one"
    catch_up_limit: Annotated[int, _limits(minimum=1, maximum=CATCH_UP_MAX)] = 24
    tolerance: Annotated[int, _limits(minimum=1, maximum=INTERVAL_MAX)] = TOLERANCE_S
    full_every: _Seconds = None
    full_cron: _Cron = None


class Timing(Struct, frozen=True):
    """One series of due times: `every` seconds from where it began, or by `cron`. `name` tells its jitter apart."""

    name: str
    every: int | None
    cron: str | None
    zone: str
    jitter: int


def timing(name: str, schedule: Schedule | None, entry: Entry = "main") -> Timing | None:
    """The due times of one entry of a schedule; None where there are none."""
    if schedule is None:
        return None
    every, cron = (schedule.every, schedule.cron) if entry == "main" else (schedule.full_every, schedule.full_cron)
    if every is None and cron is None:
        return None
    return Timing(f"{name}/{entry}", every, cron, schedule.time_zone, schedule.jitter)


def after(timing: Timing, at: datetime) -> datetime | None:
    """The first due time after a due time, or after the moment when the schedule begins; None when there is none."""
    if timing.every is not None:
        return at + timedelta(seconds=timing.every)
    return next((one for one in _cron(timing, at) if one > at), None)


def fires(timing: Timing, due: datetime) -> datetime:
    """When the run that is due then begins: at most the jitter later, the same for whoever asks."""
    if not timing.jitter:
        return due
    digest = hashlib.sha256(f"{timing.name}/{due.astimezone(UTC).isoformat()}".encode()).digest()
    return due + timedelta(milliseconds=int.from_bytes(digest[:8], "big") % (timing.jitter * 1000 + 1))


def first(name: str, schedule: Schedule | None, at: datetime) -> datetime | None:
    """When a schedule that begins then fires first, whichever entry it is."""
    found = []
    for entry in ENTRIES:
        series = timing(name, schedule, entry)
        due = None if series is None else after(series, at)
        if series is not None and due is not None:
            found.append(fires(series, due))
    return min(found, default=None)


def ripe(timing: Timing, due: datetime, now: datetime) -> Iterator[datetime]:
    """The due times from `due` on that have fired by now, the latest first."""
    return (one for one in _backwards(timing, due, now) if fires(timing, one) <= now)


def chosen(timing: Timing, schedule: Schedule, due: datetime, now: datetime) -> datetime | None:
    """Which due time to run now, where everything before `due` is settled; those before it are then settled too."""
    found = ripe(timing, due, now)
    if schedule.catch_up == "all":
        return min(islice(found, schedule.catch_up_limit), default=None)
    latest = next(found, None)
    late = latest is not None and is_late(timing, schedule, latest, now)
    return None if late and schedule.catch_up == "none" else latest


def is_late(timing: Timing, schedule: Schedule, due: datetime, now: datetime) -> bool:
    """Whether a run that has not begun by now is overdue."""
    return now > fires(timing, due) + timedelta(seconds=schedule.tolerance)


def passed(timing: Timing, due: datetime, now: datetime) -> datetime | None:
    """Where a schedule goes on that leaves out whatever has fired by now."""
    latest = next(ripe(timing, due, now), None)
    return due if latest is None else after(timing, latest)


def dropped(timing: Timing, schedule: Schedule, due: datetime, now: datetime) -> datetime | None:
    """Where a schedule goes on that makes up for nothing: with the latest due time, unless that too is late."""
    latest = next(ripe(timing, due, now), None)
    if latest is None:
        return due
    return after(timing, latest) if is_late(timing, schedule, latest, now) else latest


def skips(overlap: Overlap, entry: Entry, full: bool) -> bool:
    """Whether a run is left out because its time comes while another one, perhaps a full one, is open. A full run
    gives way to full ones only, and nothing stops a full run for one that is not."""
    match overlap:
        case "queue":
            return False
        case "skip":
            return entry == "main" or full
        case "cancel_other":
            return entry == "main" and full
        case _:
            assert_never(overlap)


def _backwards(timing: Timing, due: datetime, now: datetime) -> Iterator[datetime]:
    if timing.every is not None:
        step = timedelta(seconds=timing.every)
        for number in range((now - due) // step, -1, -1):
            yield due + number * step
        return
    for one in _cron(timing, now + _FOLD, reverse=True):
        if one < due:
            return
        if one <= now:
            yield one


def _cron(timing: Timing, at: datetime, *, reverse: bool = False) -> Iterator[datetime]:
    """Due times around a moment: near a change of the clocks also some on its other side."""
    assert timing.cron is not None
    for one in CronSim(timing.cron, at.astimezone(_zone(timing.zone)), reverse=reverse):
        yield one.astimezone(UTC)


@lru_cache
def _zones() -> frozenset[str]:
    return frozenset(resources.files("tzdata").joinpath("zones").read_text("ascii").split())


@lru_cache
def _zone(name: str) -> ZoneInfo:
    """Of the packaged database, so that all machines agree. Raises KeyError for an unknown name."""
    if name not in _zones():
        raise KeyError(name)
    with resources.files("tzdata").joinpath("zoneinfo", *name.split("/")).open("rb") as file:
        return ZoneInfo.from_file(file, key=name)


def check(schedule: Schedule) -> None:
    """Raises errors.Invalid, naming the field."""
    _one_of(schedule.every, schedule.cron, "every", "cron")
    _one_of(schedule.full_every, schedule.full_cron, "fullEvery", "fullCron")
    for name, seconds in (("every", schedule.every), ("fullEvery", schedule.full_every)):
        _within(name, seconds, 1, INTERVAL_MAX)
    if schedule.time_zone not in _zones():
        raise errors.Invalid("schedule.timeZone: not a time zone of the IANA database, such as Europe/Berlin")
    for name, expression in (("cron", schedule.cron), ("fullCron", schedule.full_cron)):
        _check_cron(name, expression, schedule.time_zone)
    shortest = min((one for one in (schedule.every, schedule.full_every) if one is not None), default=JITTER_MAX)
    _within("jitter", schedule.jitter, 0, min(shortest, JITTER_MAX))
    _within("catchUpLimit", schedule.catch_up_limit, 1, CATCH_UP_MAX)
    _within("tolerance", schedule.tolerance, 1, INTERVAL_MAX)
    if timing("", schedule) is None and timing("", schedule, "full") is None:
        raise errors.Invalid("schedule: every, cron, fullEvery or fullCron must say when")


def _one_of(every: int | None, cron: str | None, *names: str) -> None:
    if every is not None and cron is not None:
        raise errors.Invalid(f"schedule.{names[1]}: there is {names[0]} too; only one of them can say when")


def _within(name: str, value: int | None, least: int, most: int) -> None:
    if value is not None and not least <= value <= most:
        raise errors.Invalid(f"schedule.{name}: expected {least} to {most}")


def _check_cron(name: str, expression: str | None, zone: str) -> None:
    if expression is None:
        return
    if len(expression) > _CRON_LENGTH or len(expression.split()) != 5:
        raise errors.Invalid(f"schedule.{name}: expected five fields: minute, hour, day, month, day of the week")
    try:
        first = after(Timing("", None, expression, zone, 0), _CHECKED_FROM)
    except CronSimError as error:
        raise errors.Invalid(f"schedule.{name}: {str(error).lower()}") from None
    if first is None:
        raise errors.Invalid(f"schedule.{name}: that never comes")
