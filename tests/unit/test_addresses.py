"""Where a message may go; cases from IANA's special-purpose registries and the clouds' own manuals."""

from __future__ import annotations

from ipaddress import IPv4Address, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.addresses import MAX_URL_CHARACTERS, ForbiddenAddress, check_url, judge

EVERYTHING = (ip_network("0.0.0.0/0"), ip_network("::/0"))
LOOPBACK = (ip_network("127.0.0.0/8"), ip_network("::1"))

PUBLIC = [
    "1.1.1.1",
    "8.8.8.8",
    "172.15.255.255",
    "172.32.0.1",
    "100.63.255.255",
    "100.128.0.1",
    "192.0.1.1",
    "198.17.255.255",
]
PUBLIC += [
    "198.20.0.1",
    "223.255.255.255",
    "2001:4860:4860::8888",
    "2a00:1450:4001:82a::200e",
    "::ffff:8.8.8.8",
    "2606:4700::1111",
]

NOT_PUBLIC = [
    "10.0.0.1",
    "10.255.255.255",
    "172.16.0.1",
    "172.31.255.255",
    "192.168.0.1",
    "127.0.0.1",
    "127.255.255.254",
]
NOT_PUBLIC += [
    "100.64.0.1",
    "100.127.255.255",
    "192.0.0.1",
    "192.0.0.8",
    "192.0.0.9",
    "192.0.0.170",
    "192.0.2.1",
    "192.88.99.1",
]
NOT_PUBLIC += [
    "198.18.0.1",
    "198.19.255.255",
    "198.51.100.1",
    "203.0.113.1",
    "240.0.0.1",
    "250.10.20.30",
    "255.255.255.254",
]
NOT_PUBLIC += [
    "::1",
    "::127.0.0.1",
    "::8.8.8.8",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "::ffff:0:8.8.8.8",
    "64:ff9b::7f00:1",
]
NOT_PUBLIC += [
    "64:ff9b::808:808",
    "64:ff9b:1::808:808",
    "100::1",
    "2001::1",
    "2001:2::1",
    "2001:10::1",
    "2001:20::1",
    "2001:db8::1",
]
NOT_PUBLIC += [
    "2002:7f00:1::",
    "2002:808:808::1",
    "3fff::1",
    "3fff:fff::1",
    "4000::1",
    "5f00::1",
    "fc00::1",
    "fdff::1",
    "fec0::1",
]

NEVER = [
    "169.254.169.254",
    "169.254.170.2",
    "169.254.170.23",
    "169.254.0.1",
    "100.100.100.200",
    "192.0.0.192",
    "168.63.129.16",
]
NEVER += [
    "fd00:ec2::254",
    "fd00:ec2::23",
    "fd20:ce::254",
    "fe80::1",
    "fe80::a9fe:a9fe",
    "febf::1",
    "0.0.0.0",
    "0.1.2.3",
    "::",
]
NEVER += [
    "224.0.0.1",
    "239.255.255.250",
    "ff02::1",
    "ff0e::1",
    "255.255.255.255",
    "::ffff:169.254.169.254",
    "::ffff:0.0.0.0",
]
NEVER += ["64:ff9b::a9fe:a9fe", "64:ff9b:1::a9fe:a9fe", "2002:a9fe:a9fe::1", "64:ff9b::6464:64c8"]


@pytest.mark.parametrize("address", PUBLIC)
def test_a_public_address_passes(address):
    judge(ip_address(address))


@pytest.mark.parametrize("address", NOT_PUBLIC)
def test_an_address_that_is_not_public_passes_only_if_the_operator_allowed_it(address):
    with pytest.raises(ForbiddenAddress, match="not public"):
        judge(ip_address(address))
    judge(ip_address(address), EVERYTHING)


@pytest.mark.parametrize("address", NEVER)
def test_metadata_links_and_groups_stay_closed_whatever_is_allowed(address):
    with pytest.raises(ForbiddenAddress):
        judge(ip_address(address))
    with pytest.raises(ForbiddenAddress, match="no setting opens"):
        judge(ip_address(address), EVERYTHING)


def test_an_allowed_network_opens_nothing_beside_it():
    allowed = (ip_network("10.20.0.0/16"),)
    judge(ip_address("10.20.255.255"), allowed)
    judge(ip_address("::ffff:10.20.0.1"), allowed)
    for neighbour in ("10.19.255.255", "10.21.0.0", "127.0.0.1", "::1"):
        with pytest.raises(ForbiddenAddress):
            judge(ip_address(neighbour), allowed)


def test_nat64_carries_public_addresses_only():
    nat64 = (ip_network("64:ff9b::/96"),)
    judge(ip_address("64:ff9b::8.8.8.8"), nat64)
    with pytest.raises(ForbiddenAddress, match="not public"):
        judge(ip_address("64:ff9b::10.0.0.1"), nat64)
    judge(ip_address("64:ff9b::10.0.0.1"), (*nat64, ip_network("10.0.0.0/8")))


@given(st.integers(0, 2**32 - 1).map(IPv4Address))
def test_an_ipv4_address_is_judged_alike_in_its_ipv6_clothes(address):
    assert passes(address) == passes(ip_address(f"::ffff:{address}"))
    assert passes(address) <= bool(address.is_global and not address.is_multicast)


@given(st.ip_addresses())
def test_no_reason_repeats_the_address(address):
    assert str(address) not in refusal(judge, address)


@pytest.mark.parametrize(
    ("url", "host", "port", "target", "authority"),
    [
        ("https://portal.example", "portal.example", 443, "/", "portal.example"),
        ("https://Portal.Example:443/A?b=C", "portal.example", 443, "/A?b=C", "portal.example"),
        ("HTTPS://portal.example:8443/", "portal.example", 8443, "/", "portal.example:8443"),
        ("https://portal.example?x=/../", "portal.example", 443, "/?x=/../", "portal.example"),
        ("https://xn--mnchen-3ya.example/%C3%BC", "xn--mnchen-3ya.example", 443, "/%C3%BC", "xn--mnchen-3ya.example"),
        ("https://dsr_portal:9443/hook", "dsr_portal", 9443, "/hook", "dsr_portal:9443"),
        ("https://1.1.1.1/", "1.1.1.1", 443, "/", "1.1.1.1"),
        ("https://[2606:4700::1111]:8443/x", "2606:4700::1111", 8443, "/x", "[2606:4700::1111]:8443"),
        ("https://4portal.4example/", "4portal.4example", 443, "/", "4portal.4example"),
    ],
)
def test_an_https_url_is_taken_apart(url, host, port, target, authority):
    found = check_url(url)
    assert (found.scheme, found.host, found.port, found.target, found.authority) == (
        "https",
        host,
        port,
        target,
        authority,
    )


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("", "characters of RFC 3986"),
        ("ftp://portal.example/SECRET", "https://"),
        ("file:///SECRET", "https://"),
        ("//portal.example/SECRET", "https://"),
        ("portal.example/SECRET", "https://"),
        ("https:portal.example/SECRET", "host must be"),
        ("https:///SECRET", "host must be"),
        ("https://:443/SECRET", "host must be"),
        ("https://ann:SECRET@portal.example/", "user name or password"),
        ("https://@portal.example/SECRET", "user name or password"),
        ("https://portal.example@127.0.0.1/SECRET", "user name or password"),
        ("https://portal.example/SECRET#", "fragment"),
        ("https://portal.example/#SECRET", "fragment"),
        ("https://portal.example:0/SECRET", "malformed"),
        ("https://portal.example:65536/SECRET", "malformed"),
        ("https://portal.example:SECRET/", "malformed"),
        ("https://portal.example:+443/SECRET", "malformed"),
        ("https://[::1/SECRET", "malformed"),
        ("https://[SECRET]/", "malformed"),
        ("https://[fe80::1%25eth0]/SECRET", "host must be"),
        ("https://[v1.SECRET]/", "malformed"),
        ("https://portal..example/SECRET", "host must be"),
        ("https://portal.example./SECRET", "host must be"),
        ("https://-portal.example/SECRET", "host must be"),
        ("https://portal-.example/SECRET", "host must be"),
        ("https://" + "a" * 64 + ".example/SECRET", "host must be"),
        ("https://" + "a." * 127 + "example/SECRET", "host must be"),
        ("https://portal%2eexample/SECRET", "host must be"),
        ("https://münchen.example/SECRET", "xn--"),
        ("https://portal.example\\@127.0.0.1/SECRET", "RFC 3986"),
        ("https://portal.example/SECRET\r\nX: y", "RFC 3986"),
        ("https://portal\t.example/SECRET", "RFC 3986"),
        (" https://portal.example/SECRET", "RFC 3986"),
        ("https://portal.example/SECRET two", "RFC 3986"),
        ("https://portal.example/SECRET\x00", "RFC 3986"),
        ("https://portal.example/SECRET\n", "RFC 3986"),
        ("https://portal.example/SECRET" + "x" * MAX_URL_CHARACTERS, "at most"),
    ],
)
def test_a_malformed_url_is_refused_without_being_repeated(url, reason):
    with pytest.raises(ForbiddenAddress, match=reason) as caught:
        check_url(url, EVERYTHING)
    assert caught.value.field == "url"
    assert "SECRET" not in str(caught.value)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


@pytest.mark.parametrize(
    "host",
    [
        "2130706433",
        "0x7f000001",
        "0X7F000001",
        "0177.0.0.1",
        "127.1",
        "127.0.1",
        "0x7f.1",
        "017700000001",
        "1.0x",
        "10.0.0.256",
    ],
)
def test_a_host_that_libc_would_read_as_a_number_is_not_a_name(host):
    with pytest.raises(ForbiddenAddress, match="usual notation"):
        check_url(f"https://{host}/", EVERYTHING)


@pytest.mark.parametrize("host", ["①②⑦.0.0.1", "127。0。0。1", "localhost\u2024example"])
def test_letters_that_only_look_like_an_address_are_refused(host):
    with pytest.raises(ForbiddenAddress, match="RFC 3986"):
        check_url(f"https://{host}/", EVERYTHING)


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "[::1]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[64:ff9b::7f00:1]", "10.0.0.1"]
)
def test_a_forbidden_address_is_refused_already_in_the_url(host):
    with pytest.raises(ForbiddenAddress, match="not public"):
        check_url(f"https://{host}/hook")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.3.2.1", "[::1]", "[::ffff:127.0.0.1]"])
def test_http_is_for_addresses_in_an_allowed_network(host):
    assert check_url(f"http://{host}/", LOOPBACK).port == 80


@pytest.mark.parametrize("host", ["portal.example", "localhost", "1.1.1.1", "[2606:4700::1111]"])
def test_http_is_refused_for_names_and_for_other_addresses(host):
    with pytest.raises(ForbiddenAddress, match="use https"):
        check_url(f"http://{host}/", LOOPBACK)


def test_a_destination_does_not_print_its_path_or_query():
    assert "SECRET" not in repr(check_url("https://portal.example/SECRET?SECRET"))


@given(st.text(max_size=60))
def test_any_text_is_taken_apart_or_refused_with_a_reason(text):
    for url in (text, f"https://{text}", f"https://[{text}]/", f"https://h.example:{text}"):
        if not refusal(check_url, url):
            found = check_url(url)
            assert found.host
            assert 0 < found.port < 65536
            assert found.target.startswith("/")


def passes(address):
    return not refusal(judge, address)


def refusal(rule, value):
    """The reason why a rule refuses a value, or nothing; any other error is a failure."""
    try:
        rule(value)
    except ForbiddenAddress as error:
        return str(error)
    return ""
