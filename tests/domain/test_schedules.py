"""Schedules: due times across changes of the clocks, and which of the missed ones are run. The tables are by hand."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import islice

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from msgspec.structs import replace

from domain import errors, schedules
from domain.schedules import Schedule, Timing


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def cron(expression: str, zone: str = "UTC", jitter: int = 0) -> Timing:
    return Timing("tenant/i/main", None, expression, zone, jitter)


def every(seconds: int, jitter: int = 0) -> Timing:
    return Timing("tenant/i/main", seconds, None, "UTC", jitter)


def first(timing: Timing, at: datetime, count: int) -> list[datetime]:
    found: list[datetime] = []
    while len(found) < count and (due := schedules.after(timing, at)) is not None:
        found.append(at := due)
    return found


#: Zone, expression, begins (UTC), due times (UTC). Berlin: clocks go forward on 28 March 2027 at 02:00 (01:00 UTC),
#: back on 31 October 2027 at 03:00 (01:00 UTC). New York: forward on 14 March 2027 at 02:00 (07:00 UTC), back on
#: 7 November 2027 at 02:00 (06:00 UTC).
TABLE: list[tuple[str, str, str, list[str]]] = [
    # Berlin, spring: 02:30 does not exist, so the run is at 03:00, once; later days are an hour earlier in UTC.
    (
        "Europe/Berlin",
        "30 2 * * *",
        "2027-03-26T12:00",
        ["2027-03-27T01:30", "2027-03-28T01:00", "2027-03-29T00:30", "2027-03-30T00:30"],
    ),
    # Times on both sides of the gap stay; the two inside it fall together on 03:00.
    (
        "Europe/Berlin",
        "0,30 1-3 * * *",
        "2027-03-27T23:00",
        ["2027-03-28T00:00", "2027-03-28T00:30", "2027-03-28T01:00", "2027-03-28T01:30", "2027-03-28T23:00"],
    ),
    # Every so many minutes there is no gap.
    (
        "Europe/Berlin",
        "*/20 * * * *",
        "2027-03-28T00:30",
        ["2027-03-28T00:40", "2027-03-28T01:00", "2027-03-28T01:20", "2027-03-28T01:40"],
    ),
    ("Europe/Berlin", "0 0 * * *", "2027-03-27T12:00", ["2027-03-27T23:00", "2027-03-28T22:00", "2027-03-29T22:00"]),
    # Berlin, autumn: 02:30 comes twice, the run is at the first.
    (
        "Europe/Berlin",
        "30 2 * * *",
        "2027-10-29T12:00",
        ["2027-10-30T00:30", "2027-10-31T00:30", "2027-11-01T01:30", "2027-11-02T01:30"],
    ),
    # Begun between the two 02:30: the first has passed, the second is none.
    ("Europe/Berlin", "30 2 * * *", "2027-10-31T01:10", ["2027-11-01T01:30"]),
    # Every hour means every hour, also the one that comes twice.
    (
        "Europe/Berlin",
        "0 * * * *",
        "2027-10-30T23:30",
        ["2027-10-31T00:00", "2027-10-31T01:00", "2027-10-31T02:00", "2027-10-31T03:00"],
    ),
    ("Europe/Berlin", "0 6 * * 1", "2027-10-30T00:00", ["2027-11-01T05:00", "2027-11-08T05:00"]),
    # New York, spring.
    (
        "America/New_York",
        "30 2 * * *",
        "2027-03-12T12:00",
        ["2027-03-13T07:30", "2027-03-14T07:00", "2027-03-15T06:30"],
    ),
    ("America/New_York", "0 3 * * *", "2027-03-13T00:00", ["2027-03-13T08:00", "2027-03-14T07:00", "2027-03-15T07:00"]),
    # New York, autumn.
    (
        "America/New_York",
        "30 1 * * *",
        "2027-11-05T12:00",
        ["2027-11-06T05:30", "2027-11-07T05:30", "2027-11-08T06:30"],
    ),
    (
        "America/New_York",
        "*/30 1 * * *",
        "2027-11-07T04:45",
        ["2027-11-07T05:00", "2027-11-07T05:30", "2027-11-07T06:00", "2027-11-07T06:30", "2027-11-08T06:00"],
    ),
    # Where clocks change by half an hour, and where they do not.
    ("Australia/Lord_Howe", "15 2 * * *", "2027-10-02T00:00", ["2027-10-02T15:30", "2027-10-03T15:15"]),
    ("Asia/Kolkata", "30 5 * * *", "2027-03-27T12:00", ["2027-03-28T00:00", "2027-03-29T00:00"]),
    ("UTC", "0 0 29 2 *", "2027-03-01T00:00", ["2028-02-29T00:00", "2032-02-29T00:00"]),
    ("UTC", "15 9 L * *", "2027-01-31T10:00", ["2027-02-28T09:15", "2027-03-31T09:15"]),
    ("UTC", "0 12 1 * 5", "2027-01-01T13:00", ["2027-01-08T12:00", "2027-01-15T12:00", "2027-01-22T12:00"]),
]


@pytest.mark.parametrize(("zone", "expression", "begins", "expected"), TABLE)
def test_due_times(zone: str, expression: str, begins: str, expected: list[str]) -> None:
    found = first(cron(expression, zone), utc(begins), len(expected))
    assert [utc(text) for text in expected] == found


@pytest.mark.parametrize(("zone", "expression", "begins", "expected"), TABLE)
def test_looking_back_finds_the_same(zone: str, expression: str, begins: str, expected: list[str]) -> None:
    dues = [utc(text) for text in expected]
    for number, now in enumerate(dues):
        back = list(schedules.ripe(cron(expression, zone), dues[0], now + timedelta(seconds=59)))
        assert dues[: number + 1] == back[::-1]


DAYS = st.sampled_from([utc("2027-10-30T00:00"), utc("2027-03-27T00:00")])
BERLIN_HOURS = st.builds(lambda day, passed: day + passed, DAYS, st.timedeltas(timedelta(), timedelta(days=2)))
FIELDS = st.tuples(
    st.sampled_from(["0", "30", "15,45", "*/20", "*", "59"]),
    st.sampled_from(["1", "2", "3", "1-3", "*", "*/2", "0"]),
)


@given(FIELDS, BERLIN_HOURS, st.integers(0, 6 * 3600))
def test_forwards_and_backwards_agree(fields: tuple[str, str], begins: datetime, seconds: int) -> None:
    """Around a change of the clocks, whatever the moment from which one looks."""
    timing = cron(f"{fields[0]} {fields[1]} * * *", "Europe/Berlin")
    now = begins + timedelta(seconds=seconds)
    due = schedules.after(timing, begins)
    assert due is not None
    forward = [one for one in first(timing, begins, seconds // 60 + 2) if one <= now]
    assert forward == list(schedules.ripe(timing, due, now))[::-1]
    assert forward == sorted(set(forward))


@given(st.integers(1, schedules.INTERVAL_MAX), BERLIN_HOURS, st.data())
def test_an_interval_is_a_grid(seconds: int, at: datetime, data: st.DataObject) -> None:
    timing, step = every(seconds), timedelta(seconds=seconds)
    dues = first(timing, at, 5)
    assert [at + n * step for n in range(1, 6)] == dues
    now = at + data.draw(st.timedeltas(timedelta(), 6 * step))
    found = list(islice(schedules.ripe(timing, dues[0], now), 10))
    assert found == [at + n * step for n in range((now - at) // step, 0, -1)]
    going_on = schedules.passed(timing, dues[0], now)
    assert going_on is not None
    assert going_on > now
    assert (going_on - at) % step == timedelta()
    assert going_on - now <= step or going_on == dues[0]


@given(st.integers(1, 10_000), st.integers(0, 10_000), st.integers(0, 50))
def test_jitter_is_the_same_for_whoever_asks_and_keeps_the_order(seconds: int, jitter: int, number: int) -> None:
    assume(jitter <= seconds)
    timing = every(seconds, jitter)
    due = utc("2027-01-01T00:00") + number * timedelta(seconds=seconds)
    fires = schedules.fires(timing, due)
    assert fires == schedules.fires(timing, due)
    assert due <= fires <= due + timedelta(seconds=jitter)
    assert list(schedules.ripe(timing, due, fires)) == [due]
    assert list(schedules.ripe(timing, due, fires - timedelta(microseconds=1))) == []
    assert due <= fires <= schedules.fires(timing, due + timedelta(seconds=seconds))


def test_integrations_that_are_due_together_spread() -> None:
    due = utc("2027-01-01T00:00")
    fires = {schedules.fires(replace(every(60, 60), name=f"main/i{n}"), due) for n in range(100)}
    assert len(fires) > 95


# What of missed times is run.

#: now, catch-up: the due times that are run one after the other, of a run every hour whose first open time is 09:00,
#: with a tolerance of five minutes. The scheduler was away from before 09:00 until now.
MISSED: list[tuple[str, str, list[str]]] = [
    ("08:59", "none", []),
    ("08:59", "all", []),
    ("09:00", "none", ["09:00"]),
    ("09:05", "none", ["09:00"]),
    ("09:06", "none", []),
    ("09:06", "one", ["09:00"]),
    ("12:00", "none", ["12:00"]),
    ("12:04", "none", ["12:00"]),
    ("12:30", "none", []),
    ("12:00", "one", ["12:00"]),
    ("12:30", "one", ["12:00"]),
    ("12:00", "all", ["09:00", "10:00", "11:00", "12:00"]),
    ("12:30", "all", ["09:00", "10:00", "11:00", "12:00"]),
]


@pytest.mark.parametrize("way", [every(3600), cron("0 * * * *", "Europe/Berlin")], ids=["interval", "cron"])
@pytest.mark.parametrize(("now", "catch_up", "expected"), MISSED)
def test_what_is_made_up_for(now: str, catch_up: schedules.CatchUp, expected: list[str], way: Timing) -> None:
    day = "2027-06-01T"
    schedule = Schedule(every=3600, catch_up=catch_up, tolerance=300)
    due: datetime | None = utc(f"{day}09:00")
    run = []
    while due is not None and (chosen := schedules.chosen(way, schedule, due, utc(day + now))) is not None:
        run.append(chosen)
        due = schedules.after(way, chosen)
    assert [utc(day + text) for text in expected] == run


@pytest.mark.parametrize(("limit", "expected"), [(1, "12:00"), (2, "11:00"), (4, "09:00"), (100, "09:00")])
def test_of_all_only_the_last_few_are_made_up_for(limit: int, expected: str) -> None:
    schedule = Schedule(every=3600, catch_up="all", catch_up_limit=limit)
    found = schedules.chosen(every(3600), schedule, utc("2027-06-01T09:00"), utc("2027-06-01T12:30"))
    assert utc(f"2027-06-01T{expected}") == found


@pytest.mark.parametrize(
    ("now", "expected"), [("08:00", "09:00"), ("12:00", "12:00"), ("12:05", "12:00"), ("12:06", "13:00")]
)
def test_where_a_schedule_goes_on_that_makes_up_for_nothing(now: str, expected: str) -> None:
    schedule = Schedule(every=3600, catch_up="none", tolerance=300)
    found = schedules.dropped(every(3600), schedule, utc("2027-06-01T09:00"), utc(f"2027-06-01T{now}"))
    assert utc(f"2027-06-01T{expected}") == found


@pytest.mark.parametrize(("now", "expected"), [("08:00", "09:00"), ("12:00", "13:00"), ("12:59", "13:00")])
def test_where_a_schedule_goes_on_that_skips(now: str, expected: str) -> None:
    found = schedules.passed(every(3600), utc("2027-06-01T09:00"), utc(f"2027-06-01T{now}"))
    assert utc(f"2027-06-01T{expected}") == found


def test_years_of_downtime_cost_nothing() -> None:
    begun, now = utc("2007-01-01T00:00"), utc("2027-01-01T00:00")
    for way in (every(1), cron("* * * * *")):
        assert schedules.chosen(way, Schedule(catch_up="one"), begun, now) == now
        found = schedules.chosen(way, Schedule(catch_up="all", catch_up_limit=3), begun, now)
        assert found is not None
        assert now - found <= timedelta(minutes=2)


# What may be said.


def test_two_entries() -> None:
    schedule = Schedule(cron="*/5 * * * *", full_cron="0 3 * * 0", time_zone="Europe/Berlin", jitter=7)
    schedules.check(schedule)
    main, full = schedules.timing("t/i", schedule), schedules.timing("t/i", schedule, "full")
    assert main == Timing("t/i/main", None, "*/5 * * * *", "Europe/Berlin", 7)
    assert full == Timing("t/i/full", None, "0 3 * * 0", "Europe/Berlin", 7)
    assert schedules.timing("t/i", Schedule(every=5), "full") is None
    assert schedules.timing("t/i", None) is None


EVERY = Schedule(every=60)


@pytest.mark.parametrize(
    ("schedule", "said"),
    [
        (Schedule(), "schedule: every, cron, fullEvery or fullCron must say when"),
        (Schedule(every=0), "schedule.every: expected 1 to 31536000"),
        (Schedule(every=-5), "schedule.every: expected 1 to 31536000"),
        (Schedule(full_every=10**9), "schedule.fullEvery: expected 1 to 31536000"),
        (Schedule(every=5, cron="* * * * *"), "schedule.cron: there is every too; only one of them can say when"),
        (Schedule(full_every=5, full_cron="* * * * *"), "schedule.fullCron: there is fullEvery too"),
        (Schedule(cron=""), "schedule.cron: expected five fields"),
        (Schedule(cron="* * * *"), "schedule.cron: expected five fields"),
        (Schedule(cron="0 * * * * *"), "schedule.cron: expected five fields"),
        (Schedule(cron="@daily"), "schedule.cron: expected five fields"),
        (Schedule(cron="* " * 4 + "*" * 250), "schedule.cron: expected five fields"),
        (Schedule(cron="60 * * * *"), "schedule.cron: bad minute"),
        (Schedule(cron="* 24 * * *"), "schedule.cron: bad hour"),
        (Schedule(cron="* * 0 * *"), "schedule.cron: bad day-of-month"),
        (Schedule(cron="* * * 13 *"), "schedule.cron: bad month"),
        (Schedule(full_cron="* * * * 8"), "schedule.fullCron: bad day-of-week"),
        (Schedule(cron="5-1 * * * *"), "schedule.cron: bad minute"),
        (Schedule(cron="*/0 * * * *"), "schedule.cron: bad minute"),
        (Schedule(cron="٣ * * * *"), "schedule.cron: bad minute"),
        (Schedule(cron="0 0 31 2 *"), "schedule.cron: bad day-of-month"),
        (Schedule(cron="0 0 30 2 *"), "schedule.cron: bad day-of-month"),
        (replace(EVERY, time_zone="Mars/Olympus"), "schedule.timeZone: not a time zone"),
        (replace(EVERY, time_zone="../../etc/passwd"), "schedule.timeZone: not a time zone"),
        (replace(EVERY, time_zone="Europe"), "schedule.timeZone: not a time zone"),
        (replace(EVERY, time_zone=""), "schedule.timeZone: not a time zone"),
        (replace(EVERY, jitter=-1), "schedule.jitter: expected 0 to 60"),
        (replace(EVERY, jitter=61), "schedule.jitter: expected 0 to 60"),
        (Schedule(cron="* * * * *", jitter=86_401), "schedule.jitter: expected 0 to 86400"),
        (replace(EVERY, catch_up_limit=0), "schedule.catchUpLimit: expected 1 to 1000"),
        (replace(EVERY, tolerance=0), "schedule.tolerance: expected 1 to 31536000"),
    ],
)
def test_what_cannot_be_is_named(schedule: Schedule, said: str) -> None:
    with pytest.raises(errors.Invalid) as raised:
        schedules.check(schedule)
    assert raised.value.message.startswith(said)


@pytest.mark.parametrize(
    "expression", ["* * * * *", "*/7 1,3,5 1-7/2 JAN-MAR MON", "0 0 L * *", "0 0 LW * *", "5 4 * * 5L", "0 0 * * MON#2"]
)
def test_expressions(expression: str) -> None:
    schedules.check(Schedule(cron=expression, time_zone="America/New_York", jitter=60))


@pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin", "America/Argentina/Buenos_Aires", "Etc/GMT+5"])
def test_zones(zone: str) -> None:
    schedules.check(replace(EVERY, time_zone=zone))
    assert schedules.after(cron("0 0 * * *", zone), utc("2027-01-01T00:00")) is not None
