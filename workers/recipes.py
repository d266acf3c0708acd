"""Which code belongs to which model: the operator's list, never the database.

Whoever can write to PostgreSQL must not thereby choose what a worker imports. The list is a TOML file on the worker:

    [recipes]
    "wages" = "acme.wages:Recipe"

The attribute may be a recipe, or a class or function that returns one when it is called without arguments.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import shutil
import tomllib
from pathlib import Path
from typing import Final, cast

from app.errors import Misconfigured
from workers.unlearning.model import Recipe

_METHODS: Final = ("build", "fetch", "loss")
_OPTIONAL_METHODS: Final = ("train", "moves")
_NUMBERS: Final = ("l2_per_sample", "l2_total")
_PACE: Final = ("lr", "batch_size", "epochs")
_LAWS: Final = ("softmax", "plain")
_HEADER: Final = "[recipes]"


def load(path: Path, model_name: str) -> Recipe:
    """Import the recipe that the list names for a model.

    Raises:
        Misconfigured: Names the file, and what is missing: the model, the module, the attribute or a part of a recipe.
    """
    listed = _read(path)
    if model_name not in listed:
        raise Misconfigured(
            f'{path} names no recipe for {model_name!r}: add a line "{model_name}" = "package.module:name"'
        )
    return resolve(listed[model_name], where=f"{path}, recipe of {model_name!r}")


def resolve(reference: str, *, where: str = "recipe") -> Recipe:
    """Import the recipe that ``package.module:name`` stands for; ``where`` begins the sentence of an error.

    Raises:
        Misconfigured: The module, the attribute or a part of a recipe is missing.
    """
    recipe = _call_if_needed(_find(reference, where), f"{where}: {reference}")
    _check(recipe, f"{where}: {reference}")
    return cast("Recipe", recipe)


def remember(path: Path, model_name: str, reference: str) -> None:
    """Write which recipe a model has; the other lines stay as the operator wrote them.

    The file is replaced in one step. Two writers at once may lose one of the two lines: it is a person's command.

    Raises:
        Misconfigured: ``reference`` has another form, or the file's is too free to be edited without a person.
    """
    _split(reference, f"recipe of {model_name!r}")
    listed = _read(path) if path.exists() else {}
    line = f"{_quoted(model_name)} = {_quoted(reference)}"
    text = _edited(path.read_text(encoding="utf-8") if path.exists() else "", model_name, line)
    if _parsed(text) != {**listed, model_name: reference}:
        raise Misconfigured(f"{path} can't be edited safely: put this line under {_HEADER} yourself: {line}")
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fresh.write_text(text, encoding="utf-8")
    if path.exists():
        shutil.copymode(path, fresh)
    fresh.replace(path)


def _read(path: Path) -> dict[str, str]:
    try:
        listed = _parsed(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise Misconfigured(f"the list of recipes {path} can't be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise Misconfigured(f"the list of recipes {path} is not UTF-8") from None
    if listed is None:
        raise Misconfigured(f'{path} must be TOML with a table {_HEADER} of lines "model" = "package.module:name"')
    return listed


def _parsed(text: str) -> dict[str, str] | None:
    try:
        table = tomllib.loads(text).get("recipes", {})
    except tomllib.TOMLDecodeError:
        return None
    sound = isinstance(table, dict) and all(isinstance(reference, str) for reference in table.values())
    return cast("dict[str, str]", table) if sound else None


def _edited(text: str, model_name: str, line: str) -> str:
    lines = text.removesuffix("\n").split("\n") if text else []
    for number, old in enumerate(lines):
        if model_name in (_parsed(f"{_HEADER}\n{old}") or {}):
            lines[number] = line
            break
    else:
        if _HEADER not in map(str.strip, lines):
            lines.append(_HEADER)
        lines.insert([*map(str.strip, lines)].index(_HEADER) + 1, line)
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")  # TOML's basic strings, but for DEL


def _split(reference: str, where: str) -> tuple[str, str]:
    module, colon, attribute = reference.partition(":")
    if not colon or not attribute.isidentifier() or not all(part.isidentifier() for part in module.split(".")):
        raise Misconfigured(f"{where}: {reference!r} has not the form package.module:name")
    return module, attribute


def _find(reference: str, where: str) -> object:
    name, attribute = _split(reference, where)
    try:
        module = importlib.import_module(name)
    except Exception as error:  # whatever the operator's code raises while it is imported
        raise Misconfigured(f"{where}: importing {name} failed: {type(error).__name__}: {error}") from error
    try:
        return cast("object", getattr(module, attribute))
    except AttributeError:
        raise Misconfigured(f"{where}: the module {name} ({module.__file__}) has no {attribute}") from None


def _call_if_needed(found: object, where: str) -> object:
    is_recipe = not isinstance(found, type) and all(hasattr(found, name) for name in _METHODS)
    if is_recipe or not callable(found):
        return found
    try:
        return cast("object", found())
    except Exception as error:  # whatever the operator's code raises
        raise Misconfigured(f"{where}: calling it failed: {type(error).__name__}: {error}") from error


def _check(recipe: object, where: str) -> None:
    missing = [name for name in (*_METHODS, *_NUMBERS) if not hasattr(recipe, name)]
    if missing:
        raise Misconfigured(f"{where}: a {type(recipe).__name__} is no recipe, it lacks {', '.join(missing)}")
    dead = [n for n in (*_METHODS, *_OPTIONAL_METHODS) if hasattr(recipe, n) and not callable(getattr(recipe, n))]
    if dead:
        raise Misconfigured(f"{where}: {', '.join(dead)} can't be called")
    numbers = {name: getattr(recipe, name) for name in _NUMBERS}
    odd = [n for n, v in numbers.items() if not isinstance(v, int | float) or not math.isfinite(v) or v < 0]
    if odd:
        raise Misconfigured(f"{where}: {', '.join(odd)} must be a number of at least 0")
    _check_optional(recipe, where)


def _check_optional(recipe: object, where: str) -> None:
    """Refuse a pace that trains nothing and a law that the engine does not know, before an hour depends on them."""
    pace = {name: getattr(recipe, name) for name in _PACE if hasattr(recipe, name)}
    odd = [n for n, v in pace.items() if not isinstance(v, int | float) or not math.isfinite(v) or v <= 0]
    if odd:
        raise Misconfigured(f"{where}: {', '.join(odd)} must be a number above 0")
    law = getattr(recipe, "law", None)
    if law not in (None, *_LAWS):
        raise Misconfigured(f"{where}: law is {law!r} and must be one of {', '.join(_LAWS)}")
