"""What docs/webhooks.md tells receivers to copy works on our messages, and on no others."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from app.domain import webhook

MANUAL = (Path(__file__).parents[2] / "docs" / "webhooks.md").read_text(encoding="utf-8")
SECRET, OTHER = webhook.new_secret(bytes(range(32))), webhook.new_secret(bytes(range(50, 82)))
KEY, OTHER_KEY = (Ed25519PrivateKey.from_private_bytes(bytes([seed] * 32)) for seed in (1, 2))
BODY = '{"data":{"id":"7","note":"Zoë"},"type":"erasure_request.completed"}'.encode()
Check = Callable[[Mapping[str, str], bytes], bool]


def block(language: str) -> str:
    """The manual's code in a language."""
    found = re.findall(rf"^```{language}\n(.*?)^```$", MANUAL, re.MULTILINE | re.DOTALL)
    assert len(found) == 1
    return found[0]


def message(age_seconds: int = 0) -> dict[str, str]:
    """Signed by both schemes, with the old secret and key still beside the new ones."""
    return webhook.headers(
        [OTHER, SECRET],
        "msg_1",
        timestamp_seconds=int(time.time()) - age_seconds,
        body=BODY,
        signers=[OTHER_KEY.sign, KEY.sign],
    )


def public(key: Ed25519PrivateKey) -> str:
    return webhook.public_key(key.public_key().public_bytes_raw())


def in_python(_: Path) -> Check:
    names: dict[str, Any] = {}
    exec(block("python"), names)
    return lambda headers, body: names["verify"](SECRET, headers, body)


def in_node(folder: Path) -> Check:
    if shutil.which("node") is None:
        pytest.skip("node is not installed")
    script = folder / "verify.js"
    ask = "const m = JSON.parse(require('node:fs').readFileSync(0));"
    ask += "console.log(verify(m.key, m.headers, Buffer.from(m.body, 'base64')));"
    script.write_text(block("js") + ask)

    def check(headers: Mapping[str, str], body: bytes) -> bool:
        asked = {"key": public(KEY), "headers": dict(headers), "body": base64.b64encode(body).decode()}
        done = subprocess.run(["node", script], input=json.dumps(asked), capture_output=True, text=True, check=True)
        return done.stdout.strip() == "true"

    return check


def with_openssl(folder: Path) -> Check:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")

    def check(headers: Mapping[str, str], body: bytes) -> bool:
        (folder / "body").write_bytes(body)
        signature = [s for s in headers["webhook-signature"].split(" ") if s.startswith("v1a,")][-1]
        environment = {
            "ID": headers["webhook-id"],
            "TIMESTAMP": headers["webhook-timestamp"],
            "SIGNATURE": signature.removeprefix("v1a,"),
            "KEY": public(KEY),
            "PATH": "/usr/bin:/bin",
        }
        done = subprocess.run(["sh", "-c", block("sh")], cwd=folder, env=environment, capture_output=True, check=False)
        return done.returncode == 0

    return check


RECIPES = [in_python, in_node, with_openssl]


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_manuals_receiver_accepts_ours(recipe: Callable[[Path], Check], tmp_path: Path) -> None:
    assert recipe(tmp_path)(message(), BODY)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize(
    "alter",
    [
        lambda headers, body: (headers, body.replace(b"7", b"8")),
        lambda headers, body: (headers, json.dumps(json.loads(body)).encode()),
        lambda headers, body: (headers | {"webhook-id": "msg_2"}, body),
        lambda headers, body: (headers | {"webhook-timestamp": str(int(headers["webhook-timestamp"]) + 1)}, body),
        lambda headers, body: (
            headers | {"webhook-signature": " ".join(headers["webhook-signature"].split()[::2])},
            body,
        ),
    ],
    ids=["another body", "the same JSON written again", "another id", "another time", "another key"],
)
def test_the_manuals_receiver_refuses_what_was_altered(
    recipe: Callable[[Path], Check], tmp_path: Path, alter: Callable[..., Any]
) -> None:
    assert not recipe(tmp_path)(*alter(message(), BODY))


@pytest.mark.parametrize("recipe", [in_python, in_node])  # openssl knows no time
@pytest.mark.parametrize("age_seconds", [330, -330])
def test_the_manuals_receiver_refuses_what_is_stale(
    recipe: Callable[[Path], Check], tmp_path: Path, age_seconds: int
) -> None:
    assert not recipe(tmp_path)(message(age_seconds), BODY)


def test_the_manual_names_every_event_and_the_schedule_as_it_is() -> None:
    for event in webhook.EVENTS:
        assert f"`{event.removeprefix('erasure_request.')}`" in MANUAL
    units = {"s": 1, "min": 60, "h": 3600}
    row = next(line for line in MANUAL.splitlines() if line.startswith("| after a pause of"))
    told = [cell.strip() for cell in row.split("|")[3:-1]]
    pauses = [int(cell.split()[0]) * units[cell.split()[1]] for cell in told]
    assert pauses == [pause.total_seconds() for pause in webhook.SCHEDULE[1:]]
