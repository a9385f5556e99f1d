"""Policies: attempts and their pauses, and the breaker as a function of failures and time."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain import errors, policies
from domain.policies import Breaker, Policy, Rules

T0 = datetime(2027, 1, 1, tzinfo=UTC)


def seconds(value: float) -> timedelta:
    return timedelta(seconds=value)


def test_what_an_integration_says_holds_and_the_rest_is_of_the_settings() -> None:
    settings = Rules(attempts=7, backoff=10, timeout=90)
    assert policies.rules(None, settings) == settings
    assert policies.rules(Policy(attempts=1, timeout=0), settings) == Rules(attempts=1, backoff=10, timeout=0)


@pytest.mark.parametrize(
    ("policy", "field"),
    [
        (Policy(attempts=0), "policy.attempts"),
        (Policy(attempts=101), "policy.attempts"),
        (Policy(backoff=-1), "policy.backoff"),
        (Policy(backoff_max=policies.LONGEST + 1), "policy.backoffMax"),
        (Policy(breaker_failures=-1), "policy.breakerFailures"),
        (Policy(breaker_pause=-1), "policy.breakerPause"),
        (Policy(timeout=-1), "policy.timeout"),
    ],
)
def test_what_is_out_of_bounds_is_named(policy: Policy, field: str) -> None:
    with pytest.raises(errors.Invalid, match=f"^{field}: expected "):
        policies.check(policy)


def test_the_least_and_the_most_are_within_bounds() -> None:
    policies.check(Policy(1, 0, 0, 0, 0, 0))
    longest = policies.LONGEST
    policies.check(Policy(100, longest, longest, 100, longest, longest))


@pytest.mark.parametrize(("attempt", "most"), [(1, 2), (2, 4), (3, 8), (4, 10), (5, 10), (90, 10)])
def test_pauses_between_attempts_double_up_to_the_longest(attempt: int, most: float) -> None:
    rules = Rules(backoff=2_000, backoff_max=10_000)
    waits = [policies.backoff(rules, f"job-{n}", attempt) for n in range(50)]
    assert all(seconds(most / 2) <= wait <= seconds(most) for wait in waits)
    assert len(set(waits)) > 40  # those that failed together come back one by one
    assert waits == [policies.backoff(rules, f"job-{n}", attempt) for n in range(50)]


def test_a_pause_of_nothing_is_none() -> None:
    assert policies.backoff(Rules(backoff=0, backoff_max=0), "j", 9) == timedelta()


@pytest.mark.parametrize(
    ("failures", "at", "expected"),
    [
        (0, 0, Breaker("closed", 0)),
        (2, 0, Breaker("closed", 2)),
        (3, 0, Breaker("open", 3, T0, T0 + seconds(10))),
        (3, 9.999, Breaker("open", 3, T0, T0 + seconds(10))),
        (3, 10, Breaker("half_open", 3, T0, T0 + seconds(10))),
        (3, 10_000, Breaker("half_open", 3, T0, T0 + seconds(10))),
        (4, 10, Breaker("open", 4, T0, T0 + seconds(20))),
        (4, 20, Breaker("half_open", 4, T0, T0 + seconds(20))),
        (9, 34, Breaker("open", 9, T0, T0 + seconds(35))),
        (10**9, 35, Breaker("half_open", 10**9, T0, T0 + seconds(35))),
    ],
)
def test_the_breaker(failures: int, at: float, expected: Breaker) -> None:
    rules = Rules(breaker_failures=3, breaker_pause=10_000, breaker_pause_max=35_000)
    failed_at = T0 if failures else None
    assert expected == policies.breaker(rules, failures, failed_at, T0 + seconds(at))


def test_a_breaker_that_is_switched_off_never_opens() -> None:
    assert policies.breaker(Rules(breaker_failures=0), 10**6, T0, T0) == Breaker("closed", 10**6)


@given(st.integers(1, 100), st.integers(0, policies.LONGEST), st.integers(0, 10_000), st.integers(-10, 10**7))
def test_an_open_breaker_always_comes_to_its_probe(limit: int, pause: int, failures: int, passed: int) -> None:
    rules = Rules(breaker_failures=limit, breaker_pause=pause)
    now = T0 + seconds(passed)
    found = policies.breaker(rules, failures, T0, now)
    assert (found.state == "closed") == (failures < limit)
    if found.probe_at is not None:
        assert T0 <= found.probe_at <= T0 + timedelta(milliseconds=max(pause, rules.breaker_pause_max))
        assert (found.state == "open") == (now < found.probe_at)
