"""What the documents say about the code is what the code says about itself."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import pytest

from app.api import openapi
from tests.architecture import captions
from tests.architecture.source import ROOT, Function, Module, modules

WALKS = {
    "What happens when a request arrives": "app/api/intake.py",
    "How does it forget": "workers/unlearning/",
}
MOST_FILES = 5


def test_architecture_md_lists_every_module_with_its_own_first_line() -> None:
    assert captions.found(captions.PAGE.read_text()) == captions.expected()


def test_a_stale_list_is_rewritten_and_the_rest_of_the_page_stays() -> None:
    page = f"# Ours\n\n{captions.BEGIN}\n- `app/gone.py` — An old story.\n{captions.END}\n\nThe end.\n"
    fresh = captions.rewritten(page)
    assert captions.found(fresh) == captions.expected()
    assert fresh.startswith("# Ours\n")
    assert fresh.endswith("The end.\n")
    assert captions.rewritten(fresh) == fresh


def test_a_page_without_markers_is_not_touched() -> None:
    with pytest.raises(ValueError, match="needs the two lines"):
        captions.rewritten("# Ours\n")


@pytest.mark.parametrize("module", modules(), ids=lambda module: module.path)
def test_every_public_thing_says_what_it_is(module: Module) -> None:
    assert module.caption.endswith((".", "?", ":", "`")), f"the first line is no sentence: {module.caption!r}"
    assert not [name for name, node in _public(module.tree) if not ast.get_docstring(node)]


def test_openapi_json_is_what_the_code_answers() -> None:
    assert (ROOT / "docs" / "openapi.json").read_text() == openapi.document(), "run `make openapi` and look at the diff"


@pytest.mark.parametrize(("heading", "station"), WALKS.items())
def test_the_readmes_walks_are_short_and_lead_through_files_that_exist(heading: str, station: str) -> None:
    files = _numbered_files((ROOT / "README.md").read_text(), heading)
    assert 1 <= len(files) <= MOST_FILES
    assert len(set(files)) == len(files)
    assert not [path for path in files if not (ROOT / path).is_file()]
    assert any(path.startswith(station) for path in files)


def test_a_walk_is_read_from_its_heading_to_the_next() -> None:
    page = "## How does it forget?\n1. [`a.py`](a.py) first\n2. `b.py`: then\n\nNot `c.py`.\n## Next\n1. `d.py`\n"
    assert _numbered_files(page, "How does it forget") == ["a.py", "b.py"]


def test_every_decision_has_its_sections_and_fits_a_page() -> None:
    records = sorted((ROOT / "docs" / "adr").glob("[0-9]*.md"))
    assert [record.name[:4] for record in records] == [f"{number:04}" for number in range(len(records))]
    for record in records:
        text = record.read_text()
        assert re.findall(r"^## (.+)$", text, re.MULTILINE) == [
            "Context",
            "Decision",
            "Consequences",
            "Alternatives",
            "Evidence",
        ], record.name
        assert len(text.splitlines()) <= 60, f"{record.name} is longer than a page"


def test_documents_link_only_to_files_that_exist() -> None:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    dead = [
        (page.name, link) for page in pages for link in _links(page.read_text()) if not (page.parent / link).exists()
    ]
    assert not dead


def _public(tree: ast.AST, prefix: str = "") -> Iterator[tuple[str, ast.ClassDef | Function]]:
    """Public classes and functions, and public methods of public classes."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ClassDef | Function) and not node.name.startswith("_"):
            yield f"{prefix}{node.name}", node
            if isinstance(node, ast.ClassDef):
                yield from _public(node, f"{node.name}.")


def _numbered_files(page: str, heading: str) -> list[str]:
    """The first file of each numbered line under a heading, in order."""
    section = re.search(rf"^#+ {re.escape(heading)}\b[^\n]*\n(.*?)(?=^#|\Z)", page, re.MULTILINE | re.DOTALL)
    assert section, f"README.md has no heading {heading!r}"
    lines = re.findall(r"^\d+\. .*$", section[1], re.MULTILINE)
    return [match[1] for line in lines if (match := re.search(r"`([\w./-]+\.\w+)`", line))]


def _links(page: str) -> list[str]:
    targets = re.findall(r"\]\(([^)\s#]+)", page)
    return [target for target in targets if not re.match(r"\w+:", target)]
