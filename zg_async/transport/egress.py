"""Where we connect to: the policy for addresses that come from a chain or another outsider.

A provider registers its own URL, so a name or address in it may point into the user's network. Judged are the URL
(here) and every address its name resolves to (at connect time, by `JudgingResolver`): only global unicast passes. What
the user configured is allowed by name and port, never by range. Python's `is_global` is no help: it passes NAT64,
6to4, multicast and 168.63.129.16.
"""

import ipaddress
import re
import socket
from collections.abc import Iterable
from typing import Final

import aiohttp
import aiohttp.abc
from yarl import URL

from zg_async.errors import ConfigError, EndpointRefusedError
from zg_async.text import printable

_DENIED_4: Final = tuple(
    ipaddress.IPv4Network(text)
    for text in (
        "0.0.0.0/8",  # this network
        "10.0.0.0/8",
        "100.64.0.0/10",  # carrier-grade NAT; some clouds keep metadata here
        "127.0.0.0/8",
        "168.63.129.16/32",  # a cloud's host agent
        "169.254.0.0/16",  # link-local; most clouds keep metadata here
        "172.16.0.0/12",
        "192.0.0.0/24",  # protocol assignments
        "192.0.2.0/24",  # documentation
        "192.88.99.0/24",  # 6to4 relays
        "192.168.0.0/16",
        "198.18.0.0/15",  # benchmarks
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, broadcast
    )
)
_UNICAST_6: Final = ipaddress.IPv6Network("2000::/3")  # mapped, NAT64, unique local, link-local, multicast lie outside
_DENIED_6: Final = tuple(
    ipaddress.IPv6Network(text)
    for text in (
        "2001::/23",  # Teredo, ORCHID, benchmarks and other assignments
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4: carries any IPv4
        "3fff::/20",  # documentation
    )
)
_LOCAL_NAMES: Final = ("localhost", "local", "internal", "localdomain", "home.arpa", "lan")
_NAME: Final = re.compile(r"[a-z0-9_.-]{1,253}")
_NUMERIC: Final = re.compile(r"(?:0x[0-9a-f]*|[0-9]+)", re.IGNORECASE)


def is_public(address: str) -> bool:
    """Say whether an address is global unicast and no gateway to another address.

    Args:
        address: A literal IPv4 or IPv6 address without brackets.

    Returns:
        False also for text that is no address.
    """
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv4Address):
        return not any(ip in network for network in _DENIED_4)
    return ip.scope_id is None and ip in _UNICAST_6 and not any(ip in network for network in _DENIED_6)


class Egress:
    """The hosts the user allowed, and the judgement on all others."""

    def __init__(self, allow_hosts: Iterable[str] = (), *, by_name_only: bool = False) -> None:
        """Make a policy.

        Args:
            allow_hosts: Names or literal addresses, each with or without `:port`, that may be anywhere and plain http.
            by_name_only: A proxy resolves the names; local-sounding ones are refused then.

        Raises:
            ConfigError: An entry is no host.
        """
        self._allowed: set[tuple[str, int | None]] = set()
        self._by_name_only = by_name_only
        for entry in allow_hosts:
            self.allow(entry)

    def allow(self, entry: str) -> None:
        """Allow a host that the user configured.

        Args:
            entry: `host`, `host:port`, `[v6]:port`, or a whole URL, of which host and port count.

        Raises:
            ConfigError: The entry is no host.
        """
        if entry.count(":") > 1 and "://" not in entry and not entry.startswith("["):
            entry = f"[{entry}]"
        try:
            url = URL(entry if "://" in entry else f"any://{entry}")
            host, port = url.raw_host, url.port
        except ValueError:
            host, port = None, None
        if not host or not (_NAME.fullmatch(_plain(host)) or _is_address(host)):
            shown = "a URL" if "@" in entry or "/" in entry else repr(printable(entry, limit=80))  # may hold a password
            raise ConfigError(f"{shown} names no host", hint="Give a name, optionally with :port")
        self._allowed.add((_plain(host), port))

    def allows(self, host: str, port: int | None) -> bool:
        """Say whether the user allowed this host at this port."""
        name = _plain(host)
        return (name, port) in self._allowed or (name, None) in self._allowed

    def check_url(self, text: str, *, provider: str | None = None, plain_http: bool = False) -> URL:
        """Judge a URL before anything is sent to it.

        Args:
            text: The URL; may be an outsider's.
            provider: Whose it is, for the message.
            plain_http: Take http as well: what comes from there is proven, what goes there public.

        Returns:
            The parsed URL; what is judged is what is used.

        Raises:
            EndpointRefusedError: It isn't https on a public address, and its host isn't allowed; or it is no URL.
        """
        try:
            url = URL(text)
            host, port = url.raw_host, url.port
        except ValueError:
            raise _refused("it is no URL", None, provider) from None
        if not host or url.scheme not in ("http", "https"):
            raise _refused("it is no http URL", None, provider)
        if url.raw_user is not None or url.raw_password is not None:
            raise _refused("its URL holds user info", None, provider)
        if self.allows(host, port):
            return url
        if url.scheme != "https" and not plain_http:
            raise _refused("it isn't https", host, provider)
        if reason := self._name_fault(_plain(host)):
            raise _refused(reason, host, provider)
        return url

    def check_address(self, host: str, port: int | None, address: str) -> bool:
        """Say whether a resolved address may be connected to."""
        return self.allows(host, port) or is_public(address)

    def _name_fault(self, host: str) -> str | None:
        if ":" in host:
            return None if is_public(host) else "its address isn't public"
        if not _NAME.fullmatch(host):
            return "it is no host name"
        labels = host.split(".")
        if _NUMERIC.fullmatch(labels[-1]):  # whatever ends in a number is an IPv4 address, in one of many spellings
            return None if is_public(host) else "its address isn't public"
        local = len(labels) < 2 or any(host == name or host.endswith(f".{name}") for name in _LOCAL_NAMES)
        return "its name is a local one" if self._by_name_only and local else None


class AddressRefusedError(OSError):
    """A name leads to addresses that the policy forbids."""


class JudgingResolver(aiohttp.abc.AbstractResolver):
    """Resolves names, on each new connection, and keeps only permitted addresses.

    aiohttp doesn't ask a resolver about literal addresses: `Egress.check_url` judges those.
    """

    def __init__(self, egress: Egress) -> None:
        """Judge by a policy."""
        self._egress = egress
        self._resolver = aiohttp.DefaultResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[aiohttp.abc.ResolveResult]:
        """Return the permitted addresses of a name.

        Raises:
            AddressRefusedError: It has addresses, but only forbidden ones.
        """
        found = await self._resolver.resolve(host, port, family)
        permitted = [r for r in found if self._egress.check_address(host, port, r["host"])]
        if found and not permitted:
            raise AddressRefusedError(
                f"refused to connect to {printable(host, limit=80)}: its address {found[0]['host']} isn't public"
            )
        return permitted

    async def close(self) -> None:
        """Close the resolver behind."""
        await self._resolver.close()


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    return True


def _plain(host: str) -> str:
    name = host.strip("[]").lower()
    if ":" in name:
        try:
            return ipaddress.ip_address(name).compressed
        except ValueError:
            return name
    return name.removesuffix(".")


def _refused(reason: str, host: str | None, provider: str | None) -> EndpointRefusedError:
    where = printable(host, limit=80) if host else "this URL"
    return EndpointRefusedError(
        f"refused to connect to {where}: {reason}",
        provider=provider,
        hint=f"If you trust it, allow it by name: allow_hosts=({where!r},)" if host else None,
    )
