"""What a recipe is, as a digest: its source, its numbers, and the first samples that it fetches.

Work that waits on disk after a crash belongs to the recipe that began it. Training code that was changed in between,
or other data under the same sample ids, would mix two models into one result that nobody could tell from a whole one.
What it cannot see: code that the recipe's module imports, and samples beyond the probe.
"""

import hashlib
import inspect
import json
from collections.abc import Sequence
from typing import Generic, Protocol

import torch

from .model import Inputs, Recipe, fetch, split_arguments
from .tensor_files import digest_of

PROBE = 256  # samples fetched and digested
_NUMBERS = "l2_per_sample", "l2_total", "lr", "batch_size", "epochs", "law"


def of_recipe(recipe: Recipe, sample_ids: Sequence[int]) -> str:
    """Return a digest of the recipe's source files and of the first samples among these; leaves random states alone."""
    with torch.random.fork_rng():
        inputs, targets = fetch(recipe, list(sample_ids[:PROBE]))
    return hashlib.sha256(f"{of_source(recipe)} {of_chunk(inputs, targets)}".encode()).hexdigest()


def of_source(recipe: object) -> str:
    """Return a digest of the modules that define the recipe's class and its bases, and of the recipe's numbers."""
    numbers = {name: str(getattr(recipe, name, None)) for name in _NUMBERS}
    own = [kind for kind in type(recipe).__mro__ if kind not in {object, Protocol, Generic}]
    return hashlib.sha256(json.dumps([numbers, [_source(kind) for kind in own]]).encode()).hexdigest()


def of_chunk(inputs: Inputs, targets: torch.Tensor) -> str:
    """Return a digest of fetched inputs and targets."""
    positional, named = split_arguments(inputs)
    listed = {str(place): tensor for place, tensor in enumerate(positional)}
    return digest_of({**listed, **{f"named {name}": tensor for name, tensor in named.items()}, "y": targets}, {})


def _source(kind: type) -> str:
    """Return the text of a class's module; where there is none (a notebook, an extension) the name stands for it."""
    module = inspect.getmodule(kind)
    try:
        return inspect.getsource(module) if module else kind.__qualname__
    except (OSError, TypeError):
        return f"{kind.__module__}.{kind.__qualname__}"
