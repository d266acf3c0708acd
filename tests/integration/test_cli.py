"""The command line as engineers meet it: bad input is one sentence, exit code 1, and nothing is imported."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from sqlalchemy import func, select
from torch import Tensor

from app.storage.sessions import transaction
from app.storage.tables import Manifest, ModelVersion
from tests import command_line, toy
from tests.faults import wait_until
from tests.house import Installation, installation

pytestmark = pytest.mark.slow
CANARY = toy.user_id(0)


@pytest.fixture(scope="module")
def house(front_door: Installation) -> Iterator[Installation]:
    """The front door's installation; nothing is registered there unless a test succeeds where it must not."""
    return front_door


def weights(path: Path, tensor: Tensor) -> Path:
    save_file({"weight": tensor}, path)
    return path


def good_weights(path: Path) -> Path:
    return weights(path / "w.safetensors", toy.solved(range(10)))


def pickle_file(path: Path) -> Path:
    torch.save({"weight": toy.solved(range(10))}, path / "w.pt")
    return path / "w.pt"


def disguised_pickle(path: Path) -> Path:
    torch.save({"weight": toy.solved(range(10))}, path / "w.safetensors")
    return path / "w.safetensors"


def nan_weights(path: Path) -> Path:
    return weights(path / "w.safetensors", toy.solved(range(10)) * float("nan"))


def wrong_shape(path: Path) -> Path:
    return weights(path / "w.safetensors", torch.zeros(2, 3, dtype=torch.float64))


def manifest(text: str) -> Callable[[Path], Path]:
    def write(path: Path) -> Path:
        (path / "m.csv").write_text(text)
        return path / "m.csv"

    return write


def one_bad_line_in_a_million(path: Path) -> Path:
    lines = [f"{i},u{i}" for i in range(1_000_000)]
    lines[777_775] = f"not-a-number,{CANARY}"
    (path / "m.csv").write_text("\n".join(["sample_id,user_id", *lines]) + "\n")
    return path / "m.csv"


GOOD = manifest(f"sample_id,user_id\n0,{CANARY}\n1,{CANARY}\n")


def registration(house: Installation, recipe: str, weights: Path, manifest: Path) -> subprocess.CompletedProcess[str]:
    """The process that `expunge models register` hands its arguments to."""
    words = ("toy", "--recipe", recipe, "--weights", str(weights), "--manifest", str(manifest))
    return command_line.run("workers.register", *words, environment=house.environment)


@pytest.mark.parametrize(
    ("make_weights", "make_manifest", "told"),
    [
        (pickle_file, GOOD, "pickle"),
        (disguised_pickle, GOOD, "pickle"),
        (nan_weights, GOOD, "NaN"),
        (wrong_shape, GOOD, "shape"),
        (good_weights, manifest(f"sample,user_id\n0,{CANARY}\n"), "sample_id"),
        (good_weights, manifest(f"sample_id,user_id\n0,{CANARY}\n0,{CANARY}\n"), "sample 0"),
        (good_weights, manifest(f"sample_id,user_id\n0,{CANARY}\nx,{CANARY}\n"), "line 3"),
        (good_weights, manifest(f"sample_id,user_id,split\n0,{CANARY},trian\n"), "line 2"),
        (good_weights, manifest(""), "empty"),
        (good_weights, manifest("sample_id,user_id\n"), "no training samples"),
        (good_weights, one_bad_line_in_a_million, "line 777777"),
    ],
)
def test_a_broken_registration_is_one_sentence_and_imports_nothing(
    house: Installation,
    tmp_path: Path,
    make_weights: Callable[[Path], Path],
    make_manifest: Callable[[Path], Path],
    told: str,
) -> None:
    done = registration(house, toy.REFERENCE, make_weights(tmp_path), make_manifest(tmp_path))
    assert done.returncode == 1
    assert told in done.stderr, done.stderr
    assert "Traceback" not in done.stderr
    assert CANARY not in done.stdout + done.stderr
    with transaction(house.engine) as tx:
        assert tx.scalar(select(func.count()).select_from(Manifest)) == 0
        assert tx.scalar(select(func.count()).select_from(ModelVersion)) == 0


@pytest.mark.parametrize("reference", ["nowhere:recipe", "tests.toy:nothing", "tests.toy", "json:dumps"])
def test_a_recipe_that_is_not_there_is_named(house: Installation, tmp_path: Path, reference: str) -> None:
    done = registration(house, reference, good_weights(tmp_path), GOOD(tmp_path))
    assert done.returncode == 1
    assert reference.split(":", maxsplit=1)[0] in done.stderr
    assert "Traceback" not in done.stderr


def test_the_command_says_what_the_process_with_torch_says_and_ends_alike(house: Installation, tmp_path: Path) -> None:
    files = ["--weights", str(pickle_file(tmp_path)), "--manifest", str(GOOD(tmp_path))]
    done = house.cli("models", "register", "toy", "--recipe", toy.REFERENCE, *files)
    alone = registration(house, toy.REFERENCE, pickle_file(tmp_path), GOOD(tmp_path))
    assert (done.returncode, done.stdout, done.stderr) == (1, alone.stdout, alone.stderr)
    assert "pickle" in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("models", "show", "nobody"),
        ("models", "rollback", "nobody", "--to", "1"),
        ("requests", "show", "00000000-0000-0000-0000-000000000000"),
        ("requests", "cancel", "00000000-0000-0000-0000-000000000000"),
        ("requests", "retry", "00000000-0000-0000-0000-000000000000"),
        ("requests", "certificate", "00000000-0000-0000-0000-000000000000"),
        ("keys", "revoke", "00000000-0000-0000-0000-000000000000"),
        ("worker", "--queues", "nothing"),
    ],
)
def test_what_is_not_there_is_one_sentence(house: Installation, arguments: tuple[str, ...]) -> None:
    done = house.cli(*arguments)
    assert done.returncode == 1
    assert done.stderr.startswith("error ")
    assert "Traceback" not in done.stderr


def test_a_request_made_by_hand_takes_the_user_id_from_stdin(house: Installation) -> None:
    made = house.cli("requests", "create", stdin=f"{CANARY}\n")
    assert made.returncode == 0, made.stderr
    request_id = made.stdout.split()[0]
    listed = house.cli("requests", "list")
    shown = house.cli("requests", "show", request_id)
    assert request_id[:8] in listed.stdout
    assert "request.received" in shown.stdout
    assert house.cli("requests", "cancel", request_id).returncode == 0
    assert CANARY not in made.stdout + made.stderr + listed.stdout + shown.stdout


def test_doctor_says_what_is_missing_and_what_to_do(house: Installation) -> None:
    done = house.cli("doctor")
    assert done.returncode == 1
    assert "ok   database" in done.stdout
    assert "ok   schema" in done.stdout
    assert "bad  queue unlearn: nobody listens; run `expunge worker --queues unlearn`" in done.stdout
    assert "bad  broker: set REDIS_URL" in done.stdout
    assert "bad  models: none registered" in done.stdout


def test_doctor_is_content_with_a_whole_house(database_url: str, valkey_server: str, tmp_path: Path) -> None:

    processes = ("dispatch", "worker-io", "worker-unlearn")
    with installation(tmp_path, database_url, valkey_server, processes=processes) as house:
        wait_until(lambda: house.cli("doctor").returncode == 0, 60, "doctor finds nothing wrong")


def test_without_settings_each_command_names_what_to_set(tmp_path: Path) -> None:

    bare = {"PATH": "/usr/bin:/bin", "EXPUNGE_HOME": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-m", "app.cli", "models", "list"], env=bare, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "DATABASE_URL must be set" in done.stderr
