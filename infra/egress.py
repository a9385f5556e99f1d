"""Where this installation may connect to on somebody's wish: addresses that the whole world can reach, unless the
configuration says more."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import threading
import unicodedata
from collections.abc import Awaitable, Callable, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from urllib.parse import urlsplit

import idna
from msgspec import Struct

from domain import errors
from infra import config

Address = IPv4Address | IPv6Address
Resolve = Callable[[str, int], Awaitable[Sequence[str]]]

URL_MAX = 2048
_PORTS = {"http": 80, "https": 443}


def _networks(*texts: str) -> tuple[IPv4Network | IPv6Network, ...]:
    return tuple(ip_network(text) for text in texts)


_LOOPBACK = _networks("127.0.0.0/8", "::1/128")
#: Of somebody's own network; carrier-grade NAT among it.
_PRIVATE = _networks("10.0.0.0/8", "100.64.0.0/10", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7")
#: Where clouds answer machines with their credentials: refused even where private addresses are allowed.
_METADATA = _networks(
    "100.100.100.200/32", "168.63.129.16/32", "192.0.0.192/32", "fd00:ec2::/32", "fd00:c1::/32", "fd20:ce::254/128"
)
#: Nobody's own, reserved, documentation, benchmarks, link-local, multicast, broadcast.
_NEVER_V4 = _networks(
    "0.0.0.0/8",
    "169.254.0.0/16",
    "192.0.0.0/24",
    "192.0.2.0/24",
    "192.88.99.0/24",
    "198.18.0.0/15",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "224.0.0.0/4",
    "240.0.0.0/4",
)
#: The only part of IPv6 that is given out to the world: v4-compatible, v4-mapped, NAT64, link-local, site-local and
#: multicast addresses are outside.
_GLOBAL_V6 = IPv6Network("2000::/3")
#: And in it: protocols with Teredo, documentation, 6to4, which reach other addresses than they seem to.
_NEVER_V6 = _networks("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")

#: Names that mean this machine or a network's own machines, whatever a resolver says.
_LOCAL = re.compile(r"(^|\.)(localhost6?|ip6-localhost|ip6-loopback|localdomain)$")
_INTERNAL = re.compile(r"(^|\.)(local|internal|intranet|lan|home|corp|private|home\.arpa)$")
_LABEL = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)")
#: What resolvers take for an IPv4 address in one of its other spellings: decimal, octal, hexadecimal, short.
_NUMBER = re.compile(r"\d+|0x[0-9a-f]*")


class Refused(errors.Invalid):
    """That address is not one that may be connected to."""


class Target(Struct, frozen=True):
    """An address taken apart: `host` in lower-case ASCII, an IPv6 address without its brackets; `path` with the
    query."""

    scheme: str
    host: str
    port: int
    path: str

    @property
    def tls(self) -> bool:
        return self.scheme == "https"

    @property
    def authority(self) -> str:
        """As the `Host` header names it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"


def is_public(address: Address) -> bool:
    """Whether the whole world can reach it. `is_global` says so of NAT64 and 6to4 forms of inner addresses too."""
    if isinstance(address, IPv4Address):
        return not _among(address, _NEVER_V4, _PRIVATE, _LOOPBACK, _METADATA)
    return address in _GLOBAL_V6 and address.scope_id is None and not _among(address, _NEVER_V6)


def may_reach(address: Address | str, settings: config.Webhooks) -> bool:
    """Whether this address may be connected to. Of what is not public, no more than the settings allow."""
    try:
        address = ip_address(address)
    except ValueError:
        return False
    if is_public(address):
        return True
    if _among(address, _METADATA) or getattr(address, "scope_id", None):
        return False
    if _among(address, _LOOPBACK):
        return settings.allow_private or bool(settings.allow_loopback)
    return settings.allow_private and _among(address, _PRIVATE)


def check_url(url: str, settings: config.Webhooks) -> Target:
    """What an address says, if it may be one to connect to; a name is looked up when it is connected to, and checked
    again then. Raises Refused, saying why in words for whoever wrote it."""
    target = _parsed(url)
    if not _is_literal(target.host):
        _check_name(target.host, settings)
    elif not may_reach(target.host, settings):
        raise Refused("The address of url is not a public one")
    loops = settings.allow_loopback and _may_be_here(target.host)
    if not (target.tls or settings.allow_http or loops):
        raise Refused("url begins with https://")
    if settings.ports and target.port not in settings.ports and not loops:
        raise Refused(f"The port of url is one of {', '.join(map(str, settings.ports))}")
    return target


def check_address(target: Target, address: str, settings: config.Webhooks) -> None:
    """Whether to connect there for this target: the looser rules for this machine must not have led to another one.
    Raises Refused."""
    if not may_reach(address, settings):
        raise Refused("The name of url leads to an address that is not a public one")
    if _among(ip_address(address), _LOOPBACK):
        return
    if not (target.tls or settings.allow_http) or (settings.ports and target.port not in settings.ports):
        raise Refused("Plain HTTP and other ports are for this machine alone")


async def resolve(target: Target, settings: config.Webhooks, resolver: Resolve) -> list[str]:
    """The addresses of a target to connect to. One that is not allowed spoils all others: whoever answers so means no
    good. Raises Refused; OSError where the name leads nowhere."""
    literal = _is_literal(target.host)
    found = [target.host] if literal else list(dict.fromkeys(await resolver(target.host, target.port)))
    if not found:
        raise OSError("the name leads to no address")
    for address in found:
        check_address(target, address, settings)
    return found


def _among(address: Address, *lists: Sequence[IPv4Network | IPv6Network]) -> bool:
    return any(address in network for networks in lists for network in networks)


def _parsed(url: str) -> Target:
    if not 0 < len(url) <= URL_MAX:
        raise Refused(f"url has 1 to {URL_MAX} characters")
    if any(sign <= " " or sign in '\\<>"{}|^`' or sign == "\x7f" for sign in url):
        raise Refused("url has characters that no address has")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise Refused("url is not an address such as https://example.org/hook") from None
    if parts.scheme not in _PORTS or not host:
        raise Refused("url is not an address such as https://example.org/hook")
    if "@" in parts.netloc:
        raise Refused("url names no user and no password")
    if parts.fragment or "#" in url:
        raise Refused("url has no fragment")
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    if not path.isascii():
        raise Refused("url is written in ASCII behind the host; other signs as %..")
    return Target(parts.scheme, _host(host, "[" in parts.netloc), _PORTS[parts.scheme] if port is None else port, path)


def _host(host: str, bracketed: bool) -> str:
    """One spelling for all: IPv6 compressed, IPv4 as four decimal numbers, names in ASCII."""
    if bracketed:
        try:
            return str(IPv6Address(host))
        except ValueError:
            raise Refused("url has no valid address in brackets") from None
    if "%" in host or ":" in host:
        raise Refused("url has no valid host")
    name = unicodedata.normalize("NFKC", host).replace("\u3002", ".").lower().removesuffix(".")
    if _NUMBER.fullmatch(name.rpartition(".")[2]):
        try:
            return str(IPv4Address(host))
        except ValueError:
            raise Refused("Write an IPv4 address as four decimal numbers") from None
    try:
        name = name if name.isascii() else idna.encode(name, uts46=True).decode()
    except idna.IDNAError:
        raise Refused("url has no valid host") from None
    if len(name) > 253 or not all(_LABEL.fullmatch(label) for label in name.split(".")):
        raise Refused("url has no valid host")
    return name


def _is_literal(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def _check_name(host: str, settings: config.Webhooks) -> None:
    if _LOCAL.search(host):
        if not (settings.allow_private or settings.allow_loopback):
            raise Refused("The name of url means this machine")
    elif (_INTERNAL.search(host) or "." not in host) and not settings.allow_private:
        raise Refused("The name of url is not a public one")


def _may_be_here(host: str) -> bool:
    """Whether it means this machine."""
    return bool(_LOCAL.search(host)) if not _is_literal(host) else _among(ip_address(host), _LOOPBACK)


async def system_resolver(host: str, port: int) -> list[str]:
    """What the operating system says. Each name has a thread of its own: a name server that is silent for half a minute
    holds nobody else up, and not the end of the process. Raises OSError where the name leads nowhere."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[list[str]] = loop.create_future()

    def settle(found: list[str] | OSError) -> None:
        if answer.done():
            return
        if isinstance(found, OSError):
            answer.set_exception(found)
        else:
            answer.set_result(found)

    def look() -> None:
        found: list[str] | OSError
        try:
            found = [str(info[4][0]) for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
        except OSError as error:
            found = error
        except UnicodeError:
            found = OSError("that is no name")
        with contextlib.suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(settle, found)

    threading.Thread(target=look, name="lookup", daemon=True).start()
    return await answer
