"""Policies: how often a job is tried, how long it may take, and when an integration's remote is left in peace.

The breaker of an integration is a function of its jobs' ends: failures in a row open it, time half-opens it for one
probe, a completed job closes it. So nothing has to be kept beside the log.
"""

from __future__ import annotations

import hashlib
from datetime import datetime, timedelta
from typing import Annotated, Literal

from msgspec import Meta, Struct

from domain import errors

State = Literal["closed", "open", "half_open"]

ATTEMPTS_MAX = 100
#: A week, in milliseconds.
LONGEST = 7 * 86_400_000


def _limits(least: int, most: int) -> Meta:
    return Meta(extra_json_schema={"minimum": least, "maximum": most})


_Milliseconds = Annotated[int | None, _limits(0, LONGEST)]


class Policy(Struct, frozen=True, rename="camel", omit_defaults=True):
    """What an integration says otherwise than the settings do; times in milliseconds.

    `attempts` of a job in all, where its errors may pass; `backoff` before the second, twice that each time up to
    `backoffMax`. After `breakerFailures` in a row (0: never) scheduled runs wait for `breakerPause`, twice that after
    each failed probe. `timeout` of one attempt, 0 for none.
    """

    attempts: Annotated[int | None, _limits(1, ATTEMPTS_MAX)] = None
    backoff: _Milliseconds = None
    backoff_max: _Milliseconds = None
    breaker_failures: Annotated[int | None, _limits(0, ATTEMPTS_MAX)] = None
    breaker_pause: _Milliseconds = None
    timeout: _Milliseconds = None


class Rules(Struct, frozen=True):
    """What holds for an integration; times in milliseconds."""

    attempts: int = 5
    backoff: int = 2_000
    backoff_max: int = 300_000
    breaker_failures: int = 5
    breaker_pause: int = 60_000
    breaker_pause_max: int = 3_600_000
    timeout: int = 0


class Breaker(Struct, frozen=True):
    """`opened_at` is the failure since which it is open, `probe_at` when one run may try again."""

    state: State
    failures: int
    opened_at: datetime | None = None
    probe_at: datetime | None = None


def check(policy: Policy) -> None:
    """Raises errors.Invalid, naming the field."""
    _within("attempts", policy.attempts, 1, ATTEMPTS_MAX)
    _within("breakerFailures", policy.breaker_failures, 0, ATTEMPTS_MAX)
    _within("backoff", policy.backoff, 0, LONGEST)
    _within("backoffMax", policy.backoff_max, 0, LONGEST)
    _within("breakerPause", policy.breaker_pause, 0, LONGEST)
    _within("timeout", policy.timeout, 0, LONGEST)


def _within(name: str, value: int | None, least: int, most: int) -> None:
    if value is not None and not least <= value <= most:
        raise errors.Invalid(f"policy.{name}: expected {least} to {most}")


def rules(policy: Policy | None, settings: Rules) -> Rules:
    """The settings, but for what the integration says."""
    if policy is None:
        return settings
    own = {name: value for name in policy.__struct_fields__ if (value := getattr(policy, name)) is not None}
    kept = {name: getattr(settings, name) for name in settings.__struct_fields__}
    return Rules(**{**kept, **own})


def backoff(rules: Rules, job: str, attempt: int) -> timedelta:
    """How long to wait after the failure of a job's attempt, counted from 1: half of it up to all of it, by the job,
    so that those which failed together do not come back together."""
    full = min(rules.backoff * 2 ** min(attempt - 1, 40), max(rules.backoff_max, rules.backoff))
    digest = hashlib.sha256(f"{job}/{attempt}".encode()).digest()
    return timedelta(milliseconds=full // 2 + int.from_bytes(digest[:8], "big") % (full - full // 2 + 1))


def breaker(rules: Rules, failures: int, failed_at: datetime | None, now: datetime) -> Breaker:
    """How it stands after so many failures in a row, the last at that time."""
    beyond = failures - rules.breaker_failures
    if failed_at is None or not rules.breaker_failures or beyond < 0:
        return Breaker("closed", failures)
    pause = min(rules.breaker_pause * 2 ** min(beyond, 40), max(rules.breaker_pause_max, rules.breaker_pause))
    probe_at = failed_at + timedelta(milliseconds=pause)
    return Breaker("open" if now < probe_at else "half_open", failures, failed_at, probe_at)
