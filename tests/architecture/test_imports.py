"""The torch line at run time: what each entry point really loads, dynamic and third-party imports included.

The static half of these rules is `[tool.importlinter]` in pyproject.toml; `lint-imports` in `make check`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.architecture.source import ROOT, Module, modules

QUEUE = {"celery", "kombu", "redis", "billiard"}
TORCH = {"torch", "numpy", "safetensors", "pyarrow"}
SERVICE = {"app", "sqlalchemy", "psycopg", "pydantic", "fastapi", "celery", "redis"}


@pytest.mark.parametrize(
    ("entry", "strangers"),
    [
        ("app.main", QUEUE | TORCH | {"workers"}),
        ("app.cli", QUEUE | TORCH | {"workers"}),
        ("app.storage.migrate", QUEUE | TORCH | {"workers", "fastapi"}),
        ("workers.dispatch", TORCH),
        ("workers.tasks", TORCH),
        pytest.param("workers.step", QUEUE | {"sqlalchemy", "psycopg", "fastapi"}, marks=pytest.mark.slow),
        pytest.param("workers.unlearning", SERVICE, marks=pytest.mark.slow),
    ],
)
@pytest.mark.slow  # five interpreters; lint-imports says the same of the source
def test_an_entry_point_loads_only_its_side_of_the_line(entry: str, strangers: set[str]) -> None:
    loaded = _loaded_by(entry)
    assert entry.partition(".")[0] in loaded
    assert not loaded & strangers


def test_the_engine_imports_torch_safetensors_the_plotter_and_itself() -> None:
    for module in _under("workers/unlearning/"):
        assert module.imports() <= sys.stdlib_module_names | {"torch", "safetensors", "matplotlib"}, module.path


@pytest.mark.slow
def test_the_engine_may_be_carried_off_under_another_name(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").symlink_to(ROOT / "workers" / "unlearning")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    code = "import elsewhere, sys; sys.exit(any(name.startswith(('workers', 'app.')) for name in sys.modules))"
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, cwd=tmp_path)


@pytest.mark.parametrize("module", [m for m in modules() if m.path.startswith("app/domain/")], ids=lambda m: m.path)
def test_the_domain_imports_the_standard_library_itself_and_our_errors(module: Module) -> None:
    assert module.imports() <= sys.stdlib_module_names | {"app"}


def test_domain_storage_and_api_never_look_at_the_environment() -> None:
    pure = [module for folder in ("domain", "storage", "api") for module in _under(f"app/{folder}/")]
    assert pure
    for module in pure:
        assert "environ" not in (ROOT / module.path).read_text(), module.path


def _under(folder: str) -> list[Module]:
    return [module for module in modules() if module.path.startswith(folder)]


def _loaded_by(entry: str) -> set[str]:
    code = f"import {entry}, sys; print(*{{name.partition('.')[0] for name in sys.modules}})"
    environment = {**os.environ, "REDIS_URL": "redis://127.0.0.1:1/0", "DATABASE_URL": "postgresql://127.0.0.1:1/x"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())
