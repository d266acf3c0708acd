"""Where a message may go: the rules for a URL, and for each address that its host turns out to have.

A portal chooses the URL that we POST to, so the URL must not reach what only we can reach: loopback, private networks,
the cloud's metadata service. Names are judged by their addresses at the moment of connecting (:mod:`workers.egress`),
because a name that was harmless at registration can point elsewhere later (DNS rebinding), and because ``getaddrinfo``
reads ``2130706433``, ``0x7f000001``, ``0177.0.0.1`` and ``127.1`` as 127.0.0.1.

``http`` is accepted for one case: the host is written as an address inside a network that the operator allowed. A name
under ``http`` would leave it to DNS who reads the message; the signature protects its integrity, not its content.

Errors never repeat the URL: its path and query may hold the receiver's secret.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final
from urllib.parse import SplitResult, urlsplit

from app.errors import Invalid

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

MAX_URL_CHARACTERS: Final = 2048

_URL_CHARACTERS: Final = re.compile(r"[A-Za-z0-9\-._~:/?\[\]@!$&'()*+,;=%#]+")
"""RFC 3986. ``urlsplit`` silently drops tabs and line feeds, so they must be gone before it looks."""
_NAME: Final = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)(\.(?!-)[a-z0-9_-]{1,63}(?<!-))*")
_NUMBER: Final = re.compile(r"[0-9]+|0x[0-9a-f]*")
_DEFAULT_PORT: Final = {"https": 443, "http": 80}

NEVER: Final[tuple[Network, ...]] = tuple(
    ip_network(network)
    for network in (
        "169.254.0.0/16",  # link-local; 169.254.169.254 and 169.254.170.2 hand out credentials at AWS, Azure, GCP, OCI
        "fe80::/10",
        "100.100.100.200",  # Alibaba Cloud metadata
        "192.0.0.192",  # Oracle Cloud metadata, old
        "168.63.129.16",  # Azure's host agent; a public address, so no other rule here would stop it
        "fd00:ec2::/32",  # AWS metadata, DNS and pod identity over IPv6
        "fd20:ce::254",  # Google Cloud metadata over IPv6
        "0.0.0.0/8",  # Linux connects 0.0.0.0 to itself
        "::/128",
        "224.0.0.0/4",
        "ff00::/8",
        "255.255.255.255",
    )
)
"""Stays closed even inside an allowed network: nobody receives webhooks there, and an attacker would start there."""

NOT_PUBLIC: Final[tuple[Network, ...]] = tuple(
    ip_network(network)
    for network in (
        "10.0.0.0/8",
        "100.64.0.0/10",  # carrier-grade NAT; `is_private` lets it through
        "127.0.0.0/8",
        "172.16.0.0/12",
        "192.0.0.0/24",  # protocol assignments; `is_global` lets 192.0.0.8 through
        "192.0.2.0/24",
        "192.88.99.0/24",  # 6to4 relays
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "240.0.0.0/4",
        "2001::/23",  # protocol assignments, with Teredo and ORCHID
        "2001:db8::/32",
        "2002::/16",  # 6to4: carries an IPv4 address
        "3fff::/20",
    )
)
"""IANA's special-purpose registries, written out: `is_global` differs between Python's patch releases."""

_IPV6_UNICAST: Final = IPv6Network("2000::/3")
"""All that IANA has given out as global unicast; leaves out ::1, ::a.b.c.d, NAT64, fc00::/7, fec0::/10, 5f00::/16."""
_NAT64: Final = (IPv6Network("64:ff9b::/96"), IPv6Network("64:ff9b:1::/48"))


class ForbiddenAddress(Invalid):
    """The destination must not be contacted; trying again will not help."""

    code = "forbidden-address"

    def __init__(self, reason: str) -> None:
        super().__init__("url", reason)


@dataclass(frozen=True, slots=True)
class Destination:
    """A URL that passed, taken apart once, so that no second parser can read it differently."""

    scheme: str
    host: str
    port: int
    target: str = field(repr=False)
    """Path and query."""

    @property
    def authority(self) -> str:
        """What belongs into the ``Host`` header.

        >>> check_url("https://[2a00:1450::5]:8443/hook").authority
        '[2a00:1450::5]:8443'
        """
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _DEFAULT_PORT[self.scheme] else f"{host}:{self.port}"


def judge(address: Address, allowed_networks: Iterable[Network] = ()) -> None:
    """Let an address pass that is public, or that the operator allowed.

    >>> judge(ip_address("2a00:1450:4001::5"))
    >>> judge(ip_address("::ffff:127.0.0.1"))
    Traceback (most recent call last):
    app.domain.addresses.ForbiddenAddress: the address is not public, and no network in EXPUNGE_WEBHOOK_ALLOW holds it

    Args:
        address: One answer of the resolver. An IPv4-mapped one is judged as the IPv4 address it leads to.
        allowed_networks: What private deployments open, for example ``10.20.0.0/16``. An IPv6-only host behind NAT64
            opens ``64:ff9b::/96``; the IPv4 address inside is then judged as well.

    Raises:
        ForbiddenAddress: The address is not public and not allowed, or never allowed.
    """
    address, allowed = _unmapped(address), tuple(allowed_networks)
    if _within(address, NEVER):
        raise ForbiddenAddress(
            "the address belongs to cloud metadata, a single link or a group; no setting opens these"
        )
    if not _within(address, allowed) and not _is_public(address):
        raise ForbiddenAddress("the address is not public, and no network in EXPUNGE_WEBHOOK_ALLOW holds it")
    carried = _carried(address)
    if carried is not None:
        judge(carried, allowed)


def check_url(url: str, allowed_networks: Iterable[Network] = ()) -> Destination:
    """Take a webhook's URL apart, or say which rule it breaks without repeating it.

    >>> check_url("https://portal.example/hooks/7?key=s3cret")
    Destination(scheme='https', host='portal.example', port=443)
    >>> check_url("http://portal.example/")
    Traceback (most recent call last):
    app.domain.addresses.ForbiddenAddress: http is only for addresses inside EXPUNGE_WEBHOOK_ALLOW; use https

    Raises:
        ForbiddenAddress: The URL is malformed, unencrypted or names a forbidden address. What a name resolves to is
            not looked up here.
    """
    parts, port = _split(url)
    host, allowed = parts.hostname or "", tuple(allowed_networks)
    literal = _literal(host)
    if literal is not None:
        judge(literal, allowed)
    elif not _is_name(host):
        raise ForbiddenAddress("the host must be a name, or an address in its usual notation")
    if parts.scheme == "http" and (literal is None or not _within(_unmapped(literal), allowed)):
        raise ForbiddenAddress("http is only for addresses inside EXPUNGE_WEBHOOK_ALLOW; use https")
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Destination(scheme=parts.scheme, host=host, port=port, target=target)


def _split(url: str) -> tuple[SplitResult, int]:
    if len(url) > MAX_URL_CHARACTERS:
        raise ForbiddenAddress(f"a URL has at most {MAX_URL_CHARACTERS} characters")
    if not _URL_CHARACTERS.fullmatch(url):
        raise ForbiddenAddress("a URL has only the characters of RFC 3986; write other names in their xn-- form")
    try:
        parts = urlsplit(url)
        given_port = parts.port
    except ValueError:  # its message repeats the host and the port
        raise ForbiddenAddress("the URL's host or port is malformed") from None
    if parts.scheme not in _DEFAULT_PORT:
        raise ForbiddenAddress("the URL must begin with https://")
    if "@" in parts.netloc:
        raise ForbiddenAddress("the URL must not hold a user name or password")
    if "#" in url:
        raise ForbiddenAddress("the URL must not have a fragment")
    if given_port == 0 or ("[" in parts.netloc and ":" not in (parts.hostname or "")):  # [v1.x]: RFC 3986 IPvFuture
        raise ForbiddenAddress("the URL's host or port is malformed")
    return parts, given_port or _DEFAULT_PORT[parts.scheme]


def _literal(host: str) -> Address | None:
    if "%" in host:  # a zone is a link of this machine
        return None
    try:
        return ip_address(host)
    except ValueError:
        return None


def _is_name(host: str) -> bool:
    """Tell names from numbers: a last label of digits makes libc read the whole host as an IPv4 address."""
    return len(host) <= 253 and bool(_NAME.fullmatch(host)) and not _NUMBER.fullmatch(host.rpartition(".")[2])


def _is_public(address: Address) -> bool:
    listed = isinstance(address, IPv4Address) or address in _IPV6_UNICAST
    return listed and address.is_global and not address.is_multicast and not _within(address, NOT_PUBLIC)


def _within(address: Address, networks: Iterable[Network]) -> bool:
    return any(address in network for network in networks)


def _unmapped(address: Address) -> Address:
    return address.ipv4_mapped or address if isinstance(address, IPv6Address) else address


def _carried(address: Address) -> IPv4Address | None:
    """Dig out the IPv4 address that a translator (NAT64 with a /96 prefix, 6to4) would forward to."""
    if isinstance(address, IPv4Address):
        return None
    return IPv4Address(int(address) & 0xFFFFFFFF) if _within(address, _NAT64) else address.sixtofour
