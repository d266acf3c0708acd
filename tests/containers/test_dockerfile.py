"""The Dockerfile copies what exists, keeps torch out of the API's image and runs as nobody special."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from importlib.metadata import distribution, packages_distributions

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from tests.containers import dockerfile

PROJECT = tomllib.loads((dockerfile.ROOT / "pyproject.toml").read_text())
IMAGES = ("api", "worker")
both_images = pytest.mark.parametrize("image", IMAGES)


def test_the_stages_are_one_base_and_two_images() -> None:
    parents = {name: stage.parent for name, stage in dockerfile.stages().items()}
    assert [*parents] == ["base", "api", "worker"]
    assert parents["api"] == parents["worker"] == "base"


def test_the_base_has_the_python_that_the_project_and_its_makefile_name() -> None:
    version = re.fullmatch(r"python:(\d+\.\d+)-slim-bookworm", dockerfile.stages()["base"].parent)
    assert version
    assert version[1] in SpecifierSet(PROJECT["project"]["requires-python"])
    assert f"python{version[1]}" in (dockerfile.ROOT / "Makefile").read_text()


@both_images
def test_everything_copied_exists_and_reaches_the_builder(image: str) -> None:
    for source in dockerfile.copied(image):
        assert (dockerfile.ROOT / source).exists(), source
        assert dockerfile.reaches_the_builder(source), source


@pytest.mark.parametrize(
    "path", [".env", ".expunge/keys.env", ".git/config", ".venv/bin/python", "tests/house.py", "app/__pycache__/x.pyc"]
)
def test_secrets_state_and_tests_never_reach_the_builder(path: str) -> None:
    assert not dockerfile.reaches_the_builder(path)


@both_images
def test_an_image_holds_every_package_of_the_project_and_no_other_code(image: str) -> None:
    patterns = PROJECT["tool"]["setuptools"]["packages"]["find"]["include"]
    folders = {source for source in dockerfile.copied(image) if (dockerfile.ROOT / source).is_dir()}
    roots = {"expunge_verify": "verifier"}  # a distribution of its own lives in a folder of its own
    assert folders == {roots.get(name, name) for name in (pattern.rstrip("*") for pattern in patterns)}


def test_the_files_that_the_build_reads_are_copied_before_it() -> None:
    project = PROJECT["project"]
    first = dockerfile.stages()["base"].all("COPY")[0].split()
    assert {project["readme"], *project["license-files"], "pyproject.toml", "constraints.txt"} <= set(first)


def test_the_api_image_installs_neither_torch_nor_celery() -> None:
    assert dockerfile.installs("api")
    for command in dockerfile.installs("api"):
        assert not re.search(r"torch|celery|\[|--extra", command, re.IGNORECASE), command


def test_the_worker_image_installs_torch_first_and_alone() -> None:
    base, torch, extra, source = dockerfile.installs("worker")
    assert "TORCH_SPEC" in torch
    assert "-c constraints.txt" in extra
    assert ".[worker]" in extra
    assert "--no-deps" in source
    assert base in dockerfile.installs("api")


def test_torch_is_the_one_that_make_installs() -> None:
    default = dict(rest.split("=", 1) for rest in dockerfile.stages()["worker"].all("ARG"))["TORCH_SPEC"]
    assert f'"{default}"' in (dockerfile.ROOT / "Makefile").read_text()


@both_images
def test_every_resolution_is_constrained(image: str) -> None:
    for command in dockerfile.installs(image):
        assert any(word in command for word in ("-c constraints.txt", "--no-deps", "TORCH_SPEC")), command


@both_images
def test_an_image_runs_as_an_account_with_an_entry_and_a_number_that_is_not_roots(image: str) -> None:
    account = dockerfile.last(image, "USER")
    made = re.search(rf"useradd --uid (\d+) .* {account}\b", " ".join(dockerfile.stages()["base"].all("RUN")))
    assert made
    assert int(made[1]) >= 1000


@both_images
def test_no_secret_is_baked_in(image: str) -> None:
    names = [*dockerfile.environment(image), *(rest for stage in dockerfile.line(image) for rest in stage.all("ARG"))]
    assert not [name for name in names if re.search("KEY|PASSWORD|SECRET|TOKEN|DATABASE_URL|REDIS_URL", name)]


@both_images
def test_the_entry_point_is_a_command_that_the_project_installs(image: str) -> None:
    [command] = dockerfile.words(image, "ENTRYPOINT")
    assert command in PROJECT["project"]["scripts"]


@pytest.mark.slow
def test_the_base_dependencies_alone_import_the_api() -> None:
    hidden = _owners_other_than(_installed_with(PROJECT["project"]["dependencies"]) | {"expunge"})
    assert {"torch", "celery", "kombu", "numpy"} <= hidden
    _run_without(hidden, "import app.main, app.cli, app.storage.migrate; app.main.create_app()")


def test_a_hidden_dependency_would_be_noticed() -> None:
    with pytest.raises(subprocess.CalledProcessError):
        _run_without({"fastapi"}, "import app.main")


def _owners_other_than(distributions: set[str]) -> set[str]:
    """Top-level modules that none of these distributions brings."""
    return {
        module
        for module, owners in packages_distributions().items()
        if not {canonicalize_name(owner) for owner in owners} & distributions
    }


def _run_without(hidden: set[str], statement: str) -> None:
    """Run a statement in a Python that has these modules no more, as an image without them."""
    code = f"""import sys
class Hide:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {sorted(hidden)!r}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Hide())
{statement}"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=dockerfile.ROOT, capture_output=True)


def _installed_with(lines: list[str]) -> set[str]:
    """The distributions that pip would install for these requirements here, extras and all."""
    seen: set[tuple[str, str]] = set()
    waiting = [(Requirement(line), "") for line in lines]
    while waiting:
        requirement, extra = waiting.pop()
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        name = canonicalize_name(requirement.name)
        for wanted in {"", *requirement.extras}:
            if (name, wanted) not in seen:
                seen.add((name, wanted))
                waiting += [(Requirement(line), wanted) for line in distribution(name).requires or []]
    return {name for name, _ in seen}
