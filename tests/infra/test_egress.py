"""Addresses that must not be connected to, however they are written, and whatever a name server says of them."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager

import pytest

from infra import config, egress, posts

PUBLIC = config.Webhooks(allow_http=True, allow_loopback=False, ports=[])
HERE = config.Webhooks(allow_loopback=True)


def wide(text: str) -> str:
    """In full-width signs, which the rules of names turn into the usual ones."""
    return "".join(chr(ord(sign) + 0xFEE0) if "!" <= sign <= "~" else sign for sign in text)


#: Hosts as somebody may write them, of addresses that are not for everybody, or that no address has.
REFUSED = """
127.0.0.1 127.0.0.2 127.255.255.254 127.1 127.0.1 0x7f.1 0x7f000001 0x7f.0.0.1 0177.0.0.1 0177.1 2130706433
017700000001 0 0.0.0.0 0.0.0.1 0.255.255.255 0x0 00000000000 localhost LOCALHOST localhost. a.localhost ip6-localhost
localhost6 localhost.localdomain 10.0.0.1 10.255.255.255 012.0.0.1 167772161 0xa.0.0.1 10.1 172.16.0.1 172.31.255.255
192.168.0.1 192.168.1 0xc0.0xa8.0.1 3232235521 100.64.0.1 100.127.255.254 100.100.100.200 169.254.0.1 169.254.169.254
169.254.43518 0xa9fea9fe 2852039166 025177524776 0xa9.0xfe.0xa9.0xfe 169.254.169.254. 168.63.129.16 192.0.0.1
192.0.0.192 192.0.2.1 192.88.99.1 198.18.0.1 198.19.255.255 198.51.100.1 203.0.113.1 224.0.0.1 239.255.255.255
240.0.0.1 255.255.255.255 256.1.1.1 1.2.3.4.5 999 4294967296 0x100000000 1.2.3 8.8.2056 08.8.8.8 8.8.8.010 0x8.8.8.8
[::] [::1] [0:0:0:0:0:0:0:1] [::127.0.0.1] [::7f00:1] [::ffff:127.0.0.1] [::ffff:7f00:1] [::ffff:a9fe:a9fe]
[::ffff:169.254.169.254] [::ffff:10.0.0.1] [::ffff:8.8.8.8] [::ffff:0:127.0.0.1] [::8.8.8.8] [64:ff9b::7f00:1]
[64:ff9b::a9fe:a9fe] [64:ff9b::8.8.8.8] [64:ff9b:1::10.0.0.1] [2002:7f00:1::] [2002:a9fe:a9fe::1] [2002:a00:1::]
[2001::1] [2001:0:7f00:1::] [2001:2::1] [2001:10::1] [2001:20::1] [2001:db8::1] [3fff::1] [5f00::1] [100::1] [fc00::1]
[fd00::1] [fd00:ec2::254] [fdff:ffff::1] [fe80::1] [fe80::1%eth0] [fe80::1%25eth0] [febf::1] [fec0::1] [feff::1]
[ff02::1] [ff0e::1] [::ffff:0x7f.1] [4000::1] [1::] [127.0.0.1] printer.local db.internal metadata.google.internal
router.lan host.home.arpa intranet nas a..b -a.example a-.example a_b.-c .example exa%6dple.org 127.0.0.1%2e
example.org:99999
"""
ODD = [
    wide("127.0.0.1"),
    wide("169.254.169.254"),
    wide("localhost"),
    wide("127").join(["", ".0.0.1"]),
    "127\u30020\u30020\u30021",
    "127\uff0e0\uff0e0\uff0e1",
    "\u2460\u2461\u2466.\u24ea.\u24ea.\u2460",
    "loc\u00adalhost",
    "127.0.0.1\u200b",
    "\u0661\u0662\u0667.0.0.1",
    "[]",
    "[::1 ]",
]
ADMITTED = """
8.8.8.8 1.1.1.1 9.255.255.255 11.0.0.1 100.63.255.255 100.128.0.1 172.15.255.255 172.32.0.1 192.167.0.1
223.255.255.255 [2606:4700:4700::1111] [2001:4860:4860::8888] [2a00:1450:4001::1] [2001:200::1] [2003::1] example.org
EXAMPLE.org hooks.example.org. bücher.example xn--bcher-kva.example 1a.example a1.example.co _dmarc.example
"""
BAD_URLS = [
    "",
    "example.org",
    "//example.org/",
    "ftp://example.org/",
    "file:///etc/passwd",
    "gopher://example.org/",
    "javascript:alert(1)",
    "https:///hook",
    "https://user@example.org/",
    "https://user:secret@example.org/",
    "https://@example.org/",
    "https://example.org@127.0.0.1/",
    "https://example.org#@127.0.0.1/",
    "https://example.org/#part",
    "https://example.org\\@127.0.0.1/",
    "https://exa mple.org/",
    "https://example.org/\r\nHost: other",
    "https://example.org/\n",
    "\thttps://example.org/",
    "https://example.org/ü",
    "https://example.org:0x50/",
    "https://example.org:-1/",
    "https://example.org:70000/",
    f"https://example.org/{'x' * 2048}",
]


def hosts(text: str) -> list[str]:
    return text.split()


def test_the_corpus_is_large_enough() -> None:
    assert len(hosts(REFUSED)) + len(ODD) >= 120


@pytest.mark.parametrize("host", [*hosts(REFUSED), *ODD])
def test_a_host_that_is_refused(host: str) -> None:
    for url in (f"http://{host}/", f"https://{host}/hook"):
        with pytest.raises(egress.Refused):
            egress.check_url(url, PUBLIC)


@pytest.mark.parametrize("host", [*hosts(ADMITTED), wide("example") + ".org"])
def test_a_host_that_is_admitted(host: str) -> None:
    assert egress.check_url(f"https://{host}/hook?a=b", PUBLIC).path == "/hook?a=b"


@pytest.mark.parametrize("url", BAD_URLS)
def test_an_address_that_is_none(url: str) -> None:
    with pytest.raises(egress.Refused):
        egress.check_url(url, PUBLIC)


def test_what_only_the_configuration_admits() -> None:
    strict = config.Webhooks()
    for url in ("http://example.org/", "https://example.org:22/", "https://127.0.0.1/", "http://localhost:9/"):
        with pytest.raises(egress.Refused):
            egress.check_url(url, strict)
    for url in ("http://127.0.0.1:9/", "http://localhost:9/", "https://[::1]:9/", "https://example.org:8443/"):
        egress.check_url(url, HERE)
    for url in ("http://10.0.0.1/", "http://example.org/", "https://10.0.0.1/", "https://[::ffff:127.0.0.1]/"):
        with pytest.raises(egress.Refused):
            egress.check_url(url, HERE)
    private = config.Webhooks(allow_private=True)
    for url in ("https://10.0.0.1/", "https://[fd00::1]/", "https://127.0.0.1/", "https://nas.lan/"):
        egress.check_url(url, private)
    for url in ("https://169.254.169.254/", "https://[fd00:ec2::254]/", "https://100.100.100.200/", "https://0.0.0.0/"):
        with pytest.raises(egress.Refused):
            egress.check_url(url, private)


class Canary:
    """A server on this machine that nobody is to reach."""

    def __init__(self) -> None:
        self.port = self.hits = 0

    def hit(self, *_: object) -> None:
        self.hits += 1


@asynccontextmanager
async def canary() -> AsyncIterator[Canary]:
    found = Canary()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        found.hit()
        with contextlib.suppress(asyncio.IncompleteReadError):
            while await reader.readuntil(b"\r\n\r\n"):
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    found.port = server.sockets[0].getsockname()[1]
    try:
        yield found
    finally:
        server.close()


def names(answers: Iterator[Sequence[str]]) -> egress.Resolve:
    """A name server that gives one answer after the other."""

    async def resolve(host: str, port: int) -> Sequence[str]:
        return next(answers)

    return resolve


async def post(url: str, settings: config.Webhooks, *answers: Sequence[str]) -> posts.Answer:
    target = egress.check_url(url, settings)
    poster = posts.Poster(target, settings, ssl.create_default_context(), names(iter(answers)))
    try:
        return await poster.post(b"", b"{}", 0.5)
    finally:
        poster.close()


async def test_a_name_that_leads_inside_is_not_connected_to() -> None:
    async with canary() as bird:
        url = f"http://rebind.example:{bird.port}/"
        for answer in (
            ["127.0.0.1"],
            ["::1"],
            ["8.8.8.8", "127.0.0.1"],
            ["::ffff:127.0.0.1"],
            ["127.0.0.1", "8.8.8.8"],
        ):
            with pytest.raises(egress.Refused):
                await post(url, PUBLIC, answer)
        assert bird.hits == 0


async def test_a_name_is_asked_once_for_a_connection_and_its_answer_is_what_is_connected_to() -> None:
    async with canary() as bird:
        url, asked = f"http://rebind.example:{bird.port}/", 0

        async def flips(host: str, port: int) -> Sequence[str]:
            nonlocal asked
            asked += 1
            return ["198.41.0.4"] if asked == 1 else ["127.0.0.1"]

        target = egress.check_url(url, PUBLIC)
        poster = posts.Poster(target, PUBLIC, ssl.create_default_context(), flips)
        with pytest.raises(posts.Failed):  # nobody answers there
            await poster.post(b"", b"{}", 0.3)
        assert asked == 1
        with pytest.raises(egress.Refused):
            await poster.post(b"", b"{}", 0.3)
        assert (asked, bird.hits) == (2, 0)


async def test_the_looser_rules_for_this_machine_lead_nowhere_else() -> None:
    async with canary() as bird:
        url = f"http://localhost:{bird.port}/"
        assert (await post(url, HERE, ["127.0.0.1"])).status == 200
        with pytest.raises(egress.Refused):
            await post(url, HERE, ["198.41.0.4"])
        with pytest.raises(egress.Refused):
            await post(url, HERE, ["10.0.0.1"])
        assert bird.hits == 1


async def test_a_name_that_leads_nowhere() -> None:
    with pytest.raises(posts.Failed):
        await post("https://nowhere.example/", PUBLIC, [])


async def test_the_resolver_of_the_system() -> None:
    assert set(await egress.system_resolver("localhost", 80)) <= {"127.0.0.1", "::1"}
    with pytest.raises(socket.gaierror):
        await egress.system_resolver("nowhere.invalid", 80)
