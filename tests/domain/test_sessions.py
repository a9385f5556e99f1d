"""Sessions: what may follow what, and that everything said twice is said once."""

from __future__ import annotations

import pytest

from domain import errors, sessions
from domain.sessions import (
    Abandon,
    Attach,
    Attached,
    Cancel,
    Cancelled,
    Completed,
    CompletionRequested,
    Failed,
    Finish,
    Location,
    RequestCompletion,
    Start,
    Started,
    Totals,
)
from tests.domain.given import given

HERE, THERE = Location("System1"), Location("postgres://db/app", "ab" * 32)
STARTED = Started(source=HERE, target=THERE, sync_type="Full")
JOB = Attached(kind="job", item="sync-job-1")
CLOSING = CompletionRequested()
TOTALS = Totals(jobs=1, processed=3, changes=2, bytes=10)
COMPLETED = Completed(totals=TOTALS)
CANCELLED = Cancelled(totals=TOTALS, progress=40)
FAILED = Failed(reason="incomplete", message="1 of 2 jobs failed", totals=TOTALS, progress=80)
ENDS = (COMPLETED, CANCELLED, FAILED)


def test_a_session_starts_once_with_its_job_if_it_has_one() -> None:
    start = Start(HERE, THERE, "Full")
    given(sessions).when(start).then(STARTED)
    given(sessions).when(Start(HERE, THERE, "Full", "sync-job-1")).then(STARTED, JOB)
    given(sessions, STARTED).when(start).then()


def test_what_was_never_started_is_unknown() -> None:
    for command in (Attach("job", "x"), RequestCompletion(), Finish(TOTALS, 0), Cancel(TOTALS, 0, 0)):
        given(sessions).when(command).refused(errors.NotFound)


def test_jobs_and_uploads_attach_until_completion_is_asked_for() -> None:
    given(sessions, STARTED).when(Attach("upload", "u")).then(Attached(kind="upload", item="u"))
    given(sessions, STARTED, CLOSING).when(Attach("job", "x")).refused(errors.Ended, "being completed")
    for end in ENDS:
        given(sessions, STARTED, end).when(Attach("job", "x")).refused(errors.Ended)


def test_a_session_has_only_so_much() -> None:
    full = [STARTED, *[JOB] * sessions.MOST]
    given(sessions, *full).when(Attach("job", "x")).refused(errors.Ended)
    given(sessions, *full[:-1]).when(Attach("job", "x")).then(Attached(kind="job", item="x"))


def test_completion_is_asked_for_and_then_carried_out_once() -> None:
    given(sessions, STARTED, JOB).when(RequestCompletion()).then(CLOSING)
    given(sessions, STARTED, JOB, CLOSING).when(RequestCompletion()).then()
    given(sessions, STARTED, JOB).when(Finish(TOTALS, 100)).then()
    given(sessions, STARTED, JOB, CLOSING).when(Finish(TOTALS, 100)).then(COMPLETED)
    given(sessions, STARTED, JOB, CLOSING).when(Finish(TOTALS, 80, FAILED.message)).then(FAILED)
    for end in ENDS:
        given(sessions, STARTED, JOB, CLOSING, end).when(Finish(Totals(), 0)).then()


def test_completing_again_is_nothing_and_what_was_cancelled_cannot_be_completed() -> None:
    for end in (COMPLETED, FAILED):
        given(sessions, STARTED, CLOSING, end).when(RequestCompletion()).then()
    given(sessions, STARTED, CANCELLED).when(RequestCompletion()).refused(errors.InvalidState)


def test_an_abandoned_session_says_so_unless_something_came_meanwhile() -> None:
    said = Failed(reason="abandoned", message="Nobody named the session within its lease", totals=TOTALS, progress=40)
    given(sessions, STARTED, JOB).when(Abandon(TOTALS, 40, 1)).then(said)
    given(sessions, STARTED, JOB, CLOSING).when(Abandon(TOTALS, 40, 1)).then(said)
    given(sessions, STARTED, JOB, JOB).when(Abandon(TOTALS, 40, 1)).then()
    for end in ENDS:
        given(sessions, STARTED, JOB, end).when(Abandon(TOTALS, 40, 1)).then()


def test_cancelling() -> None:
    given(sessions, STARTED, JOB).when(Cancel(TOTALS, 40, 1)).then(CANCELLED)
    given(sessions, STARTED, JOB, CLOSING).when(Cancel(TOTALS, 40, 1)).then(CANCELLED)
    given(sessions, STARTED, JOB, CANCELLED).when(Cancel(Totals(), 0, 1)).then()
    given(sessions, STARTED, JOB).when(Cancel(TOTALS, 40, 0)).refused(errors.Conflict)
    for end in (COMPLETED, FAILED):
        given(sessions, STARTED, JOB, end).when(Cancel(TOTALS, 40, 1)).refused(errors.InvalidState)


@pytest.mark.parametrize("text", ["Full", "full", "FULL", "incremental", "Differential"])
def test_a_sync_type_however_it_is_spelled(text: str) -> None:
    assert sessions.sync_type(text).lower() == text.lower()


@pytest.mark.parametrize("text", ["", "partial", "Full ", "full_sync"])
def test_an_unknown_sync_type_is_refused(text: str) -> None:
    with pytest.raises(errors.Invalid):
        sessions.sync_type(text)
