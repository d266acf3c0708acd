"""What the commands that need torch share: bars while they work, one sentence at the end, an exit code."""

from __future__ import annotations

from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from app.errors import ExpungeError, Invalid
from workers.unlearning import UnlearningError

_console = Console(stderr=True)


def run(work: Callable[[Progress], str], *, failing: str) -> int:
    """Do the work and print its sentence; exit code 1, after ``failing`` and the reason, when something is wrong."""
    try:
        with Progress(
            TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), console=_console, transient=True
        ) as bars:
            sentence = work(bars)
    except (ExpungeError, UnlearningError, OSError) as error:
        where = f"{error.field}: " if isinstance(error, Invalid) else ""
        _console.print(f"[red]{failing}[/] {where}{error}", highlight=False, soft_wrap=True)
        return 1
    _console.print(sentence, highlight=False, soft_wrap=True)
    return 0
