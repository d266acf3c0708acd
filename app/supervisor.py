"""All processes on one machine: embedded services if none are configured, API, dispatch, workers; Ctrl-C ends all."""

from __future__ import annotations

import base64
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import Final

from pydantic import SecretStr

from app import logs
from app.embedded import LEASH, Postgres, Valkey
from app.errors import Misconfigured
from app.logs import log
from app.queue import IO, UNLEARN
from app.settings import Settings
from app.storage import migrate

DISPATCH: Final = ("-m", "workers.dispatch")
_LOG_KEY = "EXPUNGE_LOG_KEY"
_CONCURRENCY = {UNLEARN: 1, IO: 16}  # webhooks wait for others most of the time
_KEYS = ("index_key", "wrapping_key", "signing_key")
_ALL_KEYS = (*_KEYS, "log_key")
_LISTS = ("webhook_allow", "trusted_proxies", "oidc_algorithms")
_SECRETS = ("transcend_api_key", "transcend_sombra_key", "oidc_sign_in_secret")
_SPECIAL = {*_ALL_KEYS, *_LISTS, *_SECRETS, "database_url", "redis_url"}
_START_SECONDS = 60
_STOP_SECONDS = 20
_RESTART_SECONDS = 1.0


def api_command(*, host: str, port: int, workers: int = 1) -> tuple[str, ...]:
    """Arguments for Python that run the API."""
    return ("-m", "app.serve", "--host", host, "--port", str(port), "--workers", str(workers))


def worker_command(queue: str) -> tuple[str, ...]:
    """Arguments for Python that run a worker: threads, since torch runs in children of its own."""
    options = ("--pool", "threads", "--concurrency", str(_CONCURRENCY[queue]), "--queues", queue)
    quiet = ("--without-mingle", "--without-gossip", "--without-heartbeat", "--loglevel", "WARNING")
    return (
        "-m",
        "celery",
        "--quiet",
        "-A",
        "workers.celery_app",
        "worker",
        "--hostname",
        f"{queue}-{os.getpid()}@%h",
        *options,
        *quiet,
    )


def up(settings: Settings, *, port: int, workers: int) -> None:
    """Run everything until SIGINT or SIGTERM; a process that dies is started again."""
    logs.configure(settings.log_level)
    with running(settings, port=port, workers=workers) as house:
        _await_listener(port)
        print(f"Expunge listens on http://127.0.0.1:{port}, its dashboard on /admin  (Ctrl-C ends it)", flush=True)
        house.watch()


@contextmanager
def running(settings: Settings, *, port: int, workers: int = 1, log_to: int | None = None) -> Iterator[House]:
    """The whole house for the time of a block; its processes write to our stderr, or to the descriptor ``log_to``."""
    with ExitStack() as stack:
        settings = _with_services(_with_keys(settings), stack)
        migrate.upgrade(settings.sqlalchemy_url())
        house = House(environment(settings), settings, url=f"http://127.0.0.1:{port}", log_to=log_to)
        stack.callback(house.stop)
        house.start("api", api_command(host="127.0.0.1", port=port))
        house.start("dispatch", DISPATCH)
        house.start("worker-io", worker_command(IO))
        for number in range(1, workers + 1):
            house.start(f"worker-unlearn-{number}", worker_command(UNLEARN))
        yield house


class House:
    """Our child processes by name."""

    def __init__(self, environment: Mapping[str, str], settings: Settings, *, url: str, log_to: int | None) -> None:
        self.environment, self.settings, self.url = dict(environment), settings, url
        self._log_to = log_to
        self._commands: dict[str, tuple[str, ...]] = {}
        self.children: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, command: tuple[str, ...]) -> None:
        """Start a process, or start it again.

        It leads its own group, so that Ctrl-C reaches it only through us, and hangs on a leash: when we are gone,
        even by ``kill -9``, it is told to leave.
        """
        self._commands[name] = command
        self.children[name] = subprocess.Popen(
            ["/bin/sh", "-c", LEASH, "TERM", sys.executable, *command],
            env=dispatch_environment(self.settings) if command == DISPATCH else self.environment,
            stdin=subprocess.PIPE,
            stdout=self._log_to,
            stderr=self._log_to,
            start_new_session=True,
        )

    def watch(self) -> None:
        """Keep all of them running until a signal asks us to leave."""
        stopping = []

        def leave(number: int, _: FrameType | None) -> None:
            stopping.append(number)

        previous = {s: signal.signal(s, leave) for s in (signal.SIGINT, signal.SIGTERM)}
        while not stopping:
            time.sleep(_RESTART_SECONDS)
            for name, child in list(self.children.items()):
                if child.poll() is not None and not stopping:
                    log.warning("process died", process=name, code=child.returncode)
                    self.start(name, self._commands[name])
        for number, handler in previous.items():
            signal.signal(number, handler)

    def stop(self) -> None:
        """Ask all to leave, then make them."""
        for child in self.children.values():
            child.terminate()
        deadline = time.monotonic() + _STOP_SECONDS
        for child in self.children.values():
            try:
                child.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                os.killpg(child.pid, signal.SIGKILL)  # its lease runs out by itself; nothing is lost
                child.wait()


def _await_listener(port: int) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise Misconfigured(f"the API does not answer on port {port}; is the port taken? see the lines above")


def join_embedded(settings: Settings) -> Settings:
    """Settings that reach what `expunge up` runs in this directory, where nothing else is configured."""
    addresses = settings.home / "services.env"
    changes: dict[str, object] = {}
    if addresses.exists():
        urls = dict(line.split("=", 1) for line in addresses.read_text().splitlines())
        changes["database_url"] = settings.database_url or urls["DATABASE_URL"]
        changes["redis_url"] = settings.redis_url.get_secret_value() or urls["REDIS_URL"]
    if _keys_file(settings).exists():
        settings = _with_keys(settings)
    return _changed(settings, **changes)


def environment(settings: Settings) -> dict[str, str]:
    """The environment of a process that shall see these settings."""
    plain = {name: getattr(settings, name) for name in Settings.model_fields if name not in _SPECIAL}
    ours = {
        "DATABASE_URL": settings.database_url,
        "REDIS_URL": settings.redis_url.get_secret_value(),
        **{f"EXPUNGE_{name.upper()}": str(value) for name, value in plain.items() if value not in {None, ""}},
        "EXPUNGE_HOME": str(settings.home.absolute()),
        "EXPUNGE_LOG_DIRECTORY": str(settings.log_path),
        **{f"EXPUNGE_{name.upper()}": ",".join(map(str, getattr(settings, name))) for name in _LISTS},
        **{f"EXPUNGE_{name.upper()}": getattr(settings, name).get_secret_value() for name in (*_KEYS, *_SECRETS)},
    }
    inherited = {name: value for name, value in os.environ.items() if name != _LOG_KEY}
    return {**inherited, **{name: value for name, value in ours.items() if value}}


def dispatch_environment(settings: Settings) -> dict[str, str]:
    """The environment of dispatch, which alone may sign the public log."""
    return {**environment(settings), _LOG_KEY: settings.log_key.get_secret_value()}


def _with_services(settings: Settings, stack: ExitStack) -> Settings:
    if bool(settings.database_url) != bool(settings.redis_url.get_secret_value()):
        raise Misconfigured("set both DATABASE_URL and REDIS_URL, or neither to have them started here")
    if settings.database_url:
        return settings
    postgres = stack.enter_context(Postgres(settings.home / "postgres"))
    valkey = stack.enter_context(Valkey(settings.home / "valkey"))
    file = settings.home / "services.env"
    stack.callback(file.unlink, missing_ok=True)
    _write_secret(file, f"DATABASE_URL={postgres.url}\nREDIS_URL={valkey.url}\n")
    return _changed(settings, database_url=postgres.url, redis_url=valkey.url)


def _with_keys(settings: Settings) -> Settings:
    """Keys from the environment, else from the home directory, where each is made once."""
    if all(getattr(settings, name).get_secret_value() for name in _ALL_KEYS):
        return settings
    file = _keys_file(settings)
    stored = dict(line.split("=", 1) for line in file.read_text().splitlines()) if file.exists() else {}
    missing = [name for name in _ALL_KEYS if name not in stored]
    if missing:
        settings.home.mkdir(parents=True, exist_ok=True)
        stored |= {name: base64.b64encode(secrets.token_bytes(32)).decode() for name in missing}
        _write_secret(file, "".join(f"{name}={value}\n" for name, value in stored.items()))
    return _changed(
        settings, **{name: getattr(settings, name).get_secret_value() or stored[name] for name in _ALL_KEYS}
    )


def _keys_file(settings: Settings) -> Path:
    return settings.home / "keys.env"


def _changed(settings: Settings, **changes: object) -> Settings:
    secret = {*_ALL_KEYS, "redis_url"}
    return settings.model_copy(
        update={name: SecretStr(str(value)) if name in secret else value for name, value in changes.items()}
    )


def _write_secret(path: Path, text: str) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
