"""What every benchmark writes: rows of figures, the machine and the commit, as a table and as JSON."""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Figure:
    """One measured number and, where we promise something, whether the promise holds."""

    figure: str
    value: float | str
    target: str | None = None
    holds: bool | None = None


def write(name: str, rows: Sequence[Figure], *, path: Path | None = None, **more: object) -> None:
    """Write benchmarks/results/NAME.json, or another file, and print the table."""
    told = {"machine": machine(), "commit": commit(), "rows": [asdict(row) for row in rows], **more}
    (path or RESULTS / f"{name}.json").write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n")
    table = Table("figure", "value", "target", "holds", title=name)
    for row in rows:
        table.add_row(row.figure, str(row.value), row.target or "", {True: "yes", False: "no", None: ""}[row.holds])
    Console().print(table)


def machine() -> str:
    """Name what this ran on."""
    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    return f"{platform.machine()}, {platform.system()}, {versions}, 1 thread"


def commit() -> str:
    """Name the code that ran, with a + where the tree had changes."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()

    return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain") else "")
