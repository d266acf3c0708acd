"""The README's commands, run as they stand there in an empty directory, and the demo."""

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.embedded import Postgres
from tests import toy
from tests.faults import wait_until

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def commands(heading: str, block: int = 0) -> list[str]:
    """The commands of a console block under a heading, continuation lines joined."""
    section = README.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    text = section.split("```console\n")[1 + block].split("```", 1)[0].replace("\\\n", " ")
    return [re.sub(r"\s+# .*", "", line[2:]) for line in text.splitlines() if line.startswith("$ ")]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Shell:
    """A newcomer's terminal: its directory, and what they fill in for the README's placeholders."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.port, self.key = directory, free_port(), ""
        path = f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin"
        self.environment = {"PATH": path, "PYTHONPATH": str(ROOT), "HOME": str(directory), "OMP_NUM_THREADS": "1"}

    def run(self, command: str) -> str:
        command = command.replace("localhost:8000", f"127.0.0.1:{self.port}")
        done = subprocess.run(
            ["/bin/sh", "-c", command],
            cwd=self.directory,
            env=self.environment | {"KEY": self.key},
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        return done.stdout

    def up(self, command: str) -> subprocess.Popen[bytes]:
        words = [*shlex.split(command.removesuffix("&")), "--port", str(self.port)]
        log = (self.directory / "up.log").open("wb")
        return subprocess.Popen(words, cwd=self.directory, env=self.environment, stdout=log, stderr=log)


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    """A terminal in which `expunge up &` has been typed."""
    shell = Shell(tmp_path_factory.mktemp("newcomer"))
    up = shell.up(commands("Connect a portal")[0])
    wait_until(lambda: "listens" in (shell.directory / "up.log").read_text(), 90, "expunge up says that it listens")
    yield shell
    up.send_signal(signal.SIGINT)
    assert up.wait(60) == 0
    Postgres(shell.directory / ".expunge/postgres").remove()  # as root its data lie elsewhere
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", shell.port)) != 0


def test_the_readme_connects_a_portal(shell: Shell) -> None:
    _, create_key, register_endpoint, demand = commands("Connect a portal")
    shell.key = shell.run(f"{create_key}; echo $KEY").strip()
    assert shell.key.startswith("exk_")
    assert '"secret":"whsec_' in shell.run(register_endpoint)
    first, second = shell.run(demand), shell.run(demand)
    assert '"status":"' in first
    assert first.split('"')[3] == second.split('"')[3]


def test_the_readme_registers_a_model(shell: Shell) -> None:
    weights, manifest = toy.write_model(shell.directory)
    weights.rename(shell.directory / "wages.safetensors")
    manifest.rename(shell.directory / "wages.csv")
    (command,) = commands("Register a model")
    shell.run(command.replace("acme.wages:recipe", toy.REFERENCE))
    assert "wages" in shell.run("expunge models list")
    assert "registered" in shell.run("expunge models show wages")


def test_the_readme_calibrates_a_model(shell: Shell) -> None:
    (command,) = commands("Register a model", block=1)
    shell.run(command)
    shell.run("! expunge models calibrate nobody")


def test_the_readme_checks_the_log_a_certificate_and_a_receipt(shell: Shell) -> None:
    request_id = shell.run("echo u-77001 | expunge requests create").split()[0]
    wait_until(lambda: "request.no_data" in shell.run(f"expunge requests show {request_id}"), 90, "the request ends")
    log = f"http://127.0.0.1:{shell.port}/log"
    shell.run(f"curl -s {log}/checkpoint > OLD-CHECKPOINT; cp OLD-CHECKPOINT NEW-CHECKPOINT")
    certificate = f"expunge requests certificate {request_id} -o c.json"
    wait_until(
        lambda: shell.run(f"{certificate} || true") is not None and written(shell), 20, "the log has published it"
    )
    shell.run(f"expunge requests receipt {request_id} -o receipt.json")
    issuer, key = shell.run("expunge keys public").strip(), shell.run("expunge log keys").strip()
    install, *checks = commands("Check it")
    assert install == "pip install ./verifier"
    for check in checks:
        filled = check.replace("https://erasure.example/log", log).replace("CERTIFICATE-KEY", issuer)
        said = shell.run(re.sub(r"--vkey KEY\b", f"--vkey {key}", filled))
        assert said.count("ok ") == len(said.splitlines()) - said.count("??"), said


def written(shell: Shell) -> bool:
    return (shell.directory / "c.json.tlog-proof").exists()


@pytest.mark.parametrize("command", commands("Two commands"))
def test_the_two_commands_are_make_targets(command: str) -> None:
    subprocess.run([*shlex.split(command), "-n"], cwd=ROOT, check=True, capture_output=True)


def test_the_demo_checks_every_claim_and_leaves_nothing_running(tmp_path: Path) -> None:
    before, databases = _processes(), _databases_of_demos()
    done = subprocess.run(
        [sys.executable, "-m", "examples.demo"],
        cwd=tmp_path,
        env=dict(os.environ, PYTHONPATH=str(ROOT)),
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    assert "every claim above was checked and held" in done.stdout
    assert (tmp_path / ".expunge/demo/certificate.dsse.json").exists()
    left = [p for p in _processes() - before if b"expunge-demo-" in _environment_of(p)]
    assert not left
    assert _databases_of_demos() == databases


def _environment_of(pid: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return b""


def _databases_of_demos() -> set[Path]:
    """Where root's databases lie when their own directory can't be entered."""
    return {note.parent for note in Path("/var/lib").glob("expunge-*/home") if "expunge-demo-" in note.read_text()}


def _processes() -> set[str]:
    return {path.name for path in Path("/proc").iterdir() if path.name.isdigit()}
