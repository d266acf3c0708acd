"""From where a call comes: what a trusted proxy says counts, what anybody else says does not (T36)."""

from __future__ import annotations

from ipaddress import ip_network
from typing import Any

import pytest

from app.api.caller_address import Peers, ProxyHeader

PROXIES = tuple(ip_network(network) for network in ("10.0.0.0/8", "2001:db8:aaaa::/48"))
PROXY, STRANGER = "10.0.0.1", "203.0.113.9"


def scope(peer: str | None, *headers: tuple[str, str], scheme: str = "http") -> dict[str, Any]:
    raw = [(name.encode(), value.encode("latin-1")) for name, value in headers]
    return {"client": (peer, 4711) if peer else None, "headers": raw, "scheme": scheme}


def address(peer: str | None, *said: str, header: ProxyHeader = "x-forwarded-for", trusted: bool = True) -> str:
    peers = Peers(PROXIES if trusted else (), header)
    return peers.address_of(scope(peer, *((header, value) for value in said)))


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ((STRANGER,), STRANGER),
        (("198.51.100.1, 203.0.113.9",), STRANGER),  # the left part is the caller's own
        (("198.51.100.1, 203.0.113.9, 10.0.0.7",), STRANGER),
        (("198.51.100.1", STRANGER), STRANGER),  # two headers are one list
        (("127.0.0.1, 203.0.113.9",), STRANGER),
        (("10.0.0.9, 203.0.113.9",), STRANGER),
        (("203.0.113.9:8080",), STRANGER),
        (("::ffff:203.0.113.9",), STRANGER),
        (("2001:db8:1:2:3:4:5:6",), "2001:db8:1:2::/64"),
        (("[2001:db8:1:2:3:4:5:6]:443",), "2001:db8:1:2::/64"),
        (("203.0.113.9, 2001:db8:aaaa::1",), STRANGER),
        (("unknown",), PROXY),
        (("",), PROXY),
        (("203.0.113.9, nonsense",), PROXY),
        (("0x7f000001",), PROXY),
        (("203.0.113.9\xe9",), PROXY),
        ((), PROXY),
    ],
)
def test_behind_a_proxy_the_caller_is_who_the_last_stranger_is(said: tuple[str, ...], found: str) -> None:
    assert address(PROXY, *said) == found


@pytest.mark.parametrize("peer", [STRANGER, "127.0.0.1", "192.168.0.1"])
def test_what_somebody_else_says_of_itself_is_not_read(peer: str) -> None:
    assert address(peer, "198.51.100.1") == peer
    assert address(PROXY, "198.51.100.1", trusted=False) == PROXY


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ("for=203.0.113.9;proto=https;by=10.0.0.1", STRANGER),
        ('for="203.0.113.9:80"', STRANGER),
        ('proto=https; For="[2001:db8:1:2::7]:4711"', "2001:db8:1:2::/64"),
        ("for=198.51.100.1, for=203.0.113.9", STRANGER),
        ('for="198.51.100.1, for=203.0.113.9', STRANGER),
        ("for=_hidden", PROXY),
        ("for=unknown", PROXY),
        ("by=203.0.113.9", PROXY),
    ],
)
def test_the_standard_header_is_read_where_the_operator_says_so(said: str, found: str) -> None:
    assert address(PROXY, said, header="forwarded") == found


def test_the_header_that_the_proxy_does_not_write_is_never_read() -> None:
    both = (("forwarded", "for=198.51.100.1"), ("x-forwarded-for", STRANGER))
    assert Peers(PROXIES, "x-forwarded-for").address_of(scope(PROXY, *both)) == STRANGER
    assert Peers(PROXIES, "forwarded").address_of(scope(PROXY, *both)) == "198.51.100.1"


def test_who_has_no_address_is_one_caller() -> None:
    assert address(None) == "unknown"


def test_only_a_trusted_proxy_may_say_that_a_caller_came_by_https() -> None:
    peers, claim = Peers(PROXIES, "x-forwarded-for"), ("x-forwarded-proto", "https")
    assert peers.by_tls(scope(PROXY, claim))
    assert peers.by_tls(scope(STRANGER, scheme="https"))
    assert not peers.by_tls(scope(STRANGER, claim))
    assert not peers.by_tls(scope(PROXY, ("x-forwarded-proto", "https, http")))
    assert not Peers((), "forwarded").by_tls(scope(PROXY, claim))
