"""What a consumer from outside may ask of JetStream, and the words it is answered in where we answer ourselves."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from domain import errors
from infra import permissions, subjects

STREAM = "EVENTS"
#: A credential's id: user, domain and beginning of its inboxes and of its consumers' names.
ID = re.compile(r"nc[0-9a-f]{18}")
#: Consumers that one credential may have at a time.
MOST = 32

_NAME = re.compile(r"(nc[0-9a-f]{18})(?:[-_][A-Za-z0-9_-]{1,64})?")
_SECOND = 1_000_000_000
_IDLE_NS, _IDLE_MOST_NS = 300 * _SECOND, 86_400 * _SECOND
_Nanoseconds = Annotated[int, Meta(ge=0, le=_IDLE_MOST_NS)]
_Count = Annotated[int, Meta(ge=-1, le=1_000_000)]
_Word = Annotated[str, Meta(max_length=255)]


class Config(Struct, forbid_unknown_fields=True, omit_defaults=True):
    """A consumer as it may be: pulled, never pushed. The other fields of JetStream are not for consumers from
    outside."""

    name: _Word | None = None
    durable_name: _Word | None = None
    description: _Word | None = None
    deliver_policy: Literal["all", "last", "new", "by_start_sequence", "by_start_time", "last_per_subject"] = "all"
    opt_start_seq: Annotated[int, Meta(ge=0, le=2**62)] | None = None
    opt_start_time: _Word | None = None
    ack_policy: Literal["none", "all", "explicit"] = "none"
    ack_wait: _Nanoseconds = 0
    max_deliver: _Count = 0
    backoff: Annotated[list[_Nanoseconds], Meta(max_length=100)] | None = None
    filter_subject: _Word | None = None
    filter_subjects: Annotated[list[_Word], Meta(max_length=200)] | None = None
    replay_policy: Literal["instant", "original"] = "instant"
    sample_freq: Literal[""] = ""
    max_waiting: Annotated[int, Meta(ge=0, le=512)] = 0
    max_ack_pending: Annotated[int, Meta(ge=-1, le=10_000)] = 0
    headers_only: bool = False
    max_batch: Annotated[int, Meta(ge=0, le=100_000)] = 0
    max_expires: _Nanoseconds = 0
    max_bytes: Annotated[int, Meta(ge=0)] = 0
    inactive_threshold: _Nanoseconds = 0
    num_replicas: Annotated[int, Meta(ge=0, le=1)] = 0
    mem_storage: bool = False
    metadata: Annotated[dict[_Word, _Word], Meta(max_length=16)] | None = None
    # Said by clients that say everything; true means a consumer that is pushed.
    flow_control: Literal[False] = False
    idle_heartbeat: Literal[0] = 0
    rate_limit_bps: Literal[0] = 0


class Create(Struct, forbid_unknown_fields=True, omit_defaults=True):
    stream_name: _Word
    config: Config
    action: Literal["", "create", "update"] = ""
    pedantic: bool = False


class Next(Struct, forbid_unknown_fields=True, omit_defaults=True):
    """A request for messages."""

    batch: Annotated[int, Meta(ge=0, le=100_000)] = 0
    expires: _Nanoseconds = 0
    no_wait: bool = False
    max_bytes: Annotated[int, Meta(ge=0)] = 0
    idle_heartbeat: _Nanoseconds = 0


class Refused(Exception):
    """What is answered instead; `code` is a status as of HTTP."""

    def __init__(self, code: int, description: str) -> None:
        super().__init__(description)
        self.code = code


def owner(name: str) -> str | None:
    """The id of the credential that a consumer's name belongs to."""
    found = _NAME.fullmatch(name)
    return None if found is None else found[1]


def create(id: str, name: str | None, allowed: Sequence[str], body: bytes, fresh: str) -> tuple[str, bytes]:
    """The name of a consumer to be made, and what JetStream is to be asked. `name` is that of the subject, `fresh` one
    for a consumer without. Raises Refused."""
    asked = _decoded(body, Create)
    config = asked.config
    named = {one for one in (name, config.name, config.durable_name) if one}
    if asked.stream_name != STREAM or len(named) > 1:
        raise Refused(400, f"the stream is {STREAM}, and a consumer has one name")
    chosen = named.pop() if named else fresh
    _mine(id, chosen)
    config.name = chosen
    lasting = config.durable_name is not None or config.ack_policy != "none"
    if lasting and chosen not in permissions.acknowledging(id):
        raise Refused(403, f"consumers that last or acknowledge are called {id}, {id}-1, ... {id}-9")
    _narrow(config, allowed)
    if config.durable_name is None:
        config.inactive_threshold = config.inactive_threshold or _IDLE_NS
    return chosen, msgspec.json.encode(asked)


def _narrow(config: Config, allowed: Sequence[str]) -> None:
    """To the subjects of the credential, which is also what nothing stands for."""
    wanted = [one for one in (config.filter_subject, *(config.filter_subjects or ())) if one] or list(allowed)
    if not all(any(subjects.within(one, limit) for limit in allowed) for one in wanted):
        raise Refused(403, f"this credential reads {', '.join(allowed)}")
    single = len(wanted) == 1
    config.filter_subject, config.filter_subjects = (wanted[0], None) if single else (None, wanted)


def following(body: bytes) -> bytes:
    """A request for messages, as JetStream is to be asked. Raises Refused."""
    text = body.strip()
    if not text or text.isdigit():
        return msgspec.json.encode(_decoded(b'{"batch":%b}' % (text[:9] or b"1"), Next))
    return msgspec.json.encode(_decoded(text, Next))


def mine(id: str, name: str) -> str:
    """The name, where it is that of one of the credential's consumers. Raises Refused."""
    return _mine(id, name)


def _mine(id: str, name: str) -> str:
    if owner(name) != id:
        raise Refused(403, f"the names of your consumers begin with {id}")
    return name


def _decoded(body: bytes, kind: type[Any]) -> Any:
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise Refused(400, f"not for consumers from outside: {error}") from None


# What we answer ourselves.


def refusal(error: Refused) -> bytes:
    said = {"code": error.code, "err_code": 10_000 + error.code, "description": str(error)}
    return _answer("error", {"error": said})


def account() -> bytes:
    """A consumer's account: it has nothing, and reads one stream."""
    limits = {"max_memory": -1, "max_storage": -1, "max_streams": -1, "max_consumers": MOST, "max_ack_pending": 0}
    limits |= {"memory_max_stream_bytes": -1, "storage_max_stream_bytes": -1}
    numbers = {"memory": 0, "storage": 0, "streams": 1, "consumers": 0}
    return _answer(
        "account_info_response",
        {**numbers, "limits": {**limits, "max_bytes_required": False}, "api": {"total": 0, "errors": 0}},
    )


def names_of_streams() -> bytes:
    return _answer("stream_names_response", {"total": 1, "offset": 0, "limit": 1024, "streams": [STREAM]})


def names_of_consumers(names: Sequence[str]) -> bytes:
    page = {"total": len(names), "offset": 0, "limit": 1024, "consumers": sorted(names)}
    return _answer("consumer_names_response", page)


def stream(found: Mapping[str, Any], allowed: Sequence[str]) -> bytes:
    """Of the stream only where it begins and ends, in the words of JetStream."""
    if "error" in found:
        return _answer("error", {"error": found["error"]})
    state, config = found["state"], found["config"]
    kept = ("first_seq", "first_ts", "last_seq", "last_ts")
    about: dict[str, Any] = {
        "name": STREAM,
        "subjects": list(allowed),
        "retention": "limits",
        "storage": "file",
        "discard": "old",
    }
    about |= {"max_consumers": MOST, "max_msgs": -1, "max_bytes": -1, "num_replicas": 1}
    about |= {"max_age": config.get("max_age", 0), "max_msgs_per_subject": -1, "max_msg_size": -1}
    numbers: dict[str, Any] = {
        "messages": 0,
        "bytes": 0,
        "consumer_count": 0,
        **{key: state[key] for key in kept if key in state},
    }
    return _answer("stream_info_response", {"config": about, "created": found["created"], "state": numbers})


def _answer(kind: str, fields: Mapping[str, Any]) -> bytes:
    return msgspec.json.encode({"type": f"io.nats.jetstream.api.v1.{kind}", **fields})


def unavailable(error: errors.Error) -> Refused:
    return Refused(503, error.message)
