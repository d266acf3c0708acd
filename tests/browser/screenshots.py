"""Pictures of every page, light and dark, into docs/dashboard/: `make screenshots`, three minutes.

First the pages of an empty house and the errors that people meet, then a house with a past. They are to be looked at.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from uuid import uuid4

from PIL import Image
from rich.console import Console
from rich.progress import Progress

from app.domain.people import Role
from app.embedded import Postgres, Valkey
from app.storage.migrate import upgrade
from tests.browser import chromium, world
from tests.browser.conftest import PROCESSES, Desk, sit
from tests.dashboard import enter
from tests.house import Installation, installation
from tests.pages import OPEN_TO_ALL, paths

_COLOURS = 192
"""Pages have few; with all of them the pictures are three times as large. By coverage: a thin red line stays red."""
OUTPUT = Path(__file__).parents[2] / "docs" / "dashboard"
EMPTY = {"home-empty": "", "requests-empty": "/requests", "webhooks-empty": "/webhooks", "log-empty": "/log"}
ERRORS = {"error-not-found": f"/requests/{uuid4()}", "error-form": "/requests?state=eaten"}


def main() -> int:
    """Take all pictures; exit code 1 where there is no browser."""
    if chromium.path() is None:
        print(chromium.MISSING, file=sys.stderr)
        return 1
    OUTPUT.mkdir(exist_ok=True)
    console = Console()
    with a_house() as house, chromium.browser() as browser:
        house_is_new = enter(house, *Role, name="Mira Officer")
        for scheme in ("light", "dark"):
            take(sit(house, browser, house_is_new, color_scheme=scheme), EMPTY | ERRORS, scheme, console)
            take(sit(house, browser, None, color_scheme=scheme), OPEN_TO_ALL, scheme, console)
        house.register()
        with console.status("making a past"):
            world.build(house)
        found = paths(house.engine)
        for scheme in ("light", "dark"):
            take(sit(house, browser, house_is_new, color_scheme=scheme), found, scheme, console)
        viewer = enter(house, Role.VIEWER, name="Vera Viewer")
        take(sit(house, browser, viewer), {"error-forbidden": "/people/new"}, "light", console)
    console.print(f"{len(list(OUTPUT.glob('*.png')))} pictures in {OUTPUT}")
    return 0


@contextmanager
def a_house() -> Iterator[Installation]:
    """A running installation without model or past."""
    with tempfile.TemporaryDirectory() as home, Postgres(Path(home) / "postgres", durable=False) as server:
        upgrade(server.url.replace("postgresql://", "postgresql+psycopg://", 1))
        with (
            Valkey(Path(home) / "valkey") as valkey,
            installation(Path(home), server.url, valkey.url, processes=PROCESSES, model=False) as house,
        ):
            yield house


def take(desk: Desk, walked: Mapping[str, str], scheme: str, console: Console) -> None:
    """A picture of each page as a whole."""
    with Progress(console=console, transient=True) as bars:
        for name, path in bars.track(walked.items(), description=f"pictures, {scheme}"):
            page = desk.open(path)
            picture = Image.open(BytesIO(page.screenshot(full_page=True))).convert("RGB")
            picture.quantize(_COLOURS, Image.Quantize.MAXCOVERAGE).save(OUTPUT / f"{name}-{scheme}.png", optimize=True)
    desk.context.close()


if __name__ == "__main__":
    sys.exit(main())
