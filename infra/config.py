"""Every setting, in one class: `undrift.toml` has `[section] key`, the environment `UNDRIFT_SECTION_KEY`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct, field

Positive = Annotated[int, Meta(ge=1)]
NotNegative = Annotated[int, Meta(ge=0)]
Port = Annotated[int, Meta(ge=0, le=65535)]
Seconds = Annotated[float, Meta(gt=0)]
Level = Annotated[str, Meta(pattern="^(debug|info|warning|error)$", description="debug, info, warning or error")]
Format = Annotated[str, Meta(pattern="^(auto|json|console)$", description="auto, json or console")]


class InvalidSetting(Exception):
    """A setting is unknown or of the wrong kind; the message names it and what was expected."""


class Database(Struct, forbid_unknown_fields=True):
    """`url` replaces the embedded server. `durable = false` admits one that may forget what it acknowledged."""

    url: str = ""
    connections: Positive = 8
    durable: bool = True


class Nats(Struct, forbid_unknown_fields=True):
    """`url` replaces the embedded server. `replicas` is 3 on a cluster. `passwords` are those of the users `gateway`,
    `worker`, `core`, `relay`, `feeds`, `node` and `sftp`; who finds none there connects as the address says. `issuer`
    signs for consumers from outside, `public_url` is where they are told to connect; `consumer_rate` is how many
    acknowledgements a second each may send (a request counts as 20; more than that waits, and a flood is sent away),
    `consumer_check_s` how often those that may no longer be here are looked for."""

    url: str = ""
    passwords: dict[str, str] = field(default_factory=dict)
    issuer: str = ""
    public_url: str = ""
    consumer_rate: Positive = 20_000
    consumer_check_s: Seconds = 10.0
    replicas: Positive = 1
    max_age_s: Annotated[float, Meta(ge=0)] = 7 * 86400.0
    max_bytes: int = -1
    connect_timeout_s: Seconds = 2.0
    reconnect_s: Seconds = 0.2
    ping_s: Seconds = 2.0


class Gateway(Struct, forbid_unknown_fields=True):
    """Where requests come in, and how patient the server is with them.

    `connections_per_address` does not bind peers on this machine, which may be proxies.
    """

    host: str = ""
    port: Port = 8080
    also_listen: list[Port] = field(default_factory=lambda: [3001])
    cors_origins: list[str] = field(default_factory=list)
    cors_ports: list[Port] = field(default_factory=lambda: [5173, 3000, 8080, 3001])
    header_timeout_s: Seconds = 10.0
    body_min_bytes_per_s: Positive = 1024
    body_grace_s: Seconds = 15.0
    write_timeout_s: Seconds = 30.0
    keep_alive_s: Seconds = 75.0
    connections: Positive = 20_000
    connections_per_address: Positive = 1_000
    max_body_bytes: Positive = 10 * 1024 * 1024
    shutdown_s: Seconds = 3.0
    read_wait_s: Seconds = 2.0
    long_poll_s: Seconds = 30.0
    heartbeat_s: Seconds = 15.0
    live_poll_s: Seconds = 0.25


class Limits(Struct, forbid_unknown_fields=True):
    """Requests that each credential, or else each address, has in any minute, by family of routes (0: no limit), of
    all gateways together. `trusted_proxies` are addresses or networks whose `X-Forwarded-For` is believed; Postgres has
    `patience_s` to answer before a gateway counts for itself."""

    family1: NotNegative = 0
    family2: NotNegative = 0
    family3: NotNegative = 100
    family4: NotNegative = 0
    family5: NotNegative = 0
    trusted_proxies: list[str] = field(default_factory=list)
    patience_s: Seconds = 1.0


class Health(Struct, forbid_unknown_fields=True):
    """When `/api/v1/health` calls storage low, and memory high: with less room than `free_bytes` in the data directory,
    and where a gateway holds more than `memory_bytes` (0: nine tenths of what it may have)."""

    free_bytes: NotNegative = 1024 * 1024 * 1024
    memory_bytes: NotNegative = 0


class Traces(Struct, forbid_unknown_fields=True):
    """`endpoint` is where an OpenTelemetry collector takes traces by OTLP over HTTP; empty: no traces are made. What a
    client asked to trace is traced; of the rest, this `ratio`."""

    endpoint: str = ""
    service: str = "undrift"
    ratio: Annotated[float, Meta(ge=0, le=1)] = 1.0


class Auth(Struct, forbid_unknown_fields=True):
    """`open_loopback` admits families 1 and 2 without a token from this machine (on in the embedded mode);
    `session_days` is how long a user's session lasts after it was opened or refreshed."""

    open_loopback: bool | None = None
    session_days: Seconds = 30.0


class Log(Struct, forbid_unknown_fields=True):
    """`auto` is for people on a terminal, else one JSON object per line."""

    level: Level = "info"
    format: Format = "auto"


class EventStore(Struct, forbid_unknown_fields=True):
    """`queue` bounds the commands that wait for the next group; `seal_every` positions share one seal; an idempotency
    key means something for `keep_keys_days`, which is looked at every `sweep_s`."""

    queue: Positive = 10_000
    group_events: Annotated[int, Meta(ge=1, le=1000)] = 256
    seal_every: Positive = 1000
    seal_s: Seconds = 5.0
    keep_keys_days: Annotated[float, Meta(ge=1)] = 7.0
    sweep_s: Seconds = 3600.0
    reconnect_s: Seconds = 0.2


class Relay(Struct, forbid_unknown_fields=True):
    batch_messages: Annotated[int, Meta(ge=1, le=1000)] = 1000
    batch_bytes: Positive = 8 * 1024 * 1024
    pace_s: Annotated[float, Meta(ge=0)] = 0.008
    check_s: Seconds = 10.0
    publish_timeout_s: Seconds = 5.0
    poll_s: Seconds = 1.0
    degraded_s: Seconds = 10.0


class Tail(Struct, forbid_unknown_fields=True):
    """`grace_s` is how long a hint from Postgres waits for the message itself from JetStream; looks that follow one
    another are at least `pace_s` apart."""

    poll_s: Seconds = 1.0
    client_poll_s: Seconds = 0.25
    grace_s: Annotated[float, Meta(ge=0)] = 0.15
    pace_s: Annotated[float, Meta(ge=0)] = 0.01
    page: Positive = 1000


class Projector(Struct, forbid_unknown_fields=True):
    """Transactions that follow one another are at least `pace_s` apart, and wait `gather_s` for what is on its way."""

    page: Positive = 1000
    pace_s: Annotated[float, Meta(ge=0)] = 0.005
    gather_s: Annotated[float, Meta(ge=0)] = 0.002
    check_s: Seconds = 1.0
    retry_s: Seconds = 0.5


class Jobs(Struct, forbid_unknown_fields=True):
    """`wait_s` is how long a request of family 3 waits for its job before it is answered 202."""

    wait_s: Seconds = 600.0
    beat_s: Seconds = 1.0
    lease_s: Seconds = 5.0
    poll_s: Seconds = 1.0
    concurrency: Positive = 4
    min_full_interval_s: Annotated[float, Meta(ge=0)] = 0.0
    log_lines: Positive = 1000
    stop_grace_s: Seconds = 5.0


class Scheduler(Struct, forbid_unknown_fields=True):
    tick_s: Seconds = 1.0


class Policies(Struct, forbid_unknown_fields=True):
    """How jobs of integrations are tried, where an integration does not say otherwise: after `breaker_failures` in a
    row (0: never) its scheduled runs wait. `concurrency` of them run at a time, by all workers together, if that is
    set."""

    attempts: Annotated[int, Meta(ge=1, le=100)] = 5
    backoff_s: Annotated[float, Meta(ge=0, le=604_800)] = 2.0
    backoff_max_s: Annotated[float, Meta(ge=0, le=604_800)] = 300.0
    breaker_failures: Annotated[int, Meta(ge=0, le=100)] = 5
    breaker_pause_s: Annotated[float, Meta(ge=0, le=604_800)] = 60.0
    breaker_pause_max_s: Annotated[float, Meta(ge=0, le=604_800)] = 3600.0
    timeout_s: Annotated[float, Meta(ge=0, le=604_800)] = 0.0
    concurrency: Positive | None = None


class Files(Struct, forbid_unknown_fields=True):
    """`roots` are the only folders that requests may touch."""

    roots: list[str] = field(default_factory=list)
    max_delete_fraction: Annotated[float, Meta(gt=0, le=1)] = 0.5
    max_delete_count: Positive | None = None
    marker: str = ""
    trash_days: Annotated[float, Meta(ge=0)] = 30.0


class Network(Struct, forbid_unknown_fields=True):
    """The directories of the RAIDA network: with any, the integration `network` is declared."""

    directories: list[str] = field(default_factory=list)
    sync_interval_s: Positive = 3600
    sync_at_start: bool = True
    timeout_s: Annotated[float, Meta(gt=0, le=300)] = 30.0
    patience_s: Annotated[float, Meta(ge=0, le=300)] = 2.0
    max_rows: Annotated[int, Meta(ge=1, le=1_000_000)] = 100_000
    max_change_fraction: Annotated[float, Meta(gt=0, le=1)] = 0.2
    ping: bool = True
    ping_timeout_s: Annotated[float, Meta(gt=0, le=10)] = 2.0
    wait_s: Seconds = 60.0


class Collections(Struct, forbid_unknown_fields=True):
    """What a run brings from outside: more than `max_items` is taken for an error of the remote's, and deletions of
    more than this part of what there is are held until somebody confirms them."""

    max_items: Positive = 1_000_000
    max_delete_fraction: Annotated[float, Meta(gt=0, le=1)] = 0.5


class Library(Struct, forbid_unknown_fields=True):
    """Of each user: how many bytes (0: no limit) and how many uploads may be open; an upload that nothing was heard
    of for `upload_hours` is dropped."""

    quota_bytes: Annotated[int, Meta(ge=0)] = 0
    upload_sessions: Positive = 1000
    upload_hours: Seconds = 24.0
    sweep_s: Seconds = 60.0
    keep_versions: Annotated[int, Meta(ge=0)] = 0
    keep_days: Annotated[float, Meta(ge=0)] = 0.0
    stale_days: Annotated[float, Meta(gt=0)] = 90.0
    retain_s: Seconds = 600.0
    drop_s: Seconds = 600.0


class Webhooks(Struct, forbid_unknown_fields=True):
    """Where events may be sent: to `https` addresses, at one of these `ports` (empty: any), that the whole world can
    reach. `allow_http` admits plain HTTP, `allow_private` addresses of private networks and this machine;
    `allow_loopback` both for this machine alone, at any port (on in the embedded mode). A rotated secret may stay
    valid for `rotation_hours`; a replay has at most `replay_events`.

    An attempt ends after `timeout_s`; `per_endpoint` are under way at once for one endpoint, `concurrency` for all.
    What fails is tried again after `retry_s`, twice that each time, up to `retry_max_s`, until `give_up_s` have passed;
    an answer's `Retry-After` counts up to `retry_after_max_s`. An endpoint that fails again and again is asked every
    `probe_s`, and disabled after `disable_after_s`. What is done is kept for `keep_days`."""

    allow_http: bool = False
    allow_private: bool = False
    allow_loopback: bool | None = None
    ports: list[Port] = field(default_factory=lambda: [80, 443, 8080, 8443])
    endpoints_per_tenant: Positive = 100
    rotation_hours: Annotated[float, Meta(ge=0, le=24)] = 24.0
    replay_events: Positive = 1_000_000
    timeout_s: Annotated[float, Meta(gt=0, le=300)] = 15.0
    per_endpoint: Positive = 16
    concurrency: Positive = 1000
    retry_s: Seconds = 5.0
    retry_max_s: Seconds = 21_600.0
    retry_after_max_s: Seconds = 3600.0
    give_up_s: Seconds = 259_200.0
    probe_s: Seconds = 60.0
    disable_after_s: Seconds = 259_200.0
    keep_days: Annotated[float, Meta(ge=0)] = 30.0
    poll_s: Seconds = 1.0


class Sessions(Struct, forbid_unknown_fields=True):
    """A sync session that nobody names for `lease_s` ends itself; every `tick_s` it is looked what is to end."""

    lease_s: Seconds = 86_400.0
    tick_s: Seconds = 1.0


class Blobs(Struct, forbid_unknown_fields=True):
    """Where the bytes of libraries are kept: a folder of the data directory, or `s3://bucket/prefix`,
    `az://container/prefix`, `gs://bucket/prefix`, `file:///folder`. Credentials come from the provider's own
    environment variables, such as AWS_ACCESS_KEY_ID."""

    url: str = ""


class Panel(Struct, forbid_unknown_fields=True):
    """Whose servers this node runs. `token` is what the Panel shows, too; `ca_file` who vouches for its certificate,
    where that is not one of the machine's authorities. A question is asked again for `budget_s`, each time for
    `timeout_s` at most: the Panel itself gives up after 15 s. All servers are listed every `list_s` (0: at the start
    only); what would suspend or lose more than `max_change_fraction` of them at once is held."""

    url: str = ""
    token_id: str = ""
    token: str = ""
    ca_file: str = ""
    timeout_s: Seconds = 8.0
    budget_s: Seconds = 10.0
    connections: Positive = 32
    list_s: Annotated[float, Meta(ge=0)] = 300.0
    max_change_fraction: Annotated[float, Meta(gt=0, le=1)] = 0.2


class Servers(Struct, forbid_unknown_fields=True):
    """How this node runs servers: their files below `directory` (empty: `servers` in the data directory), each a
    process of this machine or a container, or nothing of it here (`none`).

    `user`, a name or numbers such as `988:988`, owns processes and files; empty: whoever runs us, and 988:988 for root.
    Below `allowed_mounts` lies what a server may have mounted. Who is told to end and does not is killed after
    `stop_s`; who crashed twice within `crash_s` is not started again.
    """

    directory: str = ""
    runtime: Literal["processes", "docker", "none"] = "processes"
    user: str = ""
    docker_socket: str = "/var/run/docker.sock"
    timezone: str = "UTC"
    allowed_mounts: list[str] = field(default_factory=list)
    pids: Positive = 512
    stop_s: Seconds = 60.0
    crash_s: Seconds = 60.0
    stats_s: Seconds = 1.0


class Sftp(Struct, forbid_unknown_fields=True):
    """SFTP to the files of servers; port 0: any, as ready.json then says."""

    enabled: bool = True
    host: str = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65_535)] = 2022
    connections: Positive = 200
    login_s: Seconds = 30.0
    idle_s: Seconds = 300.0


class Up(Struct, forbid_unknown_fields=True):
    """How patient the supervisor is: with a first sign of life, with silence after it, and at the end.

    A process that ended is started again after `backoff_s`, twice that each time, up to `backoff_max_s`.
    """

    start_s: Seconds = 60.0
    silence_s: Seconds = 15.0
    backoff_s: Seconds = 0.1
    backoff_max_s: Seconds = 10.0
    stop_s: Annotated[float, Meta(ge=1)] = 9.0


class IntegrationDeclared(Struct, forbid_unknown_fields=True):
    """An integration declared in the file: `[[integrations]]` with `id`, `name`, `kind`, `sync_interval`, `config`,
    `schedule`, `policy`; the last three in the words of the API."""

    id: str
    name: str
    kind: str
    sync_interval: Positive | None = None
    config: dict[str, Any] = field(default_factory=dict)
    schedule: dict[str, Any] | None = None
    policy: dict[str, Any] | None = None


class Settings(Struct, forbid_unknown_fields=True):
    data_dir: str = ""
    database: Database = field(default_factory=Database)
    nats: Nats = field(default_factory=Nats)
    gateway: Gateway = field(default_factory=Gateway)
    limits: Limits = field(default_factory=Limits)
    health: Health = field(default_factory=Health)
    traces: Traces = field(default_factory=Traces)
    auth: Auth = field(default_factory=Auth)
    log: Log = field(default_factory=Log)
    eventstore: EventStore = field(default_factory=EventStore)
    relay: Relay = field(default_factory=Relay)
    tail: Tail = field(default_factory=Tail)
    projector: Projector = field(default_factory=Projector)
    jobs: Jobs = field(default_factory=Jobs)
    scheduler: Scheduler = field(default_factory=Scheduler)
    policies: Policies = field(default_factory=Policies)
    files: Files = field(default_factory=Files)
    collections: Collections = field(default_factory=Collections)
    network: Network = field(default_factory=Network)
    library: Library = field(default_factory=Library)
    sessions: Sessions = field(default_factory=Sessions)
    webhooks: Webhooks = field(default_factory=Webhooks)
    blobs: Blobs = field(default_factory=Blobs)
    panel: Panel = field(default_factory=Panel)
    servers: Servers = field(default_factory=Servers)
    sftp: Sftp = field(default_factory=Sftp)
    up: Up = field(default_factory=Up)
    integrations: list[IntegrationDeclared] = field(default_factory=list)

    @property
    def directory(self) -> Path:
        return Path(self.data_dir)
