"""Who may do what: keys, scopes, this machine without a key, other origins, and how often."""

from __future__ import annotations

import base64
import json
import os
from typing import Any

import aiohttp
import pytest
from litestar import Litestar
from litestar.handlers import asgi
from litestar.types import Receive, Scope, Send

from domain import errors, keys
from infra import config
from services import tokens
from services.gateway import auth, dialects, limits
from services.gateway.auth import Authenticator, Principal
from services.gateway.cors import Cors
from services.gateway.dialects import EONACAT, JOBS, NETWORK, OURS, PINAKES, WINGS
from services.gateway.edge import Edge


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Keys:
    """The read model's part: principals by the hash of their token."""

    def __init__(self) -> None:
        self.principals: dict[str, Principal] = {}
        self.asked: list[str] = []

    def add(self, **fields: Any) -> str:
        number = f"k{len(self.principals)}"
        made = tokens.of_key(number, base64.urlsafe_b64encode(os.urandom(32)).rstrip(b"=").decode())
        principal = Principal(**{"tenant": "main", "id": number, "kind": "key", **fields})
        self.principals[tokens.digest(made)] = principal
        return made

    async def look_up(self, mark: str) -> Principal | None:
        self.asked.append(mark)
        return self.principals.get(mark)


@pytest.fixture
def stored() -> Keys:
    return Keys()


@pytest.fixture
def clock() -> Clock:
    return Clock()


def gate(stored: Keys, clock: Clock, *, open_loopback: bool = False, limit: int = 100) -> Authenticator:
    cors = Cors(config.Gateway(cors_origins=["https://app.example.com"]))
    counted = limits.Limits(config.Limits(family3=limit), clock)
    return Authenticator(stored.look_up, cors, counted, open_loopback=open_loopback, fresh_s=5.0, clock=clock)


def request(token: str | None = None, client: str = "127.0.0.1", **headers: str) -> dict[str, Any]:
    sent = {"host": "localhost:8080", **headers}
    if token is not None:
        sent["authorization"] = f"Bearer {token}"
    return {"headers": [(k.encode(), v.encode()) for k, v in sent.items()], "client": (client, 50_000)}


async def test_a_key_opens_families_1_to_3_and_ours_and_nothing_else(stored: Keys, clock: Clock) -> None:
    token = stored.add(scopes=frozenset({"admin"}))
    admission = gate(stored, clock)

    for dialect in (NETWORK, JOBS, EONACAT, OURS):
        scope = request(token)
        assert (await admission.admit(scope, dialect)).actor == "key:k0"
        assert scope["user"].id == "k0"
    for dialect, refused in ((PINAKES, errors.Unauthenticated), (WINGS, errors.Forbidden)):
        with pytest.raises(refused):
            await admission.admit(request(token), dialect)


async def test_scopes_are_exact_and_admin_is_all_of_them(stored: Keys, clock: Clock) -> None:
    admission = gate(stored, clock)
    reader = stored.add(scopes=frozenset({"jobs:read"}))
    admin = stored.add(scopes=frozenset({"admin"}))

    await admission.admit(request(reader), JOBS, "jobs:read")
    await admission.admit(request(admin), JOBS, "jobs:write")
    for scope in ("jobs:write", "files:read", "admin"):
        with pytest.raises(errors.Forbidden):
            await admission.admit(request(reader), JOBS, scope)
    with pytest.raises(errors.Forbidden):
        auth.require(Principal("main", "x", "key"), "jobs:read")


@pytest.mark.parametrize(
    "credential",
    [
        "",
        "Bearer",
        "Bearer ",
        "Basic dXNlcjpwdw==",
        "Bearer x",
        "Bearer null",
        "Bearer udk_k0_short",
        "Bearer udk_k0_" + "A" * 43,
        "Bearer udk_K0_" + "A" * 43,
        "Bearer eyJhbGciOiJub25lIn0.eyJzdWIiOiJhZG1pbiJ9.",
        "Bearer udk_k0_" + "A" * 43 + ", Bearer udk_k0_" + "A" * 43,
        "Bearer " + "A" * 60_000,
        "Bearer udk_k0_' or 1=1 --",
    ],
)
async def test_missing_and_wrong_tokens_get_the_same_answer(stored: Keys, clock: Clock, credential: str) -> None:
    admission = gate(stored, clock)
    stored.add(scopes=frozenset({"admin"}))
    replies = []
    for scope in (request(), request(authorization=credential)):
        with pytest.raises(errors.Unauthenticated) as caught:
            await admission.admit(scope, JOBS, "jobs:read")
        replies.append(JOBS.error(caught.value, "/api/sync/jobs"))

    assert replies[0].body == replies[1].body
    assert replies[0].headers == replies[1].headers == [(b"www-authenticate", b"Bearer")]


async def test_what_is_no_token_is_never_looked_up(stored: Keys, clock: Clock) -> None:
    with pytest.raises(errors.Unauthenticated):
        await gate(stored, clock).admit(request("not a token"), JOBS)

    assert stored.asked == []


async def test_only_the_hash_of_a_token_is_asked_for_and_remembered(stored: Keys, clock: Clock) -> None:
    token = stored.add()
    admission = gate(stored, clock)
    for _ in range(3):
        await admission.admit(request(token), JOBS)
    clock.now += 6
    await admission.admit(request(token), JOBS)

    assert stored.asked == [tokens.digest(token)] * 2
    assert token not in repr(vars(admission))


async def test_a_revoked_key_is_dead_at_once_whatever_the_read_model_says(stored: Keys, clock: Clock) -> None:
    token, other = stored.add(), stored.add()
    admission = gate(stored, clock)
    await admission.admit(request(token), JOBS)
    admission.revoke("k0")

    with pytest.raises(errors.Unauthenticated):
        await admission.admit(request(token), JOBS)
    await admission.admit(request(other), JOBS)


async def test_a_key_revoked_while_it_is_looked_up_is_refused(stored: Keys, clock: Clock) -> None:
    token = stored.add()

    async def slowly(mark: str) -> Principal | None:
        found = await stored.look_up(mark)
        admission.revoke("k0")
        return found

    admission = Authenticator(slowly, Cors(config.Gateway()), limits.Limits(config.Limits()), clock=clock)
    for _ in range(2):
        with pytest.raises(errors.Unauthenticated):
            await admission.admit(request(token), JOBS)


def test_scopes_may_be_named_by_their_area() -> None:
    assert tokens.scopes(["jobs", "files:read"]) == {"jobs:read", "jobs:write", "files:read"}
    assert auth.LOOPBACK.scopes <= keys.SCOPES
    with pytest.raises(errors.Invalid):
        tokens.scopes(["jobs:execute"])


@pytest.mark.parametrize("client", ["127.0.0.1", "127.8.9.1", "::1", "::ffff:127.0.0.1"])
@pytest.mark.parametrize("host", ["localhost:8080", "LOCALHOST", "127.0.0.1:1", "[::1]:3001"])
async def test_this_machine_needs_no_key_for_families_1_and_2(
    stored: Keys, clock: Clock, client: str, host: str
) -> None:
    admission = gate(stored, clock, open_loopback=True)
    for dialect, needs in ((NETWORK, "network:write"), (JOBS, "jobs:write")):
        assert await admission.admit(request(client=client, host=host), dialect, needs) is auth.LOOPBACK


@pytest.mark.parametrize("origin", ["http://localhost:5173", "http://127.0.0.1:3000", "https://app.example.com"])
async def test_this_machine_may_come_from_an_allowed_page(stored: Keys, clock: Clock, origin: str) -> None:
    assert await gate(stored, clock, open_loopback=True).admit(request(origin=origin), JOBS)


@pytest.mark.parametrize(
    ("client", "headers"),
    [
        ("192.168.1.7", {}),
        ("10.0.0.1", {"x-forwarded-for": "127.0.0.1"}),
        ("::ffff:192.168.1.7", {}),
        ("127.0.0.1", {"host": "evil.example:8080"}),
        ("127.0.0.1", {"host": "localhost.evil.example"}),
        ("127.0.0.1", {"host": "127.0.0.1.nip.io"}),
        ("127.0.0.1", {"host": ""}),
        ("127.0.0.1", {"host": "localhost@evil.example"}),
        ("127.0.0.1", {"origin": "https://evil.example"}),
        ("127.0.0.1", {"origin": "http://localhost:9999"}),
        ("127.0.0.1", {"origin": "http://localhost.evil.example:3000"}),
        ("127.0.0.1", {"origin": "null"}),
        ("127.0.0.1", {"origin": ""}),
        ("127.0.0.1", {"authorization": "Bearer x"}),
    ],
)
async def test_no_rebinding_no_cross_site_post_no_other_machine(
    stored: Keys, clock: Clock, client: str, headers: dict[str, str]
) -> None:
    with pytest.raises(errors.Unauthenticated):
        await gate(stored, clock, open_loopback=True).admit(request(client=client, **headers), JOBS)


async def test_this_machine_without_a_key_opens_nothing_else(stored: Keys, clock: Clock) -> None:
    for dialect in (EONACAT, OURS, PINAKES, WINGS):
        with pytest.raises(errors.Unauthenticated):
            await gate(stored, clock, open_loopback=True).admit(request(), dialect)
    with pytest.raises(errors.Unauthenticated):
        await gate(stored, clock).admit(request(), JOBS)
    with pytest.raises(errors.Forbidden):
        await gate(stored, clock, open_loopback=True).admit(request(), JOBS, "databases:raw")


async def test_no_more_than_the_limit_in_any_minute(clock: Clock) -> None:
    limiter = limits.Limiter(100, clock)
    accepted: list[float] = []
    for step in range(2400):
        clock.now = 1000 + step * 0.1 if step % 700 < 650 else clock.now
        if not (await limiter.take("k")).exceeded:
            accepted.append(clock.now)

    assert len(accepted) > 300
    assert max(sum(1 for at in accepted if start <= at < start + 60) for start in accepted) <= 100
    assert not (await limiter.take("another")).exceeded


async def test_an_allowance_says_what_is_left_and_when_to_come_back(clock: Clock) -> None:
    limiter = limits.Limiter(2, clock)
    first, second, third = [await limiter.take("k") for _ in range(3)]

    assert [(one.remaining, one.exceeded) for one in (first, second, third)] == [(1, False), (0, False), (0, True)]
    clock.now += third.reset_s
    assert not (await limiter.take("k")).exceeded


async def test_family_3_is_counted_by_credential_and_else_by_address(stored: Keys, clock: Clock) -> None:
    admission = gate(stored, clock, limit=3)
    one, two = stored.add(id="a"), stored.add(id="b")
    for number in range(3):
        await admission.admit(request(one, **{"x-forwarded-for": f"1.2.3.{number}"}), EONACAT)
    with pytest.raises(errors.RateLimited) as caught:
        await admission.admit(request(one), EONACAT)
    assert caught.value.details["retry_after"] > 0
    await admission.admit(request(two), EONACAT)
    await admission.admit(request(one), JOBS)
    for _ in range(3):
        with pytest.raises(errors.Unauthenticated):
            await admission.admit(request(), EONACAT)
    with pytest.raises(errors.RateLimited):
        await admission.admit(request(), EONACAT)


@pytest.fixture
async def url(serve: Any, stored: Keys) -> str:
    cors = Cors(config.Gateway(cors_origins=["https://app.example.com"]), ports=[4711])
    counted = limits.Limits(config.Limits(family3=5))
    admission = Authenticator(stored.look_up, cors, counted, open_loopback=True)

    @asgi("/api/sync/jobs", copy_scope=False)
    async def jobs(scope: Scope, receive: Receive, send: Send) -> None:
        principal = await admission.admit(scope, JOBS, "jobs:read")
        await dialects.Reply(200, JOBS.encode({"actor": principal.actor}))(scope, receive, send)

    @asgi("/api/v1/health", copy_scope=False)
    async def health(scope: Scope, receive: Receive, send: Send) -> None:
        await admission.admit(scope, EONACAT)
        await dialects.Reply(200, EONACAT.encode({"status": "healthy"}))(scope, receive, send)

    app = Litestar(
        [jobs, health], exception_handlers={Exception: dialects.handle}, openapi_config=None, logging_config=None
    )
    found: str = await serve(Edge(app, cors, admission.meter))
    return found


async def ask(url: str, method: str = "GET", **headers: str) -> tuple[int, Any, dict[str, str]]:
    async with aiohttp.ClientSession() as session, session.request(method, url, headers=headers) as answer:
        text = await answer.text()
        return answer.status, json.loads(text) if text else None, {k.lower(): v for k, v in answer.headers.items()}


async def test_the_first_curl_of_the_document_works_on_this_machine(url: str) -> None:
    assert (await ask(f"{url}/api/sync/jobs"))[:2] == (200, {"actor": "system:loopback"})
    assert (await ask(f"{url}/api/sync/jobs", Host="evil.example"))[0] == 401


@pytest.mark.parametrize("path", ["/api/sync/jobs", "/api/admin/sync", "/api/v1/health", "/nowhere"])
@pytest.mark.parametrize("origin", ["http://localhost:5173", "http://127.0.0.1:4711", "https://app.example.com"])
async def test_a_preflight_from_an_allowed_page_is_answered(url: str, path: str, origin: str) -> None:
    asked = {"Origin": origin, "Access-Control-Request-Method": "POST"}
    status, found, sent = await ask(url + path, "OPTIONS", **asked)

    assert (status, found) == (200, None)
    assert sent["access-control-allow-origin"] == origin
    assert sent["access-control-allow-methods"].startswith("GET, POST, PUT, DELETE, OPTIONS")
    assert sent["access-control-allow-headers"].startswith("Content-Type, Authorization")
    assert sent["access-control-max-age"] == "3600"


async def test_other_pages_are_told_nothing(url: str) -> None:
    asked = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}

    assert "access-control-allow-origin" not in (await ask(f"{url}/api/sync/jobs", "OPTIONS", **asked))[2]
    assert "access-control-allow-origin" not in (await ask(f"{url}/api/sync/jobs", Origin="null"))[2]
    assert "access-control-allow-origin" not in (await ask(f"{url}/api/servers/x/sync", "OPTIONS", **asked))[2]


@pytest.mark.parametrize("path", ["/api/sync/jobs", "/api/sync/nothing", "/api/sync/%00"])
async def test_every_answer_to_an_allowed_page_may_be_read_by_it(url: str, path: str) -> None:
    sent = (await ask(url + path, Origin="http://localhost:5173"))[2]

    assert sent["access-control-allow-origin"] == "http://localhost:5173"
    assert sent["vary"] == "Origin"
    assert "Undrift-Position" in sent["access-control-expose-headers"]


async def test_options_of_families_1_and_2_need_no_origin(url: str) -> None:
    assert (await ask(f"{url}/api/sync/jobs", "OPTIONS"))[0] == 200


async def test_every_answer_of_family_3_says_what_is_left(url: str, stored: Keys) -> None:
    token = f"Bearer {stored.add()}"
    seen = [await ask(f"{url}/api/v1/health", Authorization=token) for _ in range(6)]

    assert [status for status, _, _ in seen] == [200] * 5 + [429]
    assert [sent["x-ratelimit-remaining"] for _, _, sent in seen] == ["4", "3", "2", "1", "0", "0"]
    _, found, sent = seen[-1]
    assert (found["errorCode"], sent["x-ratelimit-limit"]) == ("RATE_LIMIT_EXCEEDED", "5")
    assert 1 <= int(sent["retry-after"]) <= 61
    for path in ("/api/v1/health", "/api/v1/nothing", "/api/v1/sync/%ff"):
        assert (await ask(url + path))[2]["x-ratelimit-limit"] == "5"
    for path in ("/api/v1/sync/devices", "/api/v1/feeds/events", "/api/sync/jobs", "/"):
        assert "x-ratelimit-limit" not in (await ask(url + path))[2]
