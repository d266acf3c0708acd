"""Registering a model: check the weights against the recipe, store them, import the manifest, make them live.

The part of `expunge models register` that needs torch; runs as a process of its own.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from rich.progress import Progress
from safetensors.torch import load_file

from app import catalog
from app.domain.identifiers import check_model_name
from app.errors import Invalid
from app.storage import samples
from app.storage.sessions import transaction
from workers import command, recipes
from workers import manifest as manifests
from workers.context import Context, context
from workers.registry import Store, check_weights
from workers.unlearning import NotCovered, Recipe, Trains, Weights, residual
from workers.unlearning.model import Model, check_fit
from workers.unlearning.objective import Objective, check_coverage

_PROBE = 256  # samples on which the engine looks at the model
_STRANGERS_WANTED = 99  # for a level of 0.01 per tail; below 19 nothing can be shown


def main(arguments: list[str]) -> int:
    """Parse the command line and register; exit code 0 when the version is live, 1 when something is wrong."""
    parser = argparse.ArgumentParser(prog="expunge models register")
    parser.add_argument("name")
    parser.add_argument("--recipe", required=True)
    parser.add_argument("--weights", required=True, type=Path)
    parser.add_argument("--manifest", required=True, type=Path)
    parser.add_argument("--unlearn", action="store_true")
    chosen = parser.parse_args(arguments)
    return command.run(lambda bars: register(context(), bars=bars, **vars(chosen)), failing="not registered")


def register(
    ctx: Context, *, name: str, recipe: str, weights: Path, manifest: Path, unlearn: bool, bars: Progress
) -> str:
    """Make ``weights`` the live version of ``name``; returns a sentence about what is live now.

    Raises:
        Invalid: Weights, recipe or manifest break a rule.
        UnlearningError: The weights don't fit the recipe, or the recipe breaks its protocol.
        Conflict: The manifest names erased people and ``unlearn`` is false.
    """
    owner, store = recipes.resolve(recipe), Store(ctx.settings.store_url)
    check_model_name(name)
    digest = _checked(owner, weights, store)
    train_ids = _train_ids(ctx, manifest, _bar(bars, "reading the manifest"))
    bars.add_task("training gradient", total=None)
    state = store.get(digest)
    uncovered = _uncovered(owner, state, train_ids)
    left = residual(owner, state, train_ids)
    registration = catalog.Registration(
        name=name,
        recipe=recipe,
        weights=digest,
        residual=store.put({"residual": left}),
        manifest_digest=manifests.digest(manifest),
    )
    rows = manifests.read(manifest, index_key=ctx.settings.key("index_key"), progress=_bar(bars, "indexing people"))
    with transaction(ctx.engine) as tx:
        version, loaded = catalog.register(
            tx, registration, rows, unlearn=unlearn, now=ctx.now(), settings=ctx.settings
        )
        recipes.remember(ctx.settings.recipes_path, name, recipe)  # a version must not be live before its code is known
    queued = f"; {loaded.suppressed} erased people are being unlearned from it" if loaded.suppressed else ""
    live = f"{name} version {version.number} is live: {loaded.samples} samples of {loaded.users} people"
    return f"{live}, {loaded.heldout_users} held out{queued}{_outlook(owner, loaded, uncovered)}"


def _outlook(owner: Recipe, loaded: samples.Loaded, uncovered: str | None) -> str:
    """What will become of requests, where the engine can't reach the model or has too little to verify an update by."""
    then = "be retrained" if isinstance(owner, Trains) else "need attention, since the recipe has no train()"
    if uncovered:
        return f"\nthe engine does not cover this model, every request will {then}: {uncovered}"
    if loaded.heldout_users >= _STRANGERS_WANTED:
        return ""
    return f"\nfewer than {_STRANGERS_WANTED} people are held out to verify by: some or all requests will {then}"


def _uncovered(owner: Recipe, weights: Weights, train_ids: list[int]) -> str | None:
    """Look at the model as an erasure will: what it would refuse is heard now, not when the first person asks.

    Raises:
        RecipeMisbehaves: The recipe breaks the protocol, so that retraining by it would not be believed either.
    """
    spread = train_ids[:: max(1, len(train_ids) // _PROBE)][:_PROBE]
    try:
        check_coverage(Objective(Model(owner, weights), spread))
    except NotCovered as refusal:
        return str(refusal)
    return None


def _checked(owner: Recipe, weights: Path, store: Store) -> str:
    check_weights(weights)
    check_fit(owner.build(), load_file(weights))
    return store.adopt(weights)


def _train_ids(ctx: Context, manifest: Path, progress: manifests.Progress) -> list[int]:
    """The samples behind the weights, each once; a first reading also finds a bad line before anything is written."""
    rows = manifests.read(manifest, index_key=ctx.settings.key("index_key"), progress=progress)
    ids = np.fromiter((row.sample_id for row in rows if row.split == samples.TRAIN), dtype=np.int64)
    unique: list[int] = np.unique(ids).tolist()
    if not unique:
        raise Invalid("manifest", "it lists no training samples")
    return unique


def _bar(bars: Progress, label: str) -> manifests.Progress:
    task = bars.add_task(label, total=None)

    def show(done: int, total: int) -> None:
        bars.update(task, completed=done, total=total)

    return show


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
