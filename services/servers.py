"""What gateways, the node and SFTP share about servers: syncs with the Panel, and what is said of them over NATS."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import msgspec
from msgspec import Raw, Struct

from domain import errors, jobs, messages, server_config, servers, tenants
from domain.plans import servers as plan
from domain.server_config import Configuration
from infra.eventstore.store import Wish
from infra.vault import Vault
from services import integrations as declarations
from services.gateway.waits import Waits
from services.main import Process

#: The Panel gives up after 15 s and takes back what it wanted; by then a sync must be over.
DEADLINE_S = 12.0

# What is said over core NATS, below `infra.subjects.server`: by the node lines and figures, by whoever has clients that
# it has some, and how many of them a suspension has cut off.
CONSOLE, STATS, LISTENING, CUT = "console", "stats", "listening", "cut"
#: Whoever has clients of a server says so that often; it is believed for some of these.
LISTENING_S = 2.0

#: The kind of what the node is asked.
NODE = "node"


class Heard(Struct):
    """What clients of a server are told, in order: event and text."""

    said: list[tuple[str, str]]


class Network(Struct):
    rx_bytes: int = 0
    tx_bytes: int = 0


class Utilization(Struct):
    """Bytes; `cpu_absolute` in percent of one core, `uptime` in milliseconds."""

    memory_bytes: int
    memory_limit_bytes: int
    cpu_absolute: float
    network: Network
    uptime: int
    state: servers.Power
    disk_bytes: int


class Cut(Struct):
    """How many clients a suspension at a position of the log has cut off in one process."""

    position: int
    clients: int


class Lines(Struct, tag="lines"):
    """Lines for the input of a server; refused with errors.InvalidState where it does not run."""

    server: str
    lines: list[str]


class Recent(Struct, tag="recent"):
    """The last lines of its output, at most so many: answered with a list of them, empty where it does not run."""

    server: str
    lines: int


class Figures(Struct, tag="figures"):
    """Answered with a map to Utilization; whoever is not in it is not known to the node."""

    servers: list[str]


Asked = Lines | Recent | Figures


def stream(uuid: str) -> str:
    return messages.stream(servers.STREAM, tenants.FIRST, uuid)


def still(state: servers.Power, configuration: Configuration, disk_bytes: int = 0) -> Utilization:
    """Of a server of whose process nothing is known."""
    return Utilization(0, server_config.limits(configuration.build).memory, 0.0, Network(), 0, state, disk_bytes)


async def clear(process: Process, configuration: Configuration) -> Configuration:
    """With its secrets. Raises errors.NotFound for one that is not kept."""
    vault = Vault(process.db, process.master)
    references = server_config.secrets(configuration)
    return server_config.with_secrets(configuration, await vault.unseal_all(tenants.FIRST, references))


def queue(uuid: str, until: datetime) -> Wish:
    """A sync of one server that is over by then. They run one after the other: what the Panel said first must not come
    after what it said since."""
    ticket = jobs.Ticket(
        job=declarations.new_id(), kind="servers", type="full_sync", lane="now", target=f"servers/{uuid}"
    )
    spec = Raw(msgspec.json.encode(plan.Spec(uuid)))
    return Wish(jobs, ticket.job, jobs.Queue(jobs.Queued(ticket=ticket, spec=spec, waited=True, deadline=until)), True)


def deadline() -> datetime:
    return datetime.now(UTC) + timedelta(seconds=DEADLINE_S)


async def synced(
    process: Process, waits: Waits, job: str, until: datetime, metadata: messages.Metadata
) -> messages.Recorded:
    """The end of a sync that was queued, if it is a good one; at the deadline it is called off. `job` is its stream.

    Raises errors.NotFound where the Panel knows no such server, errors.TimedOut, errors.SyncFailed: then nothing was
    changed or will be.
    """
    left_s = max((until - datetime.now(UTC)).total_seconds(), 0)
    ended = await waits.ended(job, left_s, process.stopping)
    if ended is None:
        expire = Wish(jobs, job.rpartition("/")[2], jobs.Expire())
        await process.store.execute_all([expire], metadata=metadata)
        ended = await waits.ended(job, 0, process.stopping)
    if ended is None:
        raise errors.SyncFailed("The sync has neither ended nor could it be called off")
    return _good(ended)


def _good(ended: messages.Recorded) -> messages.Recorded:
    position = {"position": ended.position}
    match ended.event:
        case jobs.Completed():
            return ended
        case jobs.Failed(code=errors.NotFound.code):
            raise errors.NotFound("The Panel knows no such server", kind="panel", **position)
        case jobs.Stopped(reason="deadline"):
            raise errors.TimedOut("The Panel took too long; nothing was changed", **position)
        case _:
            raise errors.SyncFailed("The sync failed; nothing was changed", **position)
