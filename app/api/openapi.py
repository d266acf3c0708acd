"""The OpenAPI document, as a file that reviewers see change: `make openapi`."""

from __future__ import annotations

import json

from app.main import create_app


def document() -> str:
    """The OpenAPI JSON of this code, in a stable form."""
    return json.dumps(create_app().openapi(), indent=1, sort_keys=True, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    print(document(), end="")
