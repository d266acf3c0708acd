"""The verdict on a version as a page that a data protection officer can read: `expunge models page`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from app.errors import NotFound
from app.storage import versions
from app.storage.sessions import transaction
from workers import command
from workers.context import Context, context
from workers.unlearning.verification.page import page


def main(arguments: list[str]) -> int:
    """Parse the command line and write the page; exit code 1 when there is no such version or no verdict on it."""
    parser = argparse.ArgumentParser(prog="expunge models page")
    parser.add_argument("name")
    parser.add_argument("--number", type=int, required=True)
    parser.add_argument("--output", type=Path, required=True)
    chosen = parser.parse_args(arguments)
    return command.run(lambda _: write(context(), **vars(chosen)), failing="not written")


def write(ctx: Context, *, name: str, number: int, output: Path) -> str:
    """Write the page on a version of a model; returns a sentence about it.

    Raises:
        NotFound: No such model or version, or a version that no deletion made.
        OSError: ``output`` can't be written.
    """
    with transaction(ctx.engine) as tx:
        found = {v.number: v for v in versions.versions(tx, versions.model(tx, name).id)}
        if number not in found:
            raise NotFound(f"{name} has no version {number}; it has {min(found)} to {max(found)}")
        report = found[number].report or {}
    if "verdict" not in report:
        raise NotFound(f"{name} version {number} was registered, not made by a deletion: there is no verdict on it")
    output.write_text(page(report["verdict"], report["update"], f"{name}, version {number}"), encoding="utf-8")
    return f"wrote {output}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
