"""Who may say and hear what over NATS: a user for each kind of process, with what its work needs and nothing more.

`infra/deploy/nats.conf` says the same in the server's own words; one test tries both.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

#: What is in the stream, and where it is governed from.
_EVENTS = "evt.>"
_GOVERNS = ("INFO", "CREATE", "UPDATE", "DELETE", "PURGE", "MSG.GET")
_READERS = ("CREATE", "DELETE")


class May(NamedTuple):
    """Subjects; what is not named is refused. A second word in one to hear is the only queue group it may join."""

    publish: tuple[str, ...]
    subscribe: tuple[str, ...]


def inbox(user: str) -> str:
    """Below it are the inboxes of a user, which nobody else hears."""
    return f"_INBOX.{user}"


#: Who asks JetStream for anything chooses where the answer goes, be it into the stream itself. So nobody asks but who
#: may write there, who also makes the consumers of those that only listen.
USERS: Mapping[str, May] = {
    "relay": May(
        (
            _EVENTS,
            *(f"$JS.API.STREAM.{verb}.EVENTS" for verb in _GOVERNS),
            *(f"$JS.API.CONSUMER.{verb}.EVENTS.>" for verb in _READERS),
        ),
        (f"{inbox('relay')}.>",),
    ),
    "core": May(("$JS.FC.EVENTS.>",), (f"{inbox('core')}.>",)),
    "gateway": May(("ask.*",), (f"{inbox('gateway')}.>",)),
    "worker": May((f"{inbox('gateway')}.>",), ("ask.* workers", f"{inbox('worker')}.>")),
}


def users(passwords: Mapping[str, str]) -> list[dict[str, Any]]:
    """As the server's configuration has them."""
    return [
        {
            "user": name,
            "password": passwords[name],
            "permissions": {"publish": list(may.publish), "subscribe": list(may.subscribe)},
        }
        for name, may in USERS.items()
    ]
