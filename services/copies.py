"""JetStream's stream as a copy of the log: in what it is not, and why some of it may be missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from infra import config, jetstream, subjects
from infra.envelope import HASH, Envelope, Verdict, position_of
from infra.eventstore.mapper import LogNotification
from infra.eventstore.store import Store

_KEEPS_EPOCH = "undrift.epoch"
_MOST_ERASED = 100_000

#: The shortest that the server has: sequences tell duplicates, and its memory of ids would grow with the load.
_NO_WINDOW_NS = 100_000_000


class Copy:
    """Compares, and makes anew; `head` is where the log ended when it was last looked at."""

    def __init__(self, store: Store, stream: jetstream.Stream, nats: config.Nats, envelope: Envelope) -> None:
        self.head = 0
        self._explained: frozenset[int] = frozenset()
        self._store, self._stream, self._nats, self._envelope = store, stream, nats, envelope

    async def look(self) -> tuple[jetstream.State | None, str | None]:
        """The stream, and in what it is not the log's copy as far as it goes; None when it is. Changes nothing."""
        state = await self._stream.state()
        self.head = await self._store.head()
        return state, "there is none" if state is None else await self._difference(state)

    async def knows_more(self) -> bool:
        """Whether the last message is ours, of this epoch, and not what the log says: an older log was restored in the
        place of the one that it was copied from."""
        stored = await self._stream.newest(subjects.EVENTS)
        if stored is None or position_of(stored.headers) != stored.sequence:
            return False
        verdict = self._envelope.unpack(stored.headers, stored.data)
        if verdict in (Verdict.FOREIGN, Verdict.FORGED):
            return False
        return not await self._is_logged(stored, verdict)

    async def _is_logged(self, stored: jetstream.Stored, verdict: LogNotification | Verdict) -> bool:
        digest = verdict.hash.hex() if isinstance(verdict, LogNotification) else stored.headers[HASH]
        notes = await self._store.read_raw(stored.sequence - 1, 1)
        return bool(notes) and notes[0].id == stored.sequence and notes[0].hash.hex() == digest

    async def renew(self) -> int:
        """Deletes the stream, and its consumers with it, and makes it to begin at the oldest position to keep, which is
        the answer."""
        await self._stream.delete()
        first = await self._first_within(self._nats.max_age_s) if self._nats.max_age_s else 1
        await self._stream.create({**self._config(), "first_seq": first})
        return first

    async def _difference(self, state: jetstream.State) -> str | None:
        wanted = self._config()
        if wrong := [name for name in wanted if not _same(state.config.get(name), wanted[name])]:
            return f"its settings differ: {', '.join(wrong)}"
        if state.last > self.head:
            return f"it is ahead of the log, at {state.last}"
        if state.messages != state.last - state.first + 1 - len(state.deleted):
            return "its count is wrong"
        if missing := frozenset(state.deleted) - self._explained:
            if not await self._erased(list(missing)):
                return "messages are missing"
            self._explained = frozenset(state.deleted)  # whoever is erased stays so
        if not await self._begins_rightly(state):
            return f"it was purged to {state.first}"
        return await self._last_differs() if state.messages else None

    async def _last_differs(self) -> str | None:
        """Whether the last message that is there is the event of that position, in our epoch and under our key."""
        stored = await self._stream.newest(subjects.EVENTS)
        if stored is None:
            return "its last message is gone"
        verdict = self._envelope.unpack(stored.headers, stored.data)
        if verdict in (Verdict.FOREIGN, Verdict.FORGED) or position_of(stored.headers) != stored.sequence:
            return f"its last message, {stored.sequence}, is not ours"
        same = await self._is_logged(stored, verdict)
        return None if same else f"its last message, {stored.sequence}, is not the log's"

    async def _erased(self, missing: Sequence[int]) -> bool:
        """Whether all that is missing belongs to persons who were erased."""
        return not await self._store.database.fetchval(
            "select exists (select from undrift.events e where e.pos = any ($1::bigint[]) and not exists ("
            " select from undrift_keys.subjects s where s.tenant = e.tenant and s.erased_at is not null"
            " and s.subject = e.metadata::jsonb ->> 'owner'))",
            missing,
        )

    async def _begins_rightly(self, state: jetstream.State) -> bool:
        """Whether limits and erasures explain what is missing between where the stream was made to begin and where
        it begins now."""
        made = int(state.config.get("first_seq") or 1)
        if state.first <= made or (self._nats.max_bytes > 0 and state.messages):
            return True
        if self._nats.max_age_s:
            # The clocks of the two servers may differ a little; what is taken for expired too easily is only a copy.
            made = max(made, await self._first_within(self._nats.max_age_s - min(3600.0, self._nats.max_age_s / 10)))
        missing = range(made, state.first)
        return len(missing) <= _MOST_ERASED and await self._erased(missing)

    async def _older(self, position: int, seconds: float) -> bool:
        return bool(
            await self._store.database.fetchval(
                "select recorded_at < clock_timestamp() - make_interval(secs => $2) from undrift.events where pos = $1",
                position,
                seconds,
            )
        )

    async def _first_within(self, seconds: float) -> int:
        """The first position that is not older, by bisection: time never goes back in the log."""
        low, high = 1, self.head + 1
        while low < high:
            middle = (low + high) // 2
            if await self._older(middle, seconds):
                low = middle + 1
            else:
                high = middle
        return low

    def _config(self) -> dict[str, Any]:
        return {
            "subjects": [subjects.EVENTS],
            "storage": "file",
            "retention": "limits",
            "discard": "old",
            "num_replicas": self._nats.replicas,
            "max_age": int(self._nats.max_age_s * 1e9),
            "max_bytes": self._nats.max_bytes if self._nats.max_bytes > 0 else -1,
            "max_msgs": -1,
            "max_msgs_per_subject": -1,
            "duplicate_window": _NO_WINDOW_NS,
            "allow_direct": True,
            "allow_atomic": True,
            "deny_delete": False,
            "deny_purge": False,
            "sealed": False,
            "metadata": {_KEEPS_EPOCH: str(self._envelope.epoch)},
        }


def _same(found: Any, wanted: Any) -> bool:
    """The server adds its own notes to the metadata, and leaves out what is false."""
    if isinstance(wanted, Mapping):
        return isinstance(found, Mapping) and all(found.get(name) == value for name, value in wanted.items())
    return bool(found == wanted or (wanted is False and found is None))
