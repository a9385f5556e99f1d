"""Posting to strangers: connections used again, answers that are not believed, certificates that are checked."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from infra import config, egress, posts

HERE = config.Webhooks(allow_loopback=True)
Answers = Callable[[int, asyncio.StreamWriter], Awaitable[bool]]


class Server:
    """What arrived: the number of connections, and each request whole."""

    def __init__(self) -> None:
        self.connections = 0
        self.requests: list[bytes] = []
        self.port = 0


@asynccontextmanager
async def serving(answer: Answers, tls: ssl.SSLContext | None = None) -> AsyncIterator[Server]:
    """`answer` gets the number of the request and says whether the connection goes on."""
    found = Server()
    open_: set[asyncio.StreamWriter] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        found.connections += 1
        open_.add(writer)
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError, ssl.SSLError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
                found.requests.append(head + await reader.readexactly(length))
                if not await answer(len(found.requests), writer):
                    break
        writer.close()
        open_.discard(writer)

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    found.port = server.sockets[0].getsockname()[1]
    try:
        yield found
    finally:
        server.close()
        for writer in list(open_):
            writer.close()
        await asyncio.sleep(0.01)


def saying(*answers: bytes) -> Answers:
    """These answers, one to each request, the last one to all that follow."""

    async def answer(number: int, writer: asyncio.StreamWriter) -> bool:
        writer.write(answers[min(number, len(answers)) - 1])
        await writer.drain()
        return True

    return answer


@asynccontextmanager
async def poster(server: Server, host: str = "http://127.0.0.1", **more: ssl.SSLContext) -> AsyncIterator[posts.Poster]:
    target = egress.check_url(f"{host}:{server.port}/hook?a=b", HERE)
    made = posts.Poster(target, HERE, more.get("tls", ssl.create_default_context()))
    try:
        yield made
    finally:
        made.close()
        await asyncio.sleep(0.01)


OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"


async def test_a_connection_is_used_again_after_any_whole_answer() -> None:
    chunked = b"HTTP/1.1 202 Yes\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
    hinted = b"HTTP/1.1 103 Early\r\nLink: x\r\n\r\n" + OK
    async with serving(saying(OK, chunked, hinted, b"HTTP/1.1 204 No\r\n\r\n")) as server, poster(server) as mine:
        statuses = [(await mine.post(b"X-A: b\r\n", b"{}", 5)).status for _ in range(4)]
        assert statuses == [200, 202, 200, 204]
        assert server.connections == 1
        head = f"POST /hook?a=b HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\nX-A: b\r\nContent-Length: 2\r\n\r\n{{}}"
        assert server.requests == [head.encode()] * 4


async def test_one_that_the_server_has_closed_is_not_used_again() -> None:
    closing = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
    async with serving(saying(closing, OK)) as server, poster(server) as mine:
        assert [(await mine.post(b"", b"{}", 5)).status for _ in range(2)] == [200, 200]
        assert server.connections == 2


async def test_a_kept_one_that_breaks_without_a_word_is_replaced_at_once() -> None:
    async def answer(number: int, writer: asyncio.StreamWriter) -> bool:
        if number != 2:
            writer.write(OK)
        return number != 2

    async with serving(answer) as server, poster(server) as mine:
        assert [(await mine.post(b"", b"{}", 5)).status for _ in range(2)] == [200, 200]
        assert (server.connections, len(server.requests)) == (2, 3)


@pytest.mark.parametrize(
    "bad",
    [
        b"220 smtp.example ESMTP\r\n",
        b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000,
        b"\x16\x03\x01\x02\x00",
        b"",
    ],
)
async def test_what_is_no_answer(bad: bytes) -> None:
    async with serving(saying(bad)) as server, poster(server) as mine:
        with pytest.raises(posts.Failed):
            await mine.post(b"", b"{}", 0.5)


async def test_the_rest_of_a_large_answer_is_not_waited_for() -> None:
    large = b"HTTP/1.1 200 OK\r\nRetry-After: 7\r\nContent-Length: 99999999\r\n\r\n" + b"x" * 200_000
    async with serving(saying(large)) as server, poster(server) as mine:
        answer = await mine.post(b"", b"{}", 5)
        assert (answer.status, answer.retry_after) == (200, "7")
        assert (await mine.post(b"", b"{}", 5)).status == 200
        assert server.connections == 2


def certificate(directory: Path, host: str) -> Path:
    """A certificate that signs itself, with its key in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
    now = datetime.now(UTC)
    names = x509.SubjectAlternativeName(
        [x509.DNSName(host), *([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))] if host == "localhost" else [])]
    )
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(names, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = directory / f"{host}.pem"
    no_password = serialization.NoEncryption()
    pem, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    path.write_bytes(key.private_bytes(pem, form, no_password) + made.public_bytes(pem))
    return path


async def test_certificates_are_checked(tmp_path: Path) -> None:
    for host, trusted, good in (("localhost", True, True), ("localhost", False, False), ("other.org", True, False)):
        file = certificate(tmp_path, host)
        serves = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        serves.load_cert_chain(file)
        asks = ssl.create_default_context(cafile=str(file) if trusted else None)
        async with serving(saying(OK), serves) as server, poster(server, "https://localhost", tls=asks) as mine:
            if good:
                assert (await mine.post(b"", b"{}", 5)).status == 200
            else:
                with pytest.raises(posts.Failed, match="TLS"):
                    await mine.post(b"", b"{}", 5)
            assert len(server.requests) == good


async def test_many_at_once_on_few_connections_each_have_the_whole_time() -> None:
    """Whoever takes a connection over before the one who had it has gone on is not cut off by what that one settles."""

    async def answer(number: int, writer: asyncio.StreamWriter) -> bool:
        if number > 8:
            await asyncio.sleep(1.3)
        writer.write(OK)
        return True

    async with serving(answer) as server, poster(server) as mine:

        async def work() -> None:
            for _ in range(3):
                assert (await mine.post(b"", b"{}", 5)).status == 200

        await asyncio.gather(*(work() for _ in range(4)))
        assert len(server.requests) == 12
