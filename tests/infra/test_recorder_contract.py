"""The eventsourcing library's own contract tests, all of them, against our recorder."""

from __future__ import annotations

from collections.abc import Iterator
from uuid import UUID, uuid4

import pytest
from eventsourcing.persistence import IntegrityError, StoredEvent

from tests.infra.facade import Facade, contract

library = contract()


class _OnOurs:
    """A log of its own for every test, because the library counts positions from 1. Streams are named by text."""

    recorder: Facade

    @pytest.fixture(autouse=True)
    def _empty_log(self, database: str) -> Iterator[None]:
        self.recorder = Facade(database)
        yield
        self.recorder.close()

    def create_recorder(self) -> Facade:
        return self.recorder

    def new_originator_id(self) -> UUID | str:
        return f"contract/main/{uuid4()}"


class TestApplicationRecorder(_OnOurs, library.ApplicationRecorderTestCase):
    def test_insert_subscribe(self) -> None:
        self.optional_test_insert_subscribe()


class TestTrackingRecorder(_OnOurs, library.TrackingRecorderTestCase):
    pass


class TestProcessRecorder(_OnOurs, library.ProcessRecorderTestCase):
    pass


class TestNonInterleaving(_OnOurs, library.NonInterleavingNotificationIDsBaseCase):
    pass


def test_none_of_the_library_s_tests_is_left_out() -> None:
    kinds = (TestApplicationRecorder, TestTrackingRecorder, TestProcessRecorder, TestNonInterleaving)
    names = [(kind, name) for kind in kinds for name in dir(kind) if name.startswith("test")]
    assert len(names) == 11 + 1, names


def _event(version: int) -> StoredEvent:
    return StoredEvent("contract/main/a", version, "topic", b"state")


class TestIntegrity(_OnOurs):
    """What the library asks of recorders that only keep aggregates, whose case wants no positions in the answer."""

    @pytest.mark.parametrize("versions", [(1,), (1, 2), (2, 2), (4,), (3, 5), (0,)])
    def test_what_does_not_follow_is_refused_whole(self, versions: tuple[int, ...]) -> None:
        self.recorder.insert_events([_event(1), _event(2)])
        with pytest.raises(IntegrityError):
            self.recorder.insert_events([_event(version) for version in versions])
        assert [event.originator_version for event in self.recorder.select_events("contract/main/a")] == [1, 2]

    def test_a_stream_that_begins_at_0_begins_once(self) -> None:
        assert self.recorder.insert_events([_event(0)]) == [1]
        with pytest.raises(IntegrityError):
            self.recorder.insert_events([_event(0)])
        assert self.recorder.insert_events([_event(1)]) == [2]

    def test_ranges_of_versions(self) -> None:
        self.recorder.insert_events([_event(version) for version in range(1, 6)])
        select = self.recorder.select_events
        assert [e.originator_version for e in select("contract/main/a", desc=True, limit=1)] == [5]
        assert [e.originator_version for e in select("contract/main/a", gt=1, lte=2)] == [2]
        assert [e.originator_version for e in select("contract/main/a", lte=3, desc=True, limit=2)] == [3, 2]
