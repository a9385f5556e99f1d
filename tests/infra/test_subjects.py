"""Subjects with wildcards: which of them is inside another."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra import subjects

CONCRETE = [list(tokens) for length in range(1, 5) for tokens in itertools.product("ab", repeat=length)]
PATTERNS = st.lists(st.sampled_from(["a", "b", "*"]), max_size=3).flatmap(
    lambda tokens: st.sampled_from(["a", "b", "*", ">"]).map(lambda last: ".".join([*tokens, last]))
)


def matches(pattern: str, tokens: list[str]) -> bool:
    """As NATS says."""
    parts = pattern.split(".")
    if parts[-1] == ">":
        return len(tokens) >= len(parts) and all(p in ("*", t) for p, t in zip(parts[:-1], tokens, strict=False))
    return len(tokens) == len(parts) and all(p in ("*", t) for p, t in zip(parts, tokens, strict=True))


@given(PATTERNS, PATTERNS)
def test_what_is_within_matches_nothing_more(wanted: str, allowed: str) -> None:
    every = [tokens for tokens in CONCRETE if matches(wanted, tokens)]
    if subjects.within(wanted, allowed):
        assert all(matches(allowed, tokens) for tokens in every)


@pytest.mark.parametrize(
    ("wanted", "allowed", "expected"),
    [
        ("evt.main.>", "evt.main.>", True),
        ("evt.main.*.jobs.queued", "evt.main.>", True),
        ("evt.main._.jobs.queued", "evt.main.*.jobs.*", True),
        ("evt.main.*.jobs.*", "evt.main.*.jobs.*", True),
        ("evt.main", "evt.main.>", False),
        ("evt.>", "evt.main.>", False),
        (">", "evt.main.>", False),
        ("evt.*.>", "evt.main.>", False),
        ("evt.main.*.jobs.>", "evt.main.*.jobs.*", False),
        ("evt.main.*.*.queued", "evt.main.*.jobs.*", False),
        ("evt.mainly.x", "evt.main.>", False),
        ("", "evt.main.>", False),
        ("evt.main.", "evt.main.*", False),
    ],
)
def test_one_inside_another(wanted: str, allowed: str, expected: bool) -> None:
    assert subjects.within(wanted, allowed) == expected


def test_where_a_tenants_events_are() -> None:
    assert subjects.events_of("main") == ("evt.main.>",)
    odd = subjects.token("a b")
    expected = (f"evt.{odd}.*.jobs.*", f"evt.{odd}.*.items.created")
    assert subjects.events_of("a b", ("jobs.*", "items.created")) == expected
