"""Our recorder behind the library's synchronous interface, so that the library's own contract tests can run on it."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Coroutine, Sequence
from types import ModuleType
from typing import Any, TypeVar
from uuid import UUID

from eventsourcing.persistence import (
    ListenNotifySubscription,
    Notification,
    ProcessRecorder,
    StoredEvent,
    Subscription,
    Tracking,
)

from infra.db import Database
from infra.eventstore.recorder import Recorder
from infra.hints import Hints

T = TypeVar("T")


def contract() -> ModuleType:
    """The library's test cases. Their module also imports its AES cipher, which needs a package that neither we nor
    any test of a recorder use."""
    if "eventsourcing.cipher" not in sys.modules:
        unused = ModuleType("eventsourcing.cipher")
        unused.__dict__["AESCipher"] = None
        sys.modules["eventsourcing.cipher"] = unused
    import eventsourcing.tests.persistence

    return eventsourcing.tests.persistence


class Facade(ProcessRecorder):
    """Every method runs on an event loop of the facade's own thread."""

    def __init__(self, url: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._database = Database(url, 4)
        self._recorder = Recorder(self._database)
        self.hints = Hints(self._database)
        self._listening = asyncio.run_coroutine_threadsafe(self.hints.run(), self._loop)

    def close(self) -> None:
        self._listening.cancel()
        self._wait(self._database.close())
        self._wait(_settled())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _wait(self, doing: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(doing, self._loop).result(timeout=60)

    def insert_events(
        self, stored_events: Sequence[StoredEvent], *, tracking: Tracking | None = None, **kwargs: Any
    ) -> Sequence[int]:
        return self._wait(self._recorder.insert_events(stored_events, tracking))

    def select_events(self, originator_id: UUID | str, **kwargs: Any) -> Sequence[StoredEvent]:
        return self._wait(self._recorder.select_events(originator_id, **kwargs))

    def select_notifications(
        self,
        start: int | None,
        limit: int,
        stop: int | None = None,
        topics: Sequence[str] = (),
        *,
        inclusive_of_start: bool = True,
    ) -> Sequence[Notification]:
        return self._wait(
            self._recorder.select_notifications(start, limit, stop, topics, inclusive_of_start=inclusive_of_start)
        )

    def max_notification_id(self) -> int | None:
        return self._wait(self._recorder.max_notification_id())

    def insert_tracking(self, tracking: Tracking) -> None:
        self._wait(self._recorder.insert_tracking(tracking))

    def max_tracking_id(self, application_name: str) -> int | None:
        return self._wait(self._recorder.max_tracking_id(application_name))

    def subscribe(self, gt: int | None = None, topics: Sequence[str] = ()) -> Subscription[Facade]:
        return Woken(self, gt, topics)


async def _settled() -> None:
    """Lets cancelled tasks end."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    await asyncio.gather(*others, return_exceptions=True)


class Woken(ListenNotifySubscription[Facade]):
    """The library's subscription, woken by the log's own notifications."""

    def __init__(self, recorder: Facade, gt: int | None, topics: Sequence[str]) -> None:
        super().__init__(recorder, gt, topics)
        self._forget = recorder.hints.subscribe(lambda _: self._has_been_notified.set())

    def __exit__(self, *args: object, **kwargs: Any) -> None:
        self._forget()
        super().__exit__(*args, **kwargs)
