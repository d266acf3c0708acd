"""Words that must not stand in the repository: promises nobody can keep, and places that only one machine has."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.architecture.source import ROOT

HERE = Path(__file__).relative_to(ROOT).as_posix()
FORBIDDEN = {
    "a promise that no test can keep": re.compile(r"unrecoverable|gdpr[- ]compliant deletion", re.IGNORECASE),
    "a package registry's host": re.compile(r"\bpypi\.org|pythonhosted\.org|download\.pytorch\.org|npmjs\.(?:org|com)"),
    "a path of one machine": re.compile(
        r"(?<![\w.])/(?:work|root|opt/pypi)/|\.\./shared/|\bshared/(?:design|research)/"
    ),
}


@pytest.mark.parametrize("what", FORBIDDEN)
def test_the_repository_is_free_of(what: str) -> None:
    found = [(path, line) for path in _files() for line in _lines_with(FORBIDDEN[what], ROOT / path)]
    assert not found


@pytest.mark.parametrize(
    ("what", "text"),
    [
        ("a promise that no test can keep", "The data is Unrecoverable now."),
        ("a promise that no test can keep", "offers GDPR-compliant deletion"),
        ("a package registry's host", "pip install -i https://pypi.org/simple"),
        ("a path of one machine", "see /work/shared for more"),
        ("a path of one machine", 'open("/root/.cache")'),
    ],
)
def test_such_words_are_noticed(what: str, text: str, tmp_path: Path) -> None:
    (tmp_path / "page").write_text(f"first\n{text}\n")
    assert len(_lines_with(FORBIDDEN[what], tmp_path / "page")) == 1


@pytest.mark.parametrize("text", ["the workers/ folder", "frameworks/work/", "at the root / of it", "coworking"])
def test_ordinary_words_are_not(text: str, tmp_path: Path) -> None:
    (tmp_path / "page").write_text(text)
    assert not _lines_with(FORBIDDEN["a path of one machine"], tmp_path / "page")


def _files() -> list[str]:
    """What git tracks, or would on the next `git add`."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    return [path for path in listed if path and path != HERE and (ROOT / path).is_file()]


def _lines_with(pattern: re.Pattern[str], path: Path) -> list[str]:
    try:
        lines = path.read_text().splitlines()
    except UnicodeDecodeError:
        return []  # weights, images
    return [f"{number}: {line.strip()[:120]}" for number, line in enumerate(lines, 1) if pattern.search(line)]
