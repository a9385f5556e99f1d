"""Jobs: one state machine, whatever the order of commands."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given as examples
from hypothesis import settings
from hypothesis import strategies as st
from msgspec import Raw
from msgspec.structs import replace

from domain import errors, jobs
from tests.domain.given import fold, given, held

T0 = datetime(2026, 1, 1, tzinfo=UTC)
TICKET = jobs.Ticket(job="j", kind="files", type="full_sync", lane="later", integration="i", target="t")
QUEUED = jobs.Queued(ticket=TICKET, spec=Raw(b'{"a":1}'))
WAITED = replace(QUEUED, waited=True, deadline=T0)
STARTED = jobs.Started(ticket=TICKET, fence=1, worker="w")
C0, C1 = jobs.Counters(), jobs.Counters(processed=3, created=2, bytes=10)
PROGRESSED = jobs.Progressed(stage="copying", progress=40, counters=C1)
STOPPING = jobs.StopRequested(graceful=True)
PAUSED = jobs.Paused(ticket=TICKET, reason="shutdown")
HELD = jobs.Held(ticket=TICKET, reason="much", plan="p", counters=C1, details={"n": 1})
COMPLETED = jobs.Completed(ticket=TICKET, counters=C1, result=Raw(b"{}"), duration_ms=5)
FAILED = jobs.Failed(ticket=TICKET, code="sync_failed", message="no", counters=C1)
STOPPED = jobs.Stopped(ticket=TICKET, reason="requested", counters=C0)
DELETED = jobs.Deleted(logs=False)

#: A history for each status.
PASTS: dict[str, tuple[Any, ...]] = {
    "none": (),
    "queued": (QUEUED,),
    "running": (QUEUED, STARTED),
    "stopping": (QUEUED, STARTED, STOPPING),
    "paused": (QUEUED, STARTED, PAUSED),
    "stopped": (QUEUED, STOPPED),
    "completed": (QUEUED, STARTED, COMPLETED),
    "failed": (QUEUED, STARTED, FAILED),
    "deleted": (QUEUED, STARTED, FAILED, DELETED),
}

START = jobs.Start(fence=2, worker="v", at=T0)
PROGRESS = jobs.Progress("copying", 50, C1)
CHECKPOINT = jobs.Checkpoint(Raw(b'{"page":2}'), C1)
HOLD = jobs.Hold(reason="much", plan="p", counters=C1)
PAUSE = jobs.Pause("shutdown")
COMPLETE = jobs.Complete(C1, Raw(b"{}"), 5)
FAIL = jobs.Fail("sync_failed", "no", C1)
END_STOP = jobs.EndStop(C1)

#: What each command may be said to; anything else is refused.
ALLOWED: list[tuple[Any, set[str]]] = [
    (START, {"queued", "running", "stopping"}),
    (PROGRESS, {"running", "stopping"}),
    (CHECKPOINT, {"running", "stopping"}),
    (HOLD, {"running", "stopping"}),
    (PAUSE, {"running", "stopping"}),
    (COMPLETE, {"running", "stopping"}),
    (FAIL, {"running", "stopping"}),
    (END_STOP, {"stopping"}),
    (jobs.Stop(), {"queued", "running", "stopping", "paused"}),
    (jobs.Stop(open_only=True), {"queued", "running", "stopping", "paused", "stopped", "completed", "failed"}),
    (jobs.Expire(), {"queued", "running", "stopping", "paused", "stopped", "completed", "failed"}),
    (jobs.Resume(), {"paused", "failed"}),
    (jobs.Delete(), {"paused", "stopped", "completed", "failed"}),
]


@pytest.mark.parametrize("past", PASTS)
@pytest.mark.parametrize(("command", "allowed"), ALLOWED, ids=[str(command)[:30] for command, _ in ALLOWED])
def test_every_command_in_every_status(command: Any, allowed: set[str], past: str) -> None:
    when = given(jobs, *PASTS[past]).when(command)
    if past in ("none", "deleted"):
        when.refused(errors.NotFound)
    elif past not in allowed:
        when.refused(errors.InvalidState)
    else:
        jobs.decide(command, fold(jobs, PASTS[past]))


def test_a_job_is_queued_once() -> None:
    given(jobs).when(jobs.Queue(QUEUED)).then(QUEUED)
    for past in PASTS.values():
        if past:
            given(jobs, *past).when(jobs.Queue(WAITED)).then()


def test_a_worker_starts_it_under_its_fence() -> None:
    given(jobs, QUEUED).when(START).then(jobs.Started(ticket=TICKET, fence=2, worker="v"))
    given(jobs, QUEUED, STARTED).when(START).then(jobs.Started(ticket=TICKET, fence=2, worker="v"))
    given(jobs, QUEUED, STARTED).when(replace(START, fence=1)).refused(errors.InvalidState)
    given(jobs, QUEUED, STARTED, STOPPING).when(START).then(STOPPED)


def test_a_job_is_not_started_after_its_deadline() -> None:
    late = replace(STOPPED, reason="deadline")
    given(jobs, WAITED).when(START).then(late)
    given(jobs, WAITED).when(replace(START, at=T0 + timedelta(days=1))).then(late)
    early = replace(START, at=T0 - timedelta(microseconds=1))
    given(jobs, WAITED).when(early).then(jobs.Started(ticket=TICKET, fence=2, worker="v"))


def test_a_deadline_ends_what_is_open() -> None:
    late = replace(STOPPED, reason="deadline")
    given(jobs, WAITED).when(jobs.Expire()).then(late)
    given(jobs, WAITED, STARTED, PROGRESSED).when(jobs.Expire()).then(replace(late, counters=C1))
    given(jobs, WAITED, STARTED, STOPPING).when(jobs.Expire()).then(late)
    for past in ("paused", "stopped", "completed", "failed"):
        given(jobs, *PASTS[past]).when(jobs.Expire()).then()


def test_progress_never_goes_back_nor_past_the_end() -> None:
    past = (QUEUED, STARTED, PROGRESSED)
    given(jobs, *past).when(jobs.Progress("verifying", 10, C1)).then(replace(PROGRESSED, stage="verifying"))
    given(jobs, *past).when(jobs.Progress("x", 900, C1)).then(jobs.Progressed("x", 100, C1))
    given(jobs, *past).when(jobs.Progress("x", 41, C0)).then(jobs.Progressed("x", 41, C0))


def test_a_stop() -> None:
    given(jobs, QUEUED).when(jobs.Stop()).then(STOPPED)
    given(jobs, QUEUED, STARTED).when(jobs.Stop()).then(jobs.StopRequested(graceful=True))
    given(jobs, QUEUED, STARTED).when(jobs.Stop(graceful=False)).then(jobs.StopRequested(graceful=False))
    given(jobs, QUEUED, STARTED, HELD).when(jobs.Stop()).then(replace(STOPPED, counters=C1))
    given(jobs, QUEUED, STARTED, STOPPING).when(END_STOP).then(replace(STOPPED, counters=C1))


def test_a_stop_said_twice_and_one_that_grows_impatient() -> None:
    hard = jobs.StopRequested(graceful=False)
    past = (QUEUED, STARTED, STOPPING)
    given(jobs, *past).when(jobs.Stop()).then()
    given(jobs, *past).when(jobs.Stop(graceful=False)).then(hard)
    for command in (jobs.Stop(), jobs.Stop(graceful=False)):
        given(jobs, *past, hard).when(command).then()


def test_a_stop_of_what_is_open_leaves_the_rest_alone() -> None:
    for past in ("paused", "stopped", "completed", "failed"):
        given(jobs, *PASTS[past]).when(jobs.Stop(open_only=True)).then()
    given(jobs, QUEUED, STARTED).when(jobs.Stop(open_only=True)).then(STOPPING)


def test_a_stop_is_not_forgotten_for_a_pause_or_a_guard() -> None:
    past = (QUEUED, STARTED, PROGRESSED, STOPPING)
    for command in (PAUSE, HOLD):
        given(jobs, *past).when(command).then(replace(STOPPED, counters=C1))


def test_what_is_done_before_the_stop_arrives_is_done() -> None:
    given(jobs, *PASTS["stopping"]).when(COMPLETE).then(COMPLETED)
    given(jobs, *PASTS["stopping"]).when(FAIL).then(FAILED)


def test_a_guard_holds_the_plan() -> None:
    hold = jobs.Hold(reason="much", plan="p", counters=C1, details={"n": 1})
    given(jobs, QUEUED, STARTED).when(hold).then(HELD)
    state = fold(jobs, (QUEUED, STARTED, HELD, jobs.Resumed(ticket=TICKET, running=True, confirm="p")))
    assert (state.plan, state.confirm, state.counters) == ("p", "p", C1)


def test_a_guard_fails_a_job_that_somebody_waits_for() -> None:
    failed = jobs.Failed(ticket=TICKET, code="held", message="much", counters=C1, details={"n": 1})
    hold = jobs.Hold(reason="much", plan="p", counters=C1, details={"n": 1})
    given(jobs, WAITED, STARTED).when(hold).then(HELD, failed)


def test_a_resume_keeps_counters_and_progress() -> None:
    past = (QUEUED, STARTED, PROGRESSED, FAILED)
    resumed = jobs.Resumed(ticket=TICKET, running=True)
    given(jobs, *past).when(jobs.Resume()).then(resumed)
    given(jobs, *past).when(jobs.Resume(confirm="p", running=False)).then(jobs.Resumed(TICKET, False, "p"))
    state = fold(jobs, (*past, resumed))
    assert (state.status, state.progress, state.counters, state.fence, state.ended) == ("running", 40, C1, 1, None)


def test_attempts_are_counted_since_the_last_progress() -> None:
    again = replace(STARTED, fence=2)
    assert fold(jobs, (QUEUED, STARTED, again)).attempts == 2
    assert fold(jobs, (QUEUED, STARTED, again, PROGRESSED)).attempts == 0
    assert fold(jobs, (QUEUED, STARTED, FAILED, jobs.Resumed(ticket=TICKET, running=True))).attempts == 0


def test_a_failure_that_may_pass_is_tried_again() -> None:
    until = T0 + timedelta(seconds=5)
    pause = jobs.Pause("no answer", "remote_unavailable", until, C1)
    first = jobs.Paused(TICKET, "no answer", "remote_unavailable", until, 1, C1)
    past = given(jobs, QUEUED, STARTED, PROGRESSED, first)
    given(jobs, QUEUED, STARTED, PROGRESSED).when(pause).then(first)
    state = fold(jobs, (QUEUED, STARTED, PROGRESSED, first))
    assert (state.status, state.progress, state.counters, state.tried) == ("paused", 40, C1, 1)
    again = jobs.Resumed(TICKET, running=False, retry=True)
    past.when(jobs.Resume(running=False, retry=until)).then(again)
    past.when(jobs.Resume(running=False, retry=T0)).then()
    given(jobs, QUEUED, STARTED).when(jobs.Resume(retry=until)).then()
    given(jobs, QUEUED, STARTED, PROGRESSED, first, again, STARTED).when(pause).then(replace(first, tried=2))


def test_a_wait_before_it_began_is_no_attempt() -> None:
    pause = jobs.Pause("the breaker is open", until=T0)
    given(jobs, QUEUED, STARTED).when(pause).then(jobs.Paused(TICKET, "the breaker is open", until=T0))


def test_attempts_begin_anew_where_somebody_resumes_it_or_it_brought_something() -> None:
    failed = jobs.Paused(TICKET, "no", "remote_busy", T0, 4)
    assert fold(jobs, (QUEUED, STARTED, failed)).tried == 4
    assert fold(jobs, (QUEUED, STARTED, failed, jobs.Resumed(TICKET, running=True))).tried == 0
    again = (QUEUED, STARTED, failed, jobs.Resumed(TICKET, running=False, retry=True), STARTED, PROGRESSED)
    assert fold(jobs, again).tried == 4
    brought = (*again, jobs.Checkpointed(Raw(b"1"), C1))
    assert fold(jobs, brought).tried == 0
    resumed = jobs.Resumed(TICKET, running=False, retry=True)
    stuck = (*brought, failed, resumed, STARTED, jobs.Checkpointed(Raw(b"1"), C1))
    assert fold(jobs, stuck).tried == 4  # it came to the same place once more


def test_who_stops_what_is_open_stops_what_would_be_tried_again() -> None:
    waits = jobs.Paused(TICKET, "no", "remote_busy", T0, 1, C0)
    past = given(jobs, QUEUED, STARTED, waits)
    past.when(jobs.Stop(open_only=True)).then(STOPPED)
    given(jobs, QUEUED, STARTED, PAUSED).when(jobs.Stop(open_only=True)).then()
    given(jobs, QUEUED, STARTED, waits, STOPPED).when(jobs.Resume(retry=T0)).then()
    given(jobs, QUEUED, STARTED, waits, STOPPED).when(jobs.Stop(open_only=True)).then()
    past.when(jobs.Delete()).refused(errors.InvalidState)


def test_a_deleted_job_is_gone() -> None:
    given(jobs, *PASTS["failed"]).when(jobs.Delete(logs=True)).then(jobs.Deleted(logs=True))


@pytest.mark.parametrize("integration", [None, "i"])
@pytest.mark.parametrize("target", [None, "t"])
def test_the_place_in_the_queue_names_the_line(integration: str | None, target: str | None) -> None:
    ticket = replace(TICKET, integration=integration, target=target)
    [place] = jobs.claims(replace(QUEUED, ticket=ticket))
    line = "integration/i" if integration else "target/t" if target else ""
    assert (place.kind, place.key, place.shared) == ("work/later", f"j|{line}", False)


# What holds after any sequence of commands.

EDGES = {
    ("none", "queued"),
    ("queued", "running"),
    ("queued", "stopped"),
    ("running", "running"),
    ("running", "stopping"),
    ("running", "stopped"),  # its deadline
    ("running", "paused"),
    ("running", "completed"),
    ("running", "failed"),
    ("stopping", "stopping"),
    ("stopping", "stopped"),
    ("stopping", "completed"),
    ("stopping", "failed"),
    ("paused", "running"),
    ("paused", "queued"),
    ("paused", "stopped"),
    ("failed", "running"),
    ("failed", "queued"),
}
counters = st.builds(jobs.Counters, processed=st.integers(0, 9), errors=st.integers(0, 9))
commands = st.one_of(
    st.builds(jobs.Start, fence=st.integers(1, 6), worker=st.just("w"), at=st.sampled_from([T0, T0 - timedelta(1)])),
    st.builds(jobs.Progress, st.sampled_from("ab"), st.integers(-5, 120), counters),
    st.builds(jobs.Stop, st.booleans(), st.booleans()),
    st.just(jobs.Expire()),
    st.builds(jobs.Resume, st.none() | st.just("p"), st.booleans()),
    st.builds(jobs.Hold, st.just("r"), st.just("p"), counters),
    st.just(PAUSE),
    st.builds(jobs.Pause, st.just("r"), st.sampled_from([None, "remote_busy"]), st.just(T0), st.none() | counters),
    st.builds(jobs.Resume, running=st.booleans(), retry=st.sampled_from([T0, T0 + timedelta(1)])),
    st.builds(jobs.Complete, counters, st.just(Raw(b"{}")), st.integers(0, 9)),
    st.builds(jobs.Fail, st.just("c"), st.just("m"), counters),
    st.builds(jobs.EndStop, counters),
    st.builds(jobs.Delete, st.booleans()),
    st.builds(jobs.Queue, st.sampled_from([QUEUED, WAITED])),
)
tickets = st.builds(
    replace,
    st.just(TICKET),
    integration=st.none() | st.just("i"),
    target=st.none() | st.just("t"),
    lane=st.sampled_from(["now", "later"]),
)


def status(job: jobs.Job) -> str:
    return "deleted" if job.deleted else job.status or "none"


@examples(tickets, st.booleans(), st.lists(st.tuples(commands, st.integers(0, 2)), max_size=40))
@settings(max_examples=400, deadline=None)
def test_any_sequence_of_commands(ticket: jobs.Ticket, waited: bool, said: list[tuple[Any, int]]) -> None:
    queued = replace(QUEUED, ticket=ticket, waited=waited, deadline=T0 if waited else None)
    state, log = jobs.initial, []
    for command, _ in [(jobs.Queue(queued), 0), *said]:
        try:
            events = jobs.decide(command, state)
        except (errors.InvalidState, errors.NotFound):
            continue
        before = state
        for event in events:
            assert not state.deleted, "nothing follows a deletion"
            after = jobs.evolve(state, event)
            check(state, after, event)
            state = after
            log.append(event)
        ends = (status(before), status(state))
        assert ends in EDGES or ends[0] == ends[1] or ends[1] == "deleted"
        assert held(jobs, log) == expected_claims(state)


def check(before: jobs.Job, after: jobs.Job, event: jobs.Event) -> None:
    edge = (status(before), status(after))
    assert edge in EDGES or edge == ("paused", "failed") or isinstance(event, jobs.Deleted), edge
    assert after.progress >= before.progress
    assert after.fence >= before.fence
    assert before.status not in ("completed", "stopped") or isinstance(event, jobs.Deleted), "terminal states absorb"
    if isinstance(event, jobs.Deleted):
        assert before.status not in jobs.OPEN
    if isinstance(event, jobs.Started):
        assert event.fence > before.fence
    assert (after.ended is not None) == (after.status in ("stopped", "completed", "failed"))


def expected_claims(job: jobs.Job) -> set[tuple[str, str]]:
    """Its place in the queue while it is open, or where it rests, and its exclusive names while it runs."""
    if job.queued is None or (job.status not in jobs.OPEN and job.until is None):
        return set()
    ticket = job.queued.ticket
    names = [f"integration/{ticket.integration}"] if ticket.integration else []
    names += [f"target/{ticket.target}"] if ticket.target else []
    lane = "rests" if job.status == "paused" else ticket.lane
    place = {(f"work/{lane}", f"j|{names[0] if names else ''}")}
    if job.status == "paused":
        return place
    return place if job.status == "queued" else place | {("jobs.running", name) for name in names}


def test_a_job_goes_on_from_its_last_checkpoint() -> None:
    begun = (QUEUED, STARTED, jobs.Checkpointed(Raw(b'{"page":1}'), C0), jobs.Checkpointed(Raw(b'{"page":2}'), C1))
    for after in ((), (PAUSED,), (FAILED,), (FAILED, jobs.Resumed(ticket=TICKET, running=True), STARTED)):
        state = fold(jobs, (*begun, *after))
        assert (state.cursor, state.counters) == (Raw(b'{"page":2}'), C1)


def test_a_cursor_of_null_is_the_beginning() -> None:
    assert fold(jobs, (QUEUED, STARTED, jobs.Checkpointed(Raw(b"null"), C1))).cursor is None


def test_what_was_held_is_done_anew_from_the_beginning() -> None:
    begun = (QUEUED, STARTED, jobs.Checkpointed(Raw(b"1"), C1), HELD, jobs.Resumed(ticket=TICKET, running=True))
    state = fold(jobs, begun)
    assert (state.cursor, state.counters) == (None, C1)


def test_a_checkpoint_is_progress() -> None:
    """A worker that brings something and dies is not given up."""
    again = (STARTED, STARTED, STARTED)
    assert fold(jobs, (QUEUED, *again)).attempts == 3
    assert fold(jobs, (QUEUED, *again, jobs.Checkpointed(Raw(b"1"), C1))).attempts == 0
