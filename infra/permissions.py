"""Who may say and hear what over NATS: a user for each kind of process, with what its work needs and nothing more,
and an account apart for consumers from outside.

`infra/deploy/nats.conf` says the same in the server's own words; one test tries both.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

#: What is in the stream, and where it is governed from.
_EVENTS = "evt.>"
_GOVERNS = ("INFO", "CREATE", "UPDATE", "DELETE", "PURGE", "MSG.GET", "MSG.DELETE")
_READERS = ("CREATE", "DELETE")
_ACKS = "$JS.ACK.EVENTS.>"
_CONNZ = "$SYS.REQ.SERVER.PING.CONNZ"

#: Ours, where the stream is; that of consumers from outside, where there is nothing; and the server's own.
OURS, OUTSIDE, SYSTEM = "UNDRIFT", "CONSUMERS", "SYSTEM"
#: Who asks the server for a connection's place is answered by this user, who also hears what consumers ask for.
GATE = "feeds"
AUTHORISE = "$SYS.REQ.USER.AUTH"
KICK = "$SYS.REQ.SERVER.*.KICK"
CONNECTIONS = "feeds.connections"
#: What consumers say is heard below the one, and what is said below the other they hear in their inboxes.
SAID, TOLD = "feeds.in", "feeds.out"
#: A credential's consumers that acknowledge: one of its own name, and so many more with a number.
_NUMBERED = 9


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
    "gateway": May(("ask.*", "servers.*.listening", "servers.*.cut"), ("servers.>", f"{inbox('gateway')}.>")),
    "worker": May((f"{inbox('gateway')}.>",), ("ask.* workers", f"{inbox('worker')}.>")),
    "node": May(
        (f"{inbox('gateway')}.>", "servers.*.console", "servers.*.stats"),
        ("ask.node workers", "servers.*.listening", f"{inbox('node')}.>"),
    ),
    "sftp": May(("servers.*.cut",), (f"{inbox('sftp')}.>",)),
    GATE: May(
        (
            f"{TOLD}.>",
            "$SYS._INBOX.>",
            KICK,
            CONNECTIONS,
            "$JS.API.STREAM.INFO.EVENTS",
            "$JS.API.CONSUMER.NAMES.EVENTS",
            *(f"$JS.API.CONSUMER.{verb}.EVENTS.>" for verb in ("CREATE", "INFO", "DELETE", "MSG.NEXT")),
            "$JS.ACK.EVENTS.>",
        ),
        (f"{AUTHORISE} {GATE}", f"{SAID}.> {GATE}", f"{inbox(GATE)}.>"),
    ),
}


def acknowledging(id: str) -> tuple[str, ...]:
    """The consumers of a credential that may acknowledge: subjects cannot tell a name by how it begins."""
    return (id, *(f"{id}-{number}" for number in range(1, _NUMBERED + 1)))


def consumer(id: str) -> May:
    """A credential for outside: it asks in its own name alone, and is answered in its own inboxes."""
    acks = (f"$JS.ACK.EVENTS.{name}.>" for name in acknowledging(id))
    return May((f"$JS.{id}.API.>", *acks), (f"{inbox(id)}.>",))


def accounts(password: str, passwords: Mapping[str, str]) -> dict[str, Any]:
    """As the server's configuration has them; `password` is that of `system`, who may do everything in ours.

    Streams, not services, lie between the accounts: the answer to a service goes wherever the asker says, be it into
    what another one asks.
    """
    heard = [{"stream": {"account": OUTSIDE, "subject": each}, "prefix": SAID} for each in ("$JS.*.API.>", _ACKS)]
    watched = {"service": {"account": SYSTEM, "subject": _CONNZ}, "to": CONNECTIONS}
    return {
        OURS: {
            "jetstream": "enabled",
            "users": [{"user": "system", "password": password}, *users(passwords)],
            "imports": [*heard, watched, {"service": {"account": SYSTEM, "subject": KICK}}],
            "exports": [{"stream": f"{TOLD}.>", "accounts": [OUTSIDE]}],
        },
        OUTSIDE: {
            "imports": [{"stream": {"account": OURS, "subject": f"{TOLD}.>"}, "to": "_INBOX.>"}],
            "exports": [{"stream": each, "accounts": [OURS]} for each in ("$JS.*.API.>", _ACKS)],
        },
        SYSTEM: {
            "exports": [
                {"service": KICK, "accounts": [OURS]},
                {"service": _CONNZ, "response_type": "stream", "accounts": [OURS]},
            ]
        },
    }


def callout(issuer: str) -> dict[str, Any]:
    """Whoever is none of our users is asked about; ours come in whether or not somebody is there to answer.
    `issuer` is the public key of who signs the answers."""
    return {"timeout": 4, "auth_callout": {"issuer": issuer, "account": OURS, "auth_users": ["system", *USERS]}}


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
