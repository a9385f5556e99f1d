"""The HTTP client of workers' children: what it refuses, what it waits for, and what it makes of every failure."""

from __future__ import annotations

import asyncio
import datetime
import gzip
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from domain import errors
from services.worker import remote

KEY = {"X-Api-Key": "secret"}


async def _answer(request: web.Request) -> web.StreamResponse:
    where = request.match_info["where"]
    if where == "here":
        return web.json_response({"key": request.headers.get("X-Api-Key"), "agent": request.headers["User-Agent"]})
    if where == "moved":
        return web.Response(status=301, headers={"Location": "/here"})
    if where == "away":
        return web.Response(status=302, headers={"Location": f"http://localhost:{request.url.port}/here"})
    if where == "file":
        return web.Response(status=302, headers={"Location": "file:///etc/passwd"})
    if where == "round":
        return web.Response(status=302, headers={"Location": "/round"})
    if where == "large":
        return web.Response(body=b"x" * 3_000_000)
    if where == "bomb":
        return web.Response(body=gzip.compress(bytes(30_000_000)), headers={"Content-Encoding": "gzip"})
    if where == "slow":
        await asyncio.sleep(30)
    if where == "broken":
        assert request.transport is not None
        response = web.StreamResponse()
        response.content_length = 100
        await response.prepare(request)
        await response.write(b"half")
        request.transport.abort()
        return response
    return web.Response(status=429, headers={"Retry-After": "7"})


@contextmanager
def serving(tls: ssl.SSLContext | None = None) -> Iterator[int]:
    """The port of a server that answers as its paths say."""
    loop, ready, ports = asyncio.new_event_loop(), threading.Event(), []

    def serve() -> None:
        application = web.Application()
        application.router.add_get("/{where}", _answer)
        runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
        loop.run_until_complete(runner.setup())
        loop.run_until_complete(web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls).start())
        ports.append(runner.addresses[0][1])
        ready.set()
        loop.run_forever()
        loop.run_until_complete(runner.cleanup())
        loop.close()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    assert ready.wait(10)
    try:
        yield ports[0]
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with serving() as port:
        yield f"http://127.0.0.1:{port}"


@pytest.fixture
def http() -> Iterator[remote.Http]:
    with remote.Http(connect_s=2, total_s=1, limit=1_000_000) as made:
        yield made


def test_an_answer_comes_whole_with_its_headers(server: str, http: remote.Http) -> None:
    found = http.get(f"{server}/here", KEY)
    assert (found.status, found.headers["content-type"]) == (200, "application/json; charset=utf-8")
    assert found.body == b'{"key": "secret", "agent": "Undrift"}'


def test_the_status_is_the_callers_business(server: str, http: remote.Http) -> None:
    found = http.get(f"{server}/busy")
    assert (found.status, remote.seconds(found.headers["retry-after"])) == (429, 7.0)


def test_a_redirect_on_the_same_host_is_followed(server: str, http: remote.Http) -> None:
    assert b"secret" in http.get(f"{server}/moved", KEY).body


@pytest.mark.parametrize("where", ["away", "file", "round"])
def test_a_redirect_to_elsewhere_or_nowhere_is_refused(server: str, http: remote.Http, where: str) -> None:
    with pytest.raises(errors.RemoteRefused):
        http.get(f"{server}/{where}", KEY)


@pytest.mark.parametrize("where", ["large", "bomb"])
def test_an_answer_has_an_end(server: str, http: remote.Http, where: str) -> None:
    with pytest.raises(errors.RemoteRefused, match="more than"):
        http.get(f"{server}/{where}")


@pytest.mark.parametrize(("where", "said"), [("slow", "in time"), ("broken", "broke off")])
def test_what_does_not_come_may_come_later(server: str, http: remote.Http, where: str, said: str) -> None:
    with pytest.raises(errors.RemoteUnavailable, match=said):
        http.get(f"{server}/{where}")
    assert http.get(f"{server}/here").status == 200


def test_where_nobody_answers(http: remote.Http) -> None:
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
    with pytest.raises(errors.RemoteUnavailable, match="out of reach"):
        http.get(f"http://127.0.0.1:{port}/here")
    with pytest.raises(errors.RemoteUnavailable, match="no host"):
        http.get("http://nowhere.invalid/here")


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "ftp://127.0.0.1/",
        "//127.0.0.1/",
        "http://",
        "http://user:secret@127.0.0.1/",
        "http://127.0.0.1:99999/",
        "http://169.254.169.254/latest/meta-data",
        "http://[fe80::1]/",
        "http://[::ffff:169.254.169.254]/",
        "http://0.0.0.0:1/",
        "http://224.0.0.1/",
    ],
)
def test_an_address_that_cannot_be_is_refused_and_not_repeated(http: remote.Http, url: str) -> None:
    with pytest.raises(errors.RemoteRefused) as refused:
        http.get(url)
    assert "secret" not in refused.value.message


def test_a_certificate_that_nobody_vouches_for_is_refused(http: remote.Http, tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder(
        name, name, key.public_key(), x509.random_serial_number(), now, now.replace(year=now.year + 1)
    )
    certificate = builder.sign(key, hashes.SHA256())
    file = tmp_path / "server.pem"
    file.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + certificate.public_bytes(serialization.Encoding.PEM)
    )
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(file)
    with serving(tls) as port, pytest.raises(errors.RemoteRefused, match="secure connection"):
        http.get(f"https://127.0.0.1:{port}/here", KEY)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("7", 7.0), ("0", 0.0), (None, None), ("-1", None), ("soon", None), ("inf", None), ("nan", None)],
)
def test_the_seconds_of_a_retry_after(text: str | None, seconds: float | None) -> None:
    assert remote.seconds(text) == seconds
