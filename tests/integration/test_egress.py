"""HTTP out of the house, against real servers on loopback; the allow-list plays the part of the public internet.

127.0.0.1 is allowed where a test says so, and stands for a public address; 127.0.0.2 is never allowed, and stands for
the inside. Every server counts the connections it gets, since what must not happen is a connection.
"""

from __future__ import annotations

import datetime as dt
import logging
import resource
import socket
import ssl
import threading
import time
import traceback
import zlib
from contextlib import ExitStack, closing, contextmanager, suppress
from ipaddress import ip_address, ip_network

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from app.domain.webhook import Outcome, outcome
from workers import egress
from workers.egress import MAX_BODY_BYTES, Refused, Response, Undelivered, system_addresses

pytestmark = pytest.mark.slow  # waits for slow servers

OUTSIDE = (ip_network("127.0.0.1"),)
"""The networks allowed in these tests."""
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Server:
    """One listening socket; `answer` gets each connection, after its request was read or at once."""

    def __init__(self, answer, address="127.0.0.1", tls=None, speaks_first=False):
        self.requests, self.connections, self._answer, self._tls = [], 0, answer, tls
        self._speaks_first = speaks_first
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self._listener = socket.create_server((address, 0), family=family)
        self.port = self._listener.getsockname()[1]
        self.url = f"http://[{address}]:{self.port}" if ":" in address else f"http://{address}:{self.port}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        with suppress(OSError):  # the listener is closed at the end of the test
            while True:
                connection, _ = self._listener.accept()
                self.connections += 1
                threading.Thread(target=self._talk, args=(connection,), daemon=True).start()

    def _talk(self, connection):
        with suppress(OSError), closing(connection):
            if self._tls:
                connection = self._tls.wrap_socket(connection, server_side=True)
            if not self._speaks_first:
                self.requests.append(read_request(connection))
            self._answer(connection)

    def close(self):
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes accept(), which would keep the port open
        self._listener.close()


@pytest.fixture
def serve():
    """Starts servers, closes them at the end; bytes are answered as they are, a function talks itself."""
    servers = []

    def start(answer=OK, **options):
        server = Server(answer if callable(answer) else lambda connection: connection.sendall(answer), **options)
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.close()


def read_request(connection):
    data = b""
    while b"\r\n\r\n" not in data:
        data += connection.recv(65536) or b"\r\n\r\n"
    head, _, content = data.partition(b"\r\n\r\n")
    length = next((int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")), 0)
    while len(content) < length:
        piece = connection.recv(65536)
        if not piece:
            break
        content += piece
    return head, content


def send(url, **options):
    settings = {"headers": {"webhook-id": "msg_1"}, "content": b"{}", "allowed_networks": OUTSIDE, "timeout_seconds": 5}
    return egress.send(url, **(settings | options))


def answers(*texts):
    """A resolver that gives these addresses, whatever it is asked."""
    return lambda _host, _port: [ip_address(text) for text in texts]


@contextmanager
def closed_port(address, port):
    """A port that is taken but not listened on, so that a connection is refused and nobody else gets it."""
    with socket.socket() as taken:
        taken.bind((address, port))
        yield taken.getsockname()[1]


# --- what arrives ---------------------------------------------------------------------------------------------------


def test_a_post_arrives_as_it_was_signed(serve):
    server = serve()
    found = send(
        f"{server.url}/hook?key=7",
        headers={"webhook-id": "msg_1", "content-type": "application/json"},
        content=b'{"a":1}',
    )
    assert (found.status_code, found.retry_after) == (200, None)
    assert 0 <= found.elapsed_ms < 5000
    [(head, content)] = server.requests
    assert content == b'{"a":1}'
    lines = head.decode().split("\r\n")
    assert lines[0] == "POST /hook?key=7 HTTP/1.1"
    assert sorted(lines[1:], key=str.lower) == [
        "Content-Length: 7",
        "content-type: application/json",
        f"Host: 127.0.0.1:{server.port}",
        "webhook-id: msg_1",
    ]


@pytest.mark.parametrize("status", [204, 400, 404, 410, 429, 500, 503])
def test_a_status_is_reported_not_raised(serve, status):
    assert send(serve(f"HTTP/1.1 {status} X\r\nContent-Length: 0\r\n\r\n".encode()).url).status_code == status


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("Retry-After: 120", dt.timedelta(seconds=120)),
        ("retry-after: Wed, 03 Feb 2027 09:14:00 GMT\r\nDate: Wed, 03 Feb 2027 09:12:00 GMT", dt.timedelta(minutes=2)),
        ("Retry-After: \xff\xfe", None),
    ],
)
def test_retry_after_is_handed_on(serve, header, expected):
    server = serve(f"HTTP/1.1 503 X\r\n{header}\r\nContent-Length: 0\r\n\r\n".encode("latin-1"))
    assert send(server.url).retry_after == expected


def test_ipv6_is_spoken_with_brackets_in_the_host_header(serve):
    server = serve(address="::1")
    assert send(server.url, allowed_networks=(ip_network("::1"),)).status_code == 200
    assert f"Host: [::1]:{server.port}".encode() in server.requests[0][0]


def test_early_hints_are_not_the_answer(serve):
    assert send(serve(b"HTTP/1.1 103 Early Hints\r\n\r\n" + OK).url).status_code == 200


def test_a_message_can_be_put(serve):
    server = serve()
    assert send(server.url, method="PUT").status_code == 200
    assert server.requests[0][0].startswith(b"PUT / HTTP/1.1\r\n")


@pytest.mark.parametrize("method", ["GET", "DELETE", "CONNECT", "post", "POST / HTTP/1.1\r\nx: y"])
def test_a_message_is_not_sent_by_another_verb(serve, method):
    server = serve()
    with pytest.raises(Refused, match="POST or PUT"):
        send(server.url, method=method)
    assert server.connections == 0


def test_switching_protocols_is_no_success(serve):
    server = serve(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n")
    with pytest.raises(Undelivered, match="RemoteProtocolError"):
        send(server.url)


# --- where it must not go -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "2130706433",
        "0x7f000001",
        "0177.0.0.1",
        "127.1",
        "①②⑦.0.0.1",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[64:ff9b::127.0.0.1]",
        "[64:ff9b:1::7f00:1]",
        "[2002:7f00:1::]",
        "[::1]",
        "[::]",
        "0.0.0.0",
        "0",
        "localhost",
        "169.254.169.254",
        "[fd00:ec2::254]",
        "100.100.100.200",
        "017700000001",
        "127.0.1",
        "0x7f.1",
        "127。0。0。1",
        "[::127.0.0.1]",
        "[2001:0:7f00:1::]",
        "[2002:7f00:1::7f00:1]",
        "[fec0::1]",
        "[fc00::1]",
        "[fe80::1]",
        "[ff02::1]",
        "224.0.0.1",
        "255.255.255.255",
        "100.64.0.1",
        "192.0.0.8",
        "198.18.0.1",
        "240.0.0.1",
        "10.0.0.1",
    ],
)
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_no_spelling_of_an_inner_address_gets_a_connection(serve, scheme, host):
    server = serve()
    with pytest.raises(Refused) as caught:
        send(f"{scheme}://{host}:{server.port}/SECRET", allowed_networks=())
    assert server.connections == 0
    assert "SECRET" not in str(caught.value)
    assert outcome(caught.value) is Outcome.REFUSED


@pytest.mark.parametrize(
    "host", ["2130706433", "0x7f000001", "0177.0.0.1", "127.1", "127.0.1", "①②⑦.0.0.1", "localhost"]
)
def test_spellings_that_reach_the_resolver_are_judged_by_what_it_answers(serve, host):
    """The second line of defence: were the URL check to let such a host pass, its address would still be refused."""
    server = serve()
    assert {address.is_loopback for address in system_addresses(host, server.port)} == {True}
    with pytest.raises(Refused):
        send(
            f"https://a.name:{server.port}/", resolve=lambda _, port: system_addresses(host, port), allowed_networks=()
        )
    assert server.connections == 0


@pytest.mark.parametrize(
    "found", [("127.0.0.1", "127.0.0.2"), ("127.0.0.2", "127.0.0.1"), ("93.184.215.14", "10.0.0.1")]
)
def test_a_name_with_one_inner_address_is_refused_whole(serve, found):
    outside, inside = serve(), serve(address="127.0.0.2")
    for port in (outside.port, inside.port):
        with pytest.raises(Refused, match="not public"):
            send(f"https://a.name:{port}/", resolve=answers(*found))
    assert outside.connections == inside.connections == 0


def test_a_resolver_that_changes_its_mind_after_the_check_is_not_asked_again(serve):
    """DNS rebinding: the first answer is fine, every later one leads inside."""
    inside = serve(address="127.0.0.2")
    asked = []

    def rebinding(host, _port):
        asked.append(host)
        return [ip_address("127.0.0.1" if len(asked) == 1 else "127.0.0.2")]

    with closed_port("127.0.0.1", inside.port), pytest.raises(Undelivered, match="ConnectionRefusedError"):
        send(f"https://a.name:{inside.port}/", resolve=rebinding)
    assert asked == ["a.name"]
    with pytest.raises(Refused):
        send(f"https://a.name:{inside.port}/", resolve=rebinding)
    assert inside.connections == 0


@pytest.mark.parametrize(
    "found",
    [
        *("10.0.0.1", "100.64.0.1", "169.254.169.254", "172.16.0.1", "192.0.0.8", "192.168.0.1", "198.18.0.1"),
        *("224.0.0.1", "240.0.0.1", "255.255.255.255", "0.0.0.0", "::", "::1", "::127.0.0.1", "::ffff:10.0.0.1"),
        *("64:ff9b::a00:1", "64:ff9b:1::a00:1", "2001:0:a00:1::", "2002:a00:1::", "fc00::1", "fe80::1", "fec0::1"),
        *("ff02::1", "2001:db8::1", "3fff::1", "5f00::1"),
    ],
)
def test_whatever_a_name_turns_out_to_be_is_judged_before_any_connection(monkeypatch, found):
    def connect(*_args, **_options):
        raise AssertionError("a connection was attempted")

    monkeypatch.setattr(socket, "create_connection", connect)
    monkeypatch.setattr(socket.socket, "connect", connect)
    with pytest.raises(Refused):
        send("https://a.name/", resolve=answers(found), allowed_networks=())


def test_a_resolver_that_swings_between_outside_and_inside_never_gets_us_inside(serve):
    """Fifty attempts against a name that answers by turns; each asks once and goes by what it heard."""
    inside = serve(address="127.0.0.2")
    asked = []

    def swinging(_host, _port):
        asked.append(None)
        return [ip_address(f"127.0.0.{1 + len(asked) % 2}")]

    with closed_port("127.0.0.1", inside.port):
        for _ in range(50):
            with pytest.raises((Refused, Undelivered)):
                send(f"https://a.name:{inside.port}/", resolve=swinging)
    assert (len(asked), inside.connections) == (50, 0)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("x-portal", "SECRET\r\nHost: inside"),
        ("x-portal", "SECRET\nx: y"),
        ("x-portal", "SECRET\0b"),
        ("x-portal", "ü"),
        ("x-portal", " SECRET"),
        ("x portal", "SECRET"),
        ("x-portal\r\nx", "SECRET"),
        ("", "SECRET"),
        ("Host", "metadata.internal"),
        ("content-length", "0"),
        ("Transfer-Encoding", "chunked"),
        ("connection", "upgrade"),
        ("Expect", "100-continue"),
    ],
)
def test_a_header_that_says_where_a_message_goes_or_ends_is_not_sent(serve, name, value):
    """Portals choose headers of their callbacks."""
    server = serve()
    with pytest.raises(Refused, match="header") as caught:
        send(server.url, headers={name: value})
    assert server.connections == 0
    assert value not in str(caught.value)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_an_answer_not_a_way(serve, status):
    inside = serve(address="127.0.0.2")
    outside = serve(f"HTTP/1.1 {status} X\r\nLocation: {inside.url}/\r\nContent-Length: 0\r\n\r\n".encode())
    found = send(outside.url)
    assert found.status_code == status
    assert outcome(found.status_code) is Outcome.RETRY
    assert (outside.connections, inside.connections) == (1, 0)


@pytest.mark.parametrize("name", ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"])
def test_proxies_in_the_environment_are_ignored(serve, monkeypatch, authority, name):
    serving, trust = authority
    proxy, plain = serve(address="127.0.0.2"), serve()
    encrypted = serve(tls=serving(x509.IPAddress(ip_address("127.0.0.1"))))
    monkeypatch.setenv(name, proxy.url)
    monkeypatch.delenv("NO_PROXY", raising=False)
    assert send(plain.url).status_code == 200
    assert send(f"https://127.0.0.1:{encrypted.port}/", trust=trust).status_code == 200
    assert proxy.connections == 0


# --- how long it may take -------------------------------------------------------------------------------------------


def drip(start, piece, pause_seconds=0.05):
    def answer(connection):
        connection.sendall(start)
        while True:
            connection.sendall(piece)
            time.sleep(pause_seconds)

    return answer


def stall(_connection):
    time.sleep(10)


@pytest.mark.parametrize(
    "answer",
    [
        stall,
        drip(b"HTTP/1.1 200 OK\r\nX-Slow: ", b"x"),
        drip(b"", b"HTTP/1.1 103 Early Hints\r\n\r\n"),
    ],
    ids=["silence", "a header without end", "interim answers without end"],
)
def test_an_answer_whose_status_does_not_come_is_cut_at_the_deadline(serve, answer):
    began = time.monotonic()
    with pytest.raises(Undelivered, match="TimeoutError"):
        send(serve(answer).url, timeout_seconds=0.4)
    assert 0.35 < time.monotonic() - began < 1.5


def test_a_body_without_end_is_cut_at_the_cap(serve):
    sent = []

    def flood(connection):
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000000\r\n\r\n")
        while True:
            sent.append(connection.send(bytes(65536)))

    server = serve(flood)
    began = time.monotonic()
    assert send(server.url, timeout_seconds=5).status_code == 200
    assert time.monotonic() - began < 2
    assert sum(sent) < 400 * MAX_BODY_BYTES  # what the socket buffers took


@pytest.mark.parametrize(
    "answer",
    [
        drip(b"HTTP/1.1 202 Accepted\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
        drip(b"HTTP/1.1 202 Accepted\r\nContent-Length: 1000\r\n\r\n", b"x"),
        lambda connection: (connection.sendall(b"HTTP/1.1 202 Accepted\r\nContent-Length: 9\r\n\r\n"), time.sleep(9)),
    ],
    ids=["chunks", "a length", "silence"],
)
def test_a_dripping_body_is_cut_after_half_a_second_and_its_status_counts(serve, answer):
    began = time.monotonic()
    found = send(serve(answer).url, timeout_seconds=8)
    assert (found.status_code, found.elapsed_ms < 400) == (202, True)
    assert time.monotonic() - began < 1.5


def test_headers_without_end_are_cut_before_they_fill_the_memory(serve):
    sent = []

    def bomb(connection):
        connection.sendall(b"HTTP/1.1 200 OK\r\n")
        while True:
            sent.append(connection.send(b"X-Bomb: " + b"b" * 1000 + b"\r\n"))

    server = serve(bomb)
    began = time.monotonic()
    with pytest.raises(Undelivered, match="RemoteProtocolError"):
        send(server.url, timeout_seconds=5)
    assert time.monotonic() - began < 2
    assert sum(sent) < 16_000_000  # what the socket buffers took


def test_a_body_that_unpacks_to_gigabytes_is_not_unpacked(serve):
    packed = zlib.compress(bytes(50_000_000), 9)
    server = serve(b"HTTP/1.1 200 OK\r\nContent-Encoding: deflate\r\nConnection: close\r\n\r\n" + packed)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert send(server.url).status_code == 200
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000  # kB


def test_a_body_that_breaks_off_does_not_take_the_status_back(serve):
    assert send(serve(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nhalf").url).status_code == 200


def test_a_receiver_that_does_not_read_is_cut_at_the_deadline():
    with socket.create_server(("127.0.0.1", 0)) as listener:  # the kernel accepts, nobody reads
        began = time.monotonic()
        with pytest.raises(Undelivered, match="TimeoutError"):
            send(f"http://127.0.0.1:{listener.getsockname()[1]}/", content=bytes(32_000_000), timeout_seconds=0.4)
        assert 0.35 < time.monotonic() - began < 1.5


def test_a_receiver_that_reads_slowly_is_cut_at_the_deadline(serve):
    def sip(connection):
        while connection.recv(1 << 20):
            time.sleep(0.05)

    began = time.monotonic()
    with pytest.raises(Undelivered, match="TimeoutError"):
        send(serve(sip, speaks_first=True).url, content=bytes(100_000_000), timeout_seconds=0.4)
    assert 0.35 < time.monotonic() - began < 1.5


@pytest.mark.parametrize(
    "answer",
    [stall, drip(b"\x16\x03\x03\x3f\xff\x02\x00\x3f\xfb\x03\x03", b"x")],
    ids=["silence", "a ServerHello without end"],
)
def test_a_handshake_that_does_not_end_is_cut_at_the_deadline(serve, answer):
    server = serve(answer, speaks_first=True)
    began = time.monotonic()
    with pytest.raises(Undelivered, match="TimeoutError"):
        send(f"https://127.0.0.1:{server.port}/", timeout_seconds=0.4)
    assert 0.35 < time.monotonic() - began < 1.5


def test_name_servers_that_stay_silent_are_cut_at_the_deadline():
    release = threading.Event()

    def silent(_host, _port):
        release.wait(10)
        return []

    began = time.monotonic()
    with pytest.raises(Undelivered, match="TimeoutError"):
        send("https://a.name/", resolve=silent, timeout_seconds=0.3)
    release.set()
    assert 0.25 < time.monotonic() - began < 1.5


def test_looking_up_and_waiting_share_one_deadline(serve):
    def slow(_host, _port):
        time.sleep(0.6)
        return [ip_address("127.0.0.1")]

    began = time.monotonic()
    with pytest.raises(Undelivered, match="TimeoutError"):
        send(serve(stall).url, resolve=slow, timeout_seconds=0.8)
    assert 0.75 < time.monotonic() - began < 1.35


# --- when the network fails -----------------------------------------------------------------------------------------


def test_a_closed_address_gives_way_to_the_next(serve):
    server = serve(address="::1")
    with closed_port("127.0.0.1", server.port):
        found = send(server.url, resolve=answers("127.0.0.1", "::1"), allowed_networks=(*OUTSIDE, ip_network("::1")))
    assert found.status_code == 200


def test_a_dead_address_leaves_time_for_the_next(serve):
    server = serve(address="::1")
    with socket.create_server(("127.0.0.1", server.port), backlog=0), ExitStack() as filled:
        for _ in range(8):  # the queue of the listener is full, so that the kernel drops whoever comes next
            waiting = filled.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(("127.0.0.1", server.port))
        both = {"resolve": answers("127.0.0.1", "::1"), "allowed_networks": (*OUTSIDE, ip_network("::1"))}
        found = send(server.url, timeout_seconds=1, **both)
    assert found.status_code == 200
    assert 450 < found.elapsed_ms < 1000


@pytest.mark.parametrize(
    ("answer", "cause"),
    [
        (b"", "RemoteProtocolError"),
        (b"SSH-2.0-OpenSSH_9.9\r\n", "RemoteProtocolError"),
        (b"HTTP/1.1 200 OK\r\nContent-Le", "RemoteProtocolError"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 200_000, "RemoteProtocolError"),
    ],
)
def test_what_is_not_http_is_undelivered(serve, answer, cause):
    with pytest.raises(Undelivered, match=f"^{cause}$") as caught:
        send(serve(answer).url)
    assert outcome(caught.value) is Outcome.RETRY


def test_a_closed_port_is_undelivered():
    with closed_port("127.0.0.1", 0) as port, pytest.raises(Undelivered, match=r"^ConnectionRefusedError$"):
        send(f"http://127.0.0.1:{port}/")


def unknown(host, _port):
    raise socket.gaierror(socket.EAI_NONAME, f"Name or service not known: {host}")


def test_an_unknown_name_is_undelivered():
    with pytest.raises(Undelivered, match=r"^gaierror$"):
        send("https://no-such-name.invalid/", resolve=unknown)


def test_a_name_without_addresses_is_undelivered():
    with pytest.raises(Undelivered, match=r"^ConnectError$"):
        send("https://a.name/", resolve=answers())


def test_neither_errors_nor_their_tracebacks_nor_logs_quote_the_url(serve, caplog):
    caplog.set_level(logging.INFO)
    server = serve(b"garbage\r\n")
    for url, resolve in (
        (f"{server.url}/SECRET?SECRET", system_addresses),
        (f"https://127.0.0.1:{server.port}/SECRET", system_addresses),
        ("https://no-such-name.invalid/SECRET", unknown),
    ):
        with pytest.raises(Undelivered) as caught:
            send(url, resolve=resolve, timeout_seconds=0.3)
        printed = "".join(traceback.format_exception(caught.value))
        assert "SECRET" not in printed + caplog.text
        assert "no-such-name" not in printed + caplog.text


# --- TLS ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    """A certificate authority of our own, and server contexts with certificates signed by it."""
    folder = tmp_path_factory.mktemp("tls")
    ca_key = ec.generate_private_key(ec.SECP256R1())
    ca_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Test authority")])
    now = dt.datetime.now(dt.UTC)

    def certificate(subject, key, *extensions):
        built = x509.CertificateBuilder(ca_name, subject, key.public_key(), x509.random_serial_number())
        built = built.not_valid_before(now - dt.timedelta(1)).not_valid_after(now + dt.timedelta(1))
        for extension in extensions:
            built = built.add_extension(extension, critical=isinstance(extension, x509.BasicConstraints))
        return built.sign(ca_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    def serving(*names, on_name=lambda *_: None):
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a server")])
        path = folder / f"{'-'.join(map(str, names))}.pem".replace(":", "_")
        private = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        path.write_bytes(key.private_bytes(*private) + certificate(subject, key, x509.SubjectAlternativeName(names)))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(path)
        context.sni_callback = on_name
        return context

    root = certificate(ca_name, ca_key, x509.BasicConstraints(ca=True, path_length=0))
    return serving, ssl.create_default_context(cadata=root.decode())


def test_tls_is_spoken_for_the_name_in_the_url_at_the_checked_address(serve, authority):
    serving, trust = authority
    names = []
    tls = serving(x509.DNSName("portal.example"), on_name=lambda _socket, name, _context: names.append(name))
    server = serve(tls=tls)
    found = send(f"https://portal.example:{server.port}/hook", resolve=answers("127.0.0.1"), trust=trust)
    assert isinstance(found, Response)
    assert found.status_code == 200
    assert names == ["portal.example"]
    assert f"Host: portal.example:{server.port}".encode() in server.requests[0][0]


def test_a_certificate_for_another_name_is_not_accepted(serve, authority):
    serving, trust = authority
    server = serve(tls=serving(x509.DNSName("other.example"), x509.IPAddress(ip_address("127.0.0.1"))))
    with pytest.raises(Undelivered, match=r"^SSLCertVerificationError$"):
        send(f"https://portal.example:{server.port}/", resolve=answers("127.0.0.1"), trust=trust)
    assert server.requests == []


def test_a_certificate_for_an_address_serves_an_address(serve, authority):
    serving, trust = authority
    server = serve(tls=serving(x509.IPAddress(ip_address("127.0.0.1"))))
    assert send(f"https://127.0.0.1:{server.port}/", trust=trust).status_code == 200


def test_an_authority_that_the_system_does_not_know_is_not_trusted(serve, authority):
    serving, _ = authority
    server = serve(tls=serving(x509.DNSName("portal.example")))
    with pytest.raises(Undelivered, match=r"^SSLCertVerificationError$"):
        send(f"https://portal.example:{server.port}/", resolve=answers("127.0.0.1"))
    assert server.requests == []


def test_a_tls_body_that_drips_is_cut_after_half_a_second(serve, authority):
    serving, trust = authority
    server = serve(drip(b"HTTP/1.1 200 OK\r\n\r\n", b"x"), tls=serving(x509.IPAddress(ip_address("127.0.0.1"))))
    began = time.monotonic()
    found = send(f"https://127.0.0.1:{server.port}/", trust=trust, timeout_seconds=8)
    assert found.status_code == 200
    assert 0.4 < time.monotonic() - began < 1.5
