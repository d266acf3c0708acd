"""Our own code as syntax trees."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("app", "workers", "verifier")
Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Module:
    """One file: its path from the top of the repository, and its tree."""

    path: str
    tree: ast.Module

    @property
    def caption(self) -> str:
        """The first line of its docstring, empty if it has none."""
        return (ast.get_docstring(self.tree) or "").partition("\n")[0]

    def functions(self) -> Iterator[Function]:
        """Every function, those inside of classes and functions too."""
        return (node for node in ast.walk(self.tree) if isinstance(node, Function))

    def imports(self) -> set[str]:
        """Top-level names of what it imports, also inside functions; relative imports are its own package's."""
        names = [name.name for node in ast.walk(self.tree) if isinstance(node, ast.Import) for name in node.names]
        names += [n.module or "" for n in ast.walk(self.tree) if isinstance(n, ast.ImportFrom) and not n.level]
        return {name.partition(".")[0] for name in names}


@cache
def modules() -> tuple[Module, ...]:
    """All modules of app/ and workers/, by path."""
    paths = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
    return tuple(Module(path.relative_to(ROOT).as_posix(), ast.parse(path.read_text())) for path in paths)


def length(function: Function) -> int:
    """Lines from ``def`` to the end, without decorators and without the docstring."""
    lines = (function.end_lineno or function.lineno) - function.lineno + 1
    if ast.get_docstring(function) is None:
        return lines
    docstring = function.body[0]
    return lines - ((docstring.end_lineno or docstring.lineno) - docstring.lineno + 1)
