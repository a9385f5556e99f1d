"""Credentials of consumers outside: issued once, revoked once, with no more topics than they need."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from msgspec.structs import replace

from domain import consumers, errors
from tests.domain.given import given

UNTIL = datetime(2026, 1, 1, tzinfo=UTC)
ISSUE = consumers.Issue("billing", "ab", ("jobs.completed", "items.*"), UNTIL)
ISSUED = consumers.Issued("billing", "ab", ("items.*", "jobs.completed"), UNTIL)


def test_a_credential_is_issued_with_its_topics_in_order() -> None:
    given(consumers).when(ISSUE).then(ISSUED)


def test_one_that_is_there_stays_as_it_is() -> None:
    given(consumers, ISSUED).when(replace(ISSUE, topics=())).then()
    given(consumers, ISSUED, consumers.Revoked("billing")).when(ISSUE).then()


def test_it_is_revoked_once() -> None:
    given(consumers, ISSUED).when(consumers.Revoke()).then(consumers.Revoked("billing"))
    given(consumers, ISSUED, consumers.Revoked("billing")).when(consumers.Revoke()).then()
    given(consumers).when(consumers.Revoke()).refused(errors.NotFound)


@pytest.mark.parametrize(
    ("topics", "expected"),
    [
        ((), ()),
        (("*", "jobs.*"), ()),
        (("jobs.queued", "jobs.queued"), ("jobs.queued",)),
        (("jobs.queued", "jobs.*", "items.created"), ("items.created", "jobs.*")),
    ],
)
def test_topics_that_others_cover_are_left_out(topics: tuple[str, ...], expected: tuple[str, ...]) -> None:
    """JetStream refuses filters that overlap."""
    assert consumers.least(topics) == expected


@pytest.mark.parametrize("wrong", [{"name": ""}, {"name": "x" * 256}, {"topics": tuple(f"a.b{n}" for n in range(101))}])
def test_wrong_credentials(wrong: dict[str, Any]) -> None:
    given(consumers).when(replace(ISSUE, **wrong)).refused(errors.Invalid)
