"""The main job on real data, from nothing: forget people from a live model, check every claim, end with a certificate.

Starts real services and processes in a directory of its own, trains the wage panel's model, registers it, sends
erasure requests over HTTP, receives the webhooks, and compares the result with models retrained without these people.
Exits 0 only if every check held.
"""

from __future__ import annotations

import base64
import io
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_network
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # a small network: threads would only wait for each other

import httpx
import torch
from expunge_verify import cli as verifier
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from safetensors.torch import save_file
from torch import Tensor

from app import certificates, keymaking, supervisor
from app.api.auth import Scope
from app.domain import webhook
from app.embedded import Postgres
from app.settings import load
from app.storage.sessions import connect, transaction
from examples import wage_panel
from examples.wage_panel import recipe
from workers.registry import Store

MODEL = "wages"
DRAW_SEED = 3
RETRAININGS = 3
SEED = 0
LIMIT_RHO = 1.2
LIMIT_TWIN = 0.01
WAIT_SECONDS = 150
OUTPUT = Path(".expunge/demo")
Json = dict[str, Any]  # Any: JSON
console = Console()


@dataclass
class Checks:
    """Every claim of the demo, and whether it held."""

    failed: list[str] = field(default_factory=list)

    def __call__(self, claim: str, *, holds: bool) -> None:
        """Print a claim with its outcome and remember it."""
        console.print(f"  {'[green]✓[/]' if holds else '[red]✗[/]'} {claim}", highlight=False)
        if not holds:
            self.failed.append(claim)


def main() -> int:
    """Run the demo; the exit code is the number of claims that did not hold, at most 1."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # leave through the blocks below, which stop everything
    checks, started = Checks(), time.monotonic()
    OUTPUT.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="expunge-demo-") as directory, portal() as inbox:
        home = Path(directory)
        settings = load().model_copy(
            update={"home": home, "coalesce_seconds": 2.0, "webhook_allow": (ip_network("127.0.0.0/8"),)}
        )
        console.rule("1  services, schema, processes")
        with (
            (OUTPUT / "processes.log").open("w") as log,
            removed(home),
            supervisor.running(settings, port=_free_port(), log_to=log.fileno()) as house,
        ):
            console.print("  PostgreSQL, Valkey, API, dispatch and two workers are running")
            console.rule("2  a model of real people")
            people = choose_people()
            weights = train_and_register(home, house)
            console.rule("3  three people ask to be forgotten, and one whom no model knows")
            with expunge(house) as client:
                inbox.register(client)
                ids = {client.demand(person): person for person in [*people, "999999"]}
                ended = client.wait(list(ids))
                inbox.wait(len(ids))
                report(client, ended, ids, checks)
                check_outcome(client, ended, ids, inbox, checks)
                console.rule("4  compared with models that never saw them")
                compare(client, house, weights, people, checks)
                console.rule("5  the certificate")
                check_certificate(client, house, next(iter(ids)), checks)
                check_log(client, house, next(iter(ids)), checks)
    console.rule(f"{time.monotonic() - started:.0f} s, nothing left running")
    if checks.failed:
        console.print(f"[red]{len(checks.failed)} claims did not hold[/]: {'; '.join(checks.failed)}", highlight=False)
        return 1
    console.print("[green]every claim above was checked and held[/]")
    return 0


@contextmanager
def removed(home: Path) -> Iterator[None]:
    """Delete the database afterwards: where root hands PostgreSQL to another account, its data lie elsewhere."""
    yield
    Postgres(home / "postgres").remove()


def choose_people() -> list[str]:
    """Three people of the training split, drawn with a fixed seed."""
    seen = dict.fromkeys(row.user_id for row in wage_panel.manifest_rows() if row.split == "train")
    return random.Random(DRAW_SEED).sample(list(seen), 3)  # noqa: S311 - a draw, not a secret


def train_and_register(home: Path, house: supervisor.House) -> dict[str, Tensor]:
    """Train on everybody in the training split, write weights and manifest, register through the command line."""
    rows = list(wage_panel.manifest_rows())
    train_ids = [row.sample_id for row in rows if row.split == "train"]
    weights = _train(train_ids, seed=SEED, label="training the network")
    save_file(weights, home / "wages.safetensors")
    lines = [f"{row.sample_id},{row.user_id},{row.split}" for row in rows]
    (home / "wages.csv").write_text("\n".join(["sample_id,user_id,split", *lines]) + "\n")
    command = ["models", "register", MODEL, "--recipe", "examples.wage_panel:recipe"]
    command += ["--weights", str(home / "wages.safetensors"), "--manifest", str(home / "wages.csv")]
    subprocess.run([sys.executable, "-m", "app.cli", *command], env=house.environment, check=True)
    return weights


def report(client: Portal, ended: dict[str, Json], ids: dict[str, str], checks: Checks) -> None:
    """Print how each request went."""
    table = Table("request", "person", "status", "model", "result", "received → closed")
    for number, (request_id, person) in enumerate(ids.items(), start=1):
        request = ended[request_id]
        seconds = _seconds(request["closed_at"] or request["received_at"]) - _seconds(request["received_at"])
        target = request["targets"][0]
        known = f"{'known' if person != '999999' else 'unknown'} #{number}"
        table.add_row(request_id[:8], known, request["status"], target["model"], target["result"], f"{seconds:.1f} s")
    console.print(table)
    first = next(iter(ids))
    timeline = Table("at", "what happened to the first of them")
    events = client.events(first)
    for event in events:
        timeline.add_row(f"+{_seconds(event['at']) - _seconds(events[0]['at']):6.2f} s", event["type"])
    console.print(timeline)
    checks("every request ended", holds=all(request["closed_at"] for request in ended.values()))


def check_outcome(client: Portal, ended: dict[str, Json], ids: dict[str, str], inbox: Inbox, checks: Checks) -> None:
    """The known are forgotten, the unknown is no_data, and the portal was told of each, once, signed."""
    for request_id, person in ids.items():
        wanted = "no_data" if person == "999999" else "completed"
        checks(f"request {request_id[:8]} is {wanted}", holds=ended[request_id]["status"] == wanted)
    told = sorted(message["data"]["id"] for message in inbox.messages)
    checks(
        f"{len(told)} webhooks came, one per request, all signatures right",
        holds=told == sorted(ids) and not inbox.refused,
    )
    versions = client.versions()
    checks(f"version {versions[0]['number']} is live, version 1 is retired", holds=bool(versions[-1]["retired_at"]))


def compare(
    client: Portal, house: supervisor.House, before: dict[str, Tensor], people: list[str], checks: Checks
) -> None:
    """ρ: distance to retrained models over the distance between retrained models, on the people's own samples."""
    rows = list(wage_panel.manifest_rows())
    gone = [row.sample_id for row in rows if row.user_id in people]
    kept = [row.sample_id for row in rows if row.split == "train" and row.user_id not in people]
    strangers = [row.sample_id for row in rows if row.split == "heldout"]
    after = Store(house.settings.store_url).get(client.versions()[0]["weights_sha256"])
    oracles = [
        _train(kept, seed=seed, label=f"retraining {seed} of {RETRAININGS}") for seed in range(1, RETRAININGS + 1)
    ]
    table = Table("", "before", "unlearned", f"retrained (mean of {RETRAININGS})")
    for name, ids in (
        ("loss on the forgotten", gone),
        ("loss on the retained", kept),
        ("loss on strangers", strangers),
    ):
        retrained = [_loss(oracle, ids) for oracle in oracles]
        spread = f"{sum(retrained) / len(retrained):.4f}  ({min(retrained):.4f} … {max(retrained):.4f})"
        table.add_row(name, f"{_loss(before, ids):.4f}", f"{_loss(after, ids):.4f}", spread)
    twin = _train(kept, seed=SEED, label="retraining from the same seed")
    floor = _mean(_distance(a, b, gone) for i, a in enumerate(oracles) for b in oracles[i + 1 :])
    rho = {
        name: _mean(_distance(w, o, gone) for o in oracles) / floor
        for name, w in (("before", before), ("after", after))
    }
    table.add_row("ρ on the forgotten", f"{rho['before']:.2f}", f"{rho['after']:.2f}", "1")
    apart = {name: _distance(w, twin, gone) / floor for name, w in (("before", before), ("after", after))}
    table.add_row("to the same seed's", f"{apart['before']:.2f}", f"{apart['after']:.0e}", "0")
    console.print(table)
    checks(f"{apart['after']:.0e} of that far from its own seed's retraining", holds=apart["after"] <= LIMIT_TWIN)
    checks(
        f"ρ {rho['after']:.2f} is at most {LIMIT_RHO} (1 = as far as two retrainings are)",
        holds=rho["after"] <= LIMIT_RHO,
    )
    worse = _loss(after, strangers) / _mean(_loss(oracle, strangers) for oracle in oracles)
    checks(f"loss on strangers is {worse:.3f} of the retrained models'", holds=worse <= 1.05)


def check_certificate(client: Portal, house: supervisor.House, request_id: str, checks: Checks) -> None:
    """Verify the signature with the public key alone, and that it speaks of the live weights."""
    envelope = client.certificate(request_id)
    path = OUTPUT / "certificate.dsse.json"
    path.write_text(json.dumps(envelope, indent=1) + "\n")
    statement = certificates.verify(envelope, certificates.public_key(house.settings.key("signing_key")))
    asset = statement["predicate"]["assets"][0]
    live = client.versions()[0]["weights_sha256"]
    checks("the signature is right", holds=True)
    checks("it names the weights that are live now", holds=statement["subject"][0]["digest"]["sha256"] == live)
    checks(
        f"assurance {asset['assurance']}, claim: {asset['claim_strength']}", holds=asset["assurance"] in {"A0", "A2"}
    )
    console.print(f"  [bold]{path}[/]", highlight=False)


def check_log(client: Portal, house: supervisor.House, request_id: str, checks: Checks) -> None:
    """Let the verifier that auditors install read the public log over HTTP, and the certificate's place in it."""
    proof, origin = OUTPUT / "certificate.dsse.json.tlog-proof", f"{house.url}/log"
    proof.write_bytes(client.proof(request_id))
    public = base64.b64encode(certificates.public_key(house.settings.key("signing_key"))).decode()
    certificate = ["certificate", str(OUTPUT / "certificate.dsse.json"), "--key", public, "--proof", str(proof)]
    for claim, arguments in (
        ("every entry of the public log is in its signed tree", ["log", origin]),
        ("every request in it ends as the rules ask", ["requests", origin]),
        ("the certificate is the one the log says was issued", certificate),
    ):
        with redirect_stdout(io.StringIO()):
            status = verifier.main([*arguments, "--vkey", client.log_key()])
        checks(f"expunge-verify {arguments[0]}: {claim}", holds=status == 0)


class Portal:
    """What a privacy portal does with our API."""

    def __init__(self, http: httpx.Client) -> None:
        self.http = http

    def _get(self, path: str) -> Any:  # Any: JSON
        answer = self.http.get(path)
        answer.raise_for_status()
        return answer.json()

    def demand(self, person: str) -> str:
        """POST one erasure request; returns its id."""
        answer = self.http.post(
            "/v1/erasure-requests", json={"user_id": person}, headers={"Idempotency-Key": f"demo-{time.time_ns()}"}
        )
        answer.raise_for_status()
        body: Json = answer.json()
        console.print(f"  202 {answer.headers['Location']}  due {body['deadline'][:10]}", highlight=False)
        return str(body["id"])

    def wait(self, ids: list[str]) -> dict[str, Json]:
        """Poll until all have ended, showing how many have."""
        deadline = time.monotonic() + WAIT_SECONDS
        with _bars() as bars:
            task = bars.add_task("waiting for the workers", total=len(ids))
            while True:
                shown = {i: self._get(f"/v1/erasure-requests/{i}") for i in ids}
                done = [r for r in shown.values() if r["closed_at"] or r["status"] == "needs_attention"]
                bars.update(task, completed=len(done))
                if len(done) == len(ids) or time.monotonic() > deadline:
                    return shown
                time.sleep(0.3)

    def events(self, request_id: str) -> list[Json]:
        """The request's history."""
        items: list[Json] = self._get(f"/v1/erasure-requests/{request_id}/events")["items"]
        return items

    def versions(self) -> list[Json]:
        """The model's versions, newest first."""
        items: list[Json] = self._get(f"/v1/models/{MODEL}/versions")["items"]
        return items

    def proof(self, request_id: str) -> bytes:
        """The proof that the log holds the certificate; it follows the certificate by a second."""
        path, deadline = f"/v1/erasure-requests/{request_id}/certificate.tlog-proof", time.monotonic() + 20
        while (answer := self.http.get(path)).status_code == httpx.codes.NOT_FOUND and time.monotonic() < deadline:
            time.sleep(0.2)
        answer.raise_for_status()
        return answer.content

    def log_key(self) -> str:
        """The log's key; an auditor gets it by another way than from the log."""
        vkey: str = self._get("/.well-known/erasure-log.json")["keys"][-1]["vkey"]
        return vkey

    def certificate(self, request_id: str) -> Json:
        """The request's certificate."""
        envelope: Json = self._get(f"/v1/erasure-requests/{request_id}/certificate")
        return envelope


@dataclass
class Inbox:
    """The portal's side of webhooks: a local listener that checks every signature."""

    url: str
    secrets: list[str] = field(default_factory=list)
    messages: list[Json] = field(default_factory=list)
    refused: int = 0

    def register(self, client: Portal) -> None:
        """Tell the service where we listen."""
        answer = client.http.post("/v1/webhook-endpoints", json={"url": self.url})
        answer.raise_for_status()
        self.secrets.append(answer.json()["secret"])

    def wait(self, count: int) -> None:
        """Wait until so many messages came."""
        deadline = time.monotonic() + 30
        while len(self.messages) < count and time.monotonic() < deadline:
            time.sleep(0.1)

    def receive(self, headers: dict[str, str], body: bytes) -> bool:
        """Check a message and keep it."""
        try:
            webhook.verify(self.secrets, headers, body=body, now_seconds=time.time())
        except webhook.SignatureRefused:
            self.refused += 1
            return False
        self.messages.append(json.loads(body))
        return True


@contextmanager
def portal() -> Iterator[Inbox]:
    """An inbox on a local port."""
    inbox = Inbox(url="")

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(204 if inbox.receive(dict(self.headers), body) else 401)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - http.server's name
            """Stay silent."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    inbox.url = f"http://127.0.0.1:{server.server_port}/expunge"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield inbox
    server.shutdown()
    server.server_close()


@contextmanager
def expunge(house: supervisor.House) -> Iterator[Portal]:
    """A client of the running API, with a key that may do all that a portal does."""
    engine = connect(house.settings.sqlalchemy_url(), pool_size=1)
    with transaction(engine) as tx:
        _, key = keymaking.create(tx, name="demo portal", scopes=list(Scope))
    engine.dispose()
    with httpx.Client(base_url=house.url, headers={"Authorization": f"Bearer {key}"}, timeout=30) as http:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            try:
                if http.get("/health/ready").json().get("working"):
                    break
            except httpx.TransportError:
                pass
            time.sleep(0.2)
        yield Portal(http)


def _train(ids: list[int], *, seed: int, label: str) -> dict[str, Tensor]:
    with _bars() as bars:
        task = bars.add_task(label, total=1.0)
        trained = recipe.train(ids, seed=seed, progress=lambda fraction: bars.update(task, completed=fraction))
    return {name: tensor.detach().clone() for name, tensor in trained.state_dict().items()}


def _outputs(weights: dict[str, Tensor], ids: list[int]) -> tuple[Tensor, Tensor]:
    module = recipe.build()
    module.load_state_dict(weights)
    inputs, targets = recipe.fetch(ids)
    with torch.no_grad():
        return module(inputs), targets


def _loss(weights: dict[str, Tensor], ids: list[int]) -> float:
    return float(recipe.loss(*_outputs(weights, ids)).mean())


def _distance(one: dict[str, Tensor], other: dict[str, Tensor], ids: list[int]) -> float:
    return float((_outputs(one, ids)[0] - _outputs(other, ids)[0]).square().mean())


def _mean(values: Any) -> float:  # Any: an iterable of floats
    listed = list(values)
    return float(sum(listed) / len(listed))


def _bars() -> Progress:
    return Progress(
        TextColumn("  {task.description}"), BarColumn(), TimeElapsedColumn(), console=console, transient=True
    )


def _seconds(stamp: str) -> float:
    return datetime.fromisoformat(stamp).timestamp()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    sys.exit(main())
