"""The list of modules in docs/architecture.md: one line each, the first line of its docstring.

python -m tests.architecture.captions            print it
python -m tests.architecture.captions --write    rewrite it between the two markers
"""

from __future__ import annotations

import re
import sys

from tests.architecture.source import ROOT, modules

PAGE = ROOT / "docs" / "architecture.md"
BEGIN = "<!-- captions: python -m tests.architecture.captions --write -->"
END = "<!-- /captions -->"
_LINE = re.compile(r"^(?:- )?`((?:app|workers|verifier)/[^`]+\.py)` — (.*)$", re.MULTILINE)


def expected() -> dict[str, str]:
    """Path → caption, as the tree says."""
    return {module.path: module.caption for module in modules()}


def found(page: str) -> dict[str, str]:
    """Path → caption, as a page says."""
    return dict(_LINE.findall(page))


def section() -> str:
    """The list in Markdown."""
    return "".join(f"- `{path}` — {caption}\n" for path, caption in expected().items())


def rewritten(page: str) -> str:
    """A page with the list between its markers brought up to date.

    Raises:
        ValueError: The page has no markers.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{PAGE.name} needs the two lines {BEGIN} and {END}")
    return f"{before}{begin}\n{section()}{end}{after}"


if __name__ == "__main__":
    if sys.argv[1:] == ["--write"]:
        PAGE.write_text(rewritten(PAGE.read_text()))
    else:
        print(section(), end="")
