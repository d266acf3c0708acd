"""From where a call comes: the connection's other end, or what a proxy that the operator trusts says of it.

Only one header is read, the one that the operator's proxy writes. A proxy that writes ``X-Forwarded-For`` passes a
``Forwarded`` on as it came, and a caller would choose its own address by it; and the other way round.
"""

from __future__ import annotations

import re
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final, Literal

from starlette.types import Scope

Address = IPv4Address | IPv6Address
Networks = tuple[IPv4Network | IPv6Network, ...]
ProxyHeader = Literal["x-forwarded-for", "forwarded"]

_NOBODY: Final = "unknown"
_FOR: Final = re.compile(r'(?:^|;)\s*for="?(\[[0-9A-Fa-f:.]+\]|[0-9.]+)(?::\d+)?"?\s*(?:;|$)', re.IGNORECASE)
_WITH_PORT: Final = re.compile(r"(\[[0-9A-Fa-f:.]+\]|\d+\.\d+\.\d+\.\d+)(?::\d+)?")
_LONGEST_KEPT: Final = 256
_HOUSEHOLD: Final = 64
"""IPv6 subscribers get a /64 at least, so who is behind one can have any address in it."""


class Peers:
    """Where calls come from, to a server behind these proxies.

    Args:
        proxies: Whose word is taken; none: only connections count.
        header: The one in which they say it.
    """

    def __init__(self, proxies: Networks, header: ProxyHeader) -> None:
        self._proxies, self._header = proxies, header.encode()
        self._named = _forwarded if header == "forwarded" else _forwarded_for
        self._judged = lru_cache(maxsize=8192)(self._judge)  # callers come again; parsing addresses costs 10 µs
        self._is_proxy = lru_cache(maxsize=1024)(lambda peer: self._trusted(_parsed(peer)))

    def address_of(self, scope: Scope) -> str:
        """The caller's address, IPv6 as its /64."""
        client = scope.get("client")
        said = self._said(scope, self._header) if self._proxies else b""
        judge = self._judged if len(said) <= _LONGEST_KEPT else self._judge  # what a stranger chose is not kept
        return judge(client[0] if client else "", said)

    def by_tls(self, scope: Scope) -> bool:
        """Whether the caller speaks https, to us or to a trusted proxy that says so."""
        if scope["scheme"] == "https":
            return True
        client = scope.get("client")
        if not self._proxies or not client or not self._is_proxy(client[0]):
            return False
        return self._said(scope, b"x-forwarded-proto") == b"https"

    def _said(self, scope: Scope, header: bytes) -> bytes:
        return b",".join([value for name, value in scope["headers"] if name == header])

    def _judge(self, peer: str, said: bytes) -> str:
        """Walk from us to the caller, as long as each that speaks is trusted; a later word is worth nothing."""
        last = _parsed(peer)
        for part in reversed(said.decode("latin-1").split(",")):
            named = self._named(part.strip()) if self._trusted(last) else None
            if named is None:
                break
            last = named
        return _grouped(last)

    def _trusted(self, address: Address | None) -> bool:
        return address is not None and any(address in network for network in self._proxies)


def _forwarded(part: str) -> Address | None:
    found = _FOR.search(part)
    return _parsed(found[1].strip("[]")) if found else None


def _forwarded_for(part: str) -> Address | None:
    found = _WITH_PORT.fullmatch(part)
    return _parsed(found[1].strip("[]") if found else part)


def _parsed(text: str) -> Address | None:
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def _grouped(address: Address | None) -> str:
    if address is None:
        return _NOBODY
    return str(ip_network((address, _HOUSEHOLD), strict=False)) if address.version == 6 else str(address)
