"""How long the rest takes: from the job's own rate, and only where that says something."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.worker.pace import Sample, remaining_s, sampled


def ran(progress: Callable[[float], float], until: float, every: float = 0.5) -> tuple[Sample, ...]:
    """The samples of a job whose progress is a function of the time."""
    found: tuple[Sample, ...] = ()
    for step in range(int(until / every) + 1):
        found = sampled(found, Sample(1000 + step * every, progress(step * every)))
    return found


@pytest.mark.parametrize("percent_per_s", [0.01, 0.5, 3.0])
def test_an_even_pace_is_told_right(percent_per_s: float) -> None:
    until = min(60.0, 90 / percent_per_s)
    found = remaining_s(ran(lambda at: percent_per_s * at, until), 1000 + until)
    assert found == pytest.approx((100 - percent_per_s * until) / percent_per_s, rel=0.05)


@pytest.mark.parametrize("from_percent", [0, 37, 98])
def test_a_resumed_job_is_judged_by_what_it_does_now(from_percent: int) -> None:
    rest = 100 - from_percent
    found = remaining_s(ran(lambda at: from_percent + rest * at / 40, 20), 1020)
    assert found == pytest.approx(20, rel=0.05)


@pytest.mark.parametrize(
    ("samples", "now"),
    [
        ((), 1000.0),
        ((Sample(1000, 0),), 1060.0),
        ((Sample(1000, 40),), 1060.0),
        ((Sample(1000, 0), Sample(1000.2, 5)), 1000.3),
        ((Sample(1000, 0), Sample(1001, 0.00001)), 1002.0),
    ],
    ids=["nothing", "has begun", "has not moved", "too early", "takes months"],
)
def test_what_nobody_can_tell_is_not_told(samples: tuple[Sample, ...], now: float) -> None:
    assert remaining_s(samples, now) is None


def test_the_pace_of_late_counts() -> None:
    slow_then_quick = ran(lambda at: at * 0.1 if at < 100 else 10 + (at - 100), 140)
    assert remaining_s(slow_then_quick, 1140) == pytest.approx(50, rel=0.2)


def test_a_job_that_stands_still_is_expected_later_and_later() -> None:
    samples = ran(lambda at: at, 50)
    told = [remaining_s(samples, 1050 + more) for more in (0, 30, 60, 600)]
    ends = [one + 1050 + more for one, more in zip(told, (0, 30, 60, 600), strict=True) if one is not None]
    assert len(ends) == 4
    assert ends == sorted(ends)
    assert ends[0] < ends[-1]


def test_progress_that_repeats_or_goes_back_says_nothing() -> None:
    samples = (Sample(1000, 0), Sample(1010, 10))
    assert sampled(samples, Sample(1020, 10)) == samples
    assert sampled(samples, Sample(1020, 5)) == samples


def test_many_samples_are_thinned_out_and_say_the_same() -> None:
    samples = ran(lambda at: at / 100, 9000, every=1.0)
    assert len(samples) <= 65
    assert samples[0] == Sample(1000, 0)
    assert samples[-1] == Sample(10_000, 90)
    assert remaining_s(samples, 10_000) == pytest.approx(1000, rel=0.05)


@given(st.lists(st.tuples(st.floats(0, 1e6), st.floats(0, 100)), max_size=80), st.floats(0, 1e6))
def test_it_is_a_time_or_nothing(raw: list[tuple[float, float]], later: float) -> None:
    found: tuple[Sample, ...] = ()
    for at, progress in sorted(raw):
        found = sampled(found, Sample(at, progress))
    told = remaining_s(found, (found[-1].at if found else 0.0) + later)
    assert told is None or 0 <= told <= 30 * 86400
