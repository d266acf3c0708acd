"""docker-compose.yml as Compose reads it: YAML, then the variables."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docker-compose.yml").read_text()
Tree = Any  # Any: what YAML holds

_VARIABLE = re.compile(r"\$(?:(?P<dollar>\$)|\{(?P<name>\w+)(?::(?P<kind>[-?+])(?P<rest>[^}]*))?\})")


class VariableMissing(Exception):
    """A required variable is not set; the sentence is the file's own."""


def services(variables: Mapping[str, str]) -> dict[str, Tree]:
    """The services with all variables filled in.

    Raises:
        VariableMissing: One of the required variables is not among ``variables``.
    """
    filled: dict[str, Tree] = _filled(yaml.safe_load(TEXT), variables)["services"]
    return filled


def required() -> dict[str, str]:
    """Variables without which Compose refuses to start, and what it says then."""
    return {match["name"]: match["rest"] for match in _VARIABLE.finditer(TEXT) if match["kind"] == "?"}


def defaulted() -> dict[str, str]:
    """Variables that have a default."""
    return {match["name"]: match["rest"] for match in _VARIABLE.finditer(TEXT) if match["kind"] == "-"}


def _filled(tree: Tree, variables: Mapping[str, str]) -> Tree:
    if isinstance(tree, str):
        return _VARIABLE.sub(lambda match: _value(match, variables), tree)
    if isinstance(tree, dict):
        return {key: _filled(value, variables) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_filled(value, variables) for value in tree]
    return tree


def _value(match: re.Match[str], variables: Mapping[str, str]) -> str:
    if match["dollar"]:
        return "$"
    if given := variables.get(match["name"]):
        return match["rest"] if match["kind"] == "+" else given
    if match["kind"] == "+":
        return ""
    if match["kind"] == "-":
        return match["rest"]
    raise VariableMissing(match["rest"] or match["name"])
