"""A whole installation for one test: real servers, real processes, a registered model and an API key."""

from __future__ import annotations

import base64
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx
from pydantic import SecretStr
from sqlalchemy import Engine

from app import keymaking, supervisor
from app.api.auth import Scope
from app.queue import IO, UNLEARN
from app.settings import Settings
from app.storage.sessions import connect, transaction
from tests import command_line, toy
from tests.faults import wait_until

ENDED = {"completed", "partially_completed", "no_data", "cancelled", "rejected", "needs_attention"}


def settings_for(home: Path, database_url: str, redis_url: str = "", **changes: Any) -> Settings:
    """Settings of a test installation: its own keys, short leases, no coalescing window."""
    key = lambda: SecretStr(base64.b64encode(os.urandom(32)).decode())  # noqa: E731
    return Settings().model_copy(
        update={
            "home": home,
            "database_url": database_url,
            "redis_url": SecretStr(redis_url),
            "index_key": key(),
            "wrapping_key": key(),
            "signing_key": key(),
            "log_key": key(),
            "coalesce_seconds": 0.5,
            "lease_seconds": 4.0,
            "pulse_seconds": 1.0,
            "hold_share": 1.0,
            "second_factor": "optional",
            **changes,
        }
    )


@dataclass
class Installation:
    """Processes by name, and what a portal needs to talk to them."""

    settings: Settings
    engine: Engine
    directory: Path
    port: int
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    commands: dict[str, tuple[str, ...]] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    key: str = ""

    @property
    def dispatch_environment(self) -> dict[str, str]:
        return {**self.environment, "EXPUNGE_LOG_KEY": self.settings.log_key.get_secret_value()}

    @property
    def log(self) -> Path:
        return self.directory / "processes.log"

    def start(self, name: str) -> None:
        """Start one process of the house (again)."""
        with self.log.open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [sys.executable, *self.commands[name]],
                env=self.environment if name != "dispatch" else self.dispatch_environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def stop(self) -> None:
        for process in self.processes.values():
            process.kill()
            process.wait()

    @contextmanager
    def kept_running(self, *, after_seconds: float = 0.5) -> Iterator[None]:
        """Starts whatever dies during the block again, as a supervisor would."""
        over = threading.Event()

        def watch() -> None:
            while not over.wait(after_seconds):
                for name in [name for name, process in self.processes.items() if process.poll() is not None]:
                    self.start(name)

        watcher = threading.Thread(target=watch, name="supervisor", daemon=True)
        watcher.start()
        try:
            yield
        finally:
            over.set()
            watcher.join()

    def torch_processes(self) -> list[int]:
        """Living torch children of this installation's workers, also those whose worker is dead."""
        mark, found = f"TEST_HOUSE={self.environment['TEST_HOUSE']}".encode(), []
        for entry in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # it ended while we looked
                command, environment = ((entry / part).read_bytes().split(b"\0") for part in ("cmdline", "environ"))
                if b"workers.step" in command and mark in environment:
                    found.append(int(entry.name))
        return found

    def client(self) -> httpx.Client:
        return httpx.Client(
            base_url=f"http://127.0.0.1:{self.port}",
            headers={"Authorization": f"Bearer {self.key}"},
            timeout=30,
            verify=False,  # nothing is encrypted here; reading all authorities' certificates first takes 60 ms
        )

    def wait_for_api(self) -> None:
        def answers() -> bool:
            try:
                with self.client() as client:
                    return client.get("/health/live", timeout=1).status_code == 200
            except httpx.TransportError:
                return False

        wait_until(answers, 30, "the API answers")

    def demand(self, person: int, **more: Any) -> UUID:
        """POST one erasure request; it must be accepted."""
        with self.client() as client:
            answer = client.post("/v1/erasure-requests", json={"user_id": toy.user_id(person), **more})
        assert answer.status_code == 202, answer.text
        return UUID(answer.json()["id"])

    def show(self, request_id: UUID) -> dict[str, Any]:
        with self.client() as client:
            answer = client.get(f"/v1/erasure-requests/{request_id}")
        answer.raise_for_status()
        return answer.json()

    def wait_until_ended(self, request_id: UUID, timeout_seconds: float = 90) -> dict[str, Any]:
        wait_until(
            lambda: self.show(request_id)["status"] in ENDED,
            timeout_seconds,
            f"request {request_id} ends",
            every_seconds=0.2,
        )
        return self.show(request_id)

    def cli(self, *arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        """Run the `expunge` command line in this installation."""
        return command_line.run("app.cli", *arguments, environment=self.environment, stdin=stdin)

    def register(self, *more: str, without: tuple[int, ...] = ()) -> None:
        """Register the toy model (again); `expunge models register` hands its arguments to this process."""
        weights, manifest = toy.write_model(self.directory, without=without)
        files = ("--weights", str(weights), "--manifest", str(manifest))
        words = ("toy", "--recipe", toy.REFERENCE, *files, *more)
        done = command_line.run("workers.register", *words, environment=self.environment)
        assert done.returncode == 0, done.stderr


@contextmanager
def installation(
    home: Path,
    database_url: str,
    redis_url: str,
    *,
    processes: tuple[str, ...] = (),
    model: bool = True,
    **changes: Any,
) -> Iterator[Installation]:
    """An installation on given servers; starts the processes named, out of api, dispatch, worker-io, worker-unlearn."""
    settings = settings_for(home, database_url, redis_url, **changes)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    engine = connect(settings.sqlalchemy_url(), pool_size=4)
    house = Installation(settings, engine, home, port, environment=_environment(settings))
    house.commands = {
        "api": supervisor.api_command(host="127.0.0.1", port=port),
        "dispatch": supervisor.DISPATCH,
        "worker-io": supervisor.worker_command(IO),
        "worker-unlearn": supervisor.worker_command(UNLEARN),
        "worker-unlearn-2": supervisor.worker_command(UNLEARN),
    }
    with transaction(engine) as tx:
        _, house.key = keymaking.create(tx, name="portal", scopes=list(Scope))
    try:
        if model:
            house.register()
        for name in processes:
            house.start(name)
        if "api" in processes:
            house.wait_for_api()
        yield house
    finally:
        house.stop()
        engine.dispose()


def _environment(settings: Settings) -> dict[str, str]:
    fields = ("coalesce_seconds", "lease_seconds", "pulse_seconds", "max_attempts", "step_seconds", "batch_requests")
    fields += ("second_factor", "session_idle_minutes", "session_hours", "dashboard_url")
    fields += ("hold_share", "hold_least", "approval_policy", "approvals_asked", "cooling_off_hours")
    ours = {f"EXPUNGE_{name.upper()}": str(getattr(settings, name)) for name in fields}
    ours["EXPUNGE_WEBHOOK_ALLOW"] = ",".join(map(str, settings.webhook_allow))
    return {
        **supervisor.environment(settings),
        **ours,
        "OMP_NUM_THREADS": "1",
        "TEST_HOUSE": uuid4().hex,  # by which we know our processes among those of other tests
        "PYTHONPATH": str(Path(__file__).parents[1]),
    }
