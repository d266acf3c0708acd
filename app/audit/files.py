"""Writing a file beside and putting it in place: a crash leaves the old one or the new one, whole."""

from __future__ import annotations

import os
from pathlib import Path


def replace(file: Path, content: bytes) -> None:
    """Put ``content`` where ``file`` is, by way of ``file.new`` beside it; the content is on disk when this returns."""
    beside = file.with_name(file.name + ".new")
    with beside.open("wb") as opened:
        opened.write(content)
        opened.flush()
        os.fsync(opened.fileno())
    beside.replace(file)
