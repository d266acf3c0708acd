"""The verdict on a version as a page that a data protection officer can read: `expunge models page`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.console import Console

from app.errors import ExpungeError, NotFound
from app.storage import versions
from app.storage.sessions import transaction
from workers.context import Context, context
from workers.unlearning.verification.page import page

_console = Console(stderr=True)


def main(arguments: list[str]) -> int:
    """Parse the command line and write the page; exit code 1 when there is no such version or no verdict on it."""
    parser = argparse.ArgumentParser(prog="expunge models page")
    parser.add_argument("name")
    parser.add_argument("--number", type=int, required=True)
    parser.add_argument("--output", type=Path, required=True)
    chosen = parser.parse_args(arguments)
    try:
        chosen.output.write_text(written(context(), name=chosen.name, number=chosen.number), encoding="utf-8")
    except (ExpungeError, OSError) as error:
        _console.print(f"[red]not written[/] {error}", highlight=False, soft_wrap=True)
        return 1
    _console.print(f"wrote {chosen.output}", highlight=False, soft_wrap=True)
    return 0


def written(ctx: Context, *, name: str, number: int) -> str:
    """Return the page on a version of a model.

    Raises:
        NotFound: No such model or version, or a version that no deletion made.
    """
    with transaction(ctx.engine) as tx:
        found = {v.number: v for v in versions.versions(tx, versions.model(tx, name).id)}
        if number not in found:
            raise NotFound(f"{name} has no version {number}; it has {min(found)} to {max(found)}")
        report = found[number].report or {}
    if "verdict" not in report:
        raise NotFound(f"{name} version {number} was registered, not made by a deletion: there is no verdict on it")
    return page(report["verdict"], report["update"], f"{name}, version {number}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
