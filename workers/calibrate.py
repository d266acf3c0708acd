"""Calibrating a live version: cross-fitted references and curvature factors, by which its people are unlearned.

The part of `expunge models calibrate` that needs torch; runs as a process of its own, and goes on after a crash: what
is finished waits in a directory named after the version, and is deleted at the end.
"""

from __future__ import annotations

import argparse
import fcntl
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.progress import Progress

from app.errors import BaseMoved, Conflict, Invalid
from app.storage import moves, samples, versions
from app.storage.sessions import transaction
from app.storage.tables import Manifest, ModelVersion
from workers import calibrated, command, recipes
from workers.context import Context, context
from workers.registry import Store
from workers.shelf import folds_directory
from workers.unlearning import NotTrainable, Recipe, Trains
from workers.unlearning import references as fitting
from workers.unlearning.errors import DamagedFile, FactorsDoNotFit, ForeignReferences
from workers.unlearning.factors import Ekfac
from workers.unlearning.model import Progress as Told

Json = dict[str, Any]  # Any: JSON


def main(arguments: list[str]) -> int:
    """Parse the command line and calibrate; exit code 0 when the version is calibrated, 1 when something is wrong."""
    parser = argparse.ArgumentParser(prog="expunge models calibrate")
    parser.add_argument("name")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=4)
    chosen = parser.parse_args(arguments)
    return command.run(lambda bars: calibrate(context(), bars=bars, **vars(chosen)), failing="not calibrated")


def calibrate(ctx: Context, *, name: str, folds: int, repeats: int, bars: Progress) -> str:
    """Fit factors and references for the live version of ``name``; returns a sentence about them.

    Raises:
        NotFound: No such model.
        Conflict: It has no live version, or another process calibrates it at this moment.
        Invalid: Fewer people than folds.
        NotTrainable: The recipe has no `train`.
        BaseMoved: Another version was published meanwhile.
        UnlearningError: The engine does not cover the model, or a training went wrong.
    """
    subject = _subject(ctx, name)
    owner = recipes.load(ctx.settings.recipes_path, name)
    _check(owner, subject, folds)
    directory = folds_directory(ctx.settings.store_url, ctx.settings.home) / subject.version.id.hex
    directory.mkdir(parents=True, exist_ok=True)
    with _alone(directory, name):
        calibration = _fitted(ctx, owner, subject, folds=folds, repeats=repeats, directory=directory, bars=bars)
        try:
            _record(ctx, subject, calibration)
        except BaseMoved:  # nobody will ask for these predictions again
            shutil.rmtree(directory, ignore_errors=True)
            raise
        shutil.rmtree(directory, ignore_errors=True)  # only now: a database that is away must not cost the trainings
    strangers = len(subject.strangers)
    numbers = f"{folds * repeats} trainings, {subject.users} people and {strangers} strangers"
    return f"{name} version {subject.version.number} is calibrated: {numbers}, {calibration['law']} outputs"


@contextmanager
def _alone(directory: Path, name: str) -> Iterator[None]:
    """Hold the version against a second calibration: it would write over these folds, and delete them at its end.

    The lock is a file beside the directory; the kernel lets go of it however this process ends.
    """
    path = directory.with_name(f"{directory.name}.lock")
    with path.open("w") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Conflict(f"{name} is being calibrated by another process: wait for it, or end it") from None
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


@dataclass(frozen=True)
class _Subject:
    """The version to calibrate and whom it knows, without those forgotten."""

    version: ModelVersion
    manifest: str
    members: list[list[int]]
    strangers: list[list[int]]
    retain: list[int]
    users: int


def _subject(ctx: Context, name: str) -> _Subject:
    with transaction(ctx.engine) as tx:
        model = versions.model(tx, name)
        if model.current_version_id is None:
            raise Conflict(f"{name} has no live version to calibrate")
        version = versions.version(tx, model.current_version_id)
        gone = versions.forgotten(tx, version)
        people = samples.members(tx, version.manifest_id, excluding=())
        left = [kept for ids in people if (kept := [i for i in ids if i not in gone])]
        retain = [i for i in samples.sample_ids(tx, version.manifest_id) if i not in gone]
        strangers = samples.strangers(tx, version.manifest_id)
        digest = tx.get_one(Manifest, version.manifest_id).digest
    members = _apart([*left, *([i] for i in sorted(set(retain).difference(*left)))])
    return _Subject(version, digest, members, _apart(strangers), retain, len(left))


def _apart(people: Iterable[Sequence[int]]) -> list[list[int]]:
    """Merge people who share samples, so that no model is trained on a part of somebody whom it is asked about.

    A sample that belongs to nobody stands for itself: the trainings must not go without it.
    """
    group_of: dict[int, set[int]] = {}
    for ids in people:
        merged = set(ids).union(*(group_of[i] for i in ids if i in group_of))
        group_of.update(dict.fromkeys(merged, merged))
    return sorted(sorted(group) for group in {id(group): group for group in group_of.values()}.values())


def _check(owner: Recipe, subject: _Subject, folds: int) -> None:
    if not isinstance(owner, Trains):
        raise NotTrainable("the recipe has no train(sample_ids, seed, progress): no references can be fitted")
    if len(subject.members) < folds:
        raise Invalid("--folds", f"{folds} folds need at least as many people; there are {len(subject.members)}")


def _fitted(
    ctx: Context, owner: Recipe, subject: _Subject, *, folds: int, repeats: int, directory: Path, bars: Progress
) -> Json:
    """Do the work, the cheap part first: it tells whether the engine covers the model at all."""
    url, version = ctx.settings.store_url, subject.version
    bound = {"weights": version.weights, "manifest": subject.manifest}
    for fold in fitting.discard_damaged(directory):
        bars.console.print(f"{fold} was damaged: it is trained anew", highlight=False, soft_wrap=True)
    factors = _factors(owner, subject, Store(url), directory, _bar(bars, "fitting the curvature"))
    crossed = _crossed(owner, subject, folds, repeats, directory=directory, told=_bar(bars, "training the references"))
    return {
        **bound,
        "references": calibrated.keep_references(url, crossed, **bound),
        "factors": calibrated.keep_factors(url, factors, **bound),
        "fitted_to": version.weights,
        "law": calibrated.law_of(owner, subject.retain),
        "folds": folds,
        "repeats": repeats,
        "users_at": subject.users,
        "fitted_at_version": version.number,
    }


def _factors(owner: Recipe, subject: _Subject, store: Store, directory: Path, told: Told) -> Ekfac:
    resume, weights = directory / "factors.safetensors", store.get(subject.version.weights)
    try:
        return calibrated.fit_factors(owner, weights, subject.retain, resume=resume, progress=told)
    except (FactorsDoNotFit, DamagedFile):  # the recipe or its samples changed since the crash: begin again
        resume.unlink()
        return calibrated.fit_factors(owner, weights, subject.retain, resume=resume, progress=told)


def _crossed(
    owner: Recipe, subject: _Subject, folds: int, repeats: int, *, directory: Path, told: Told
) -> fitting.References:
    def cross_fit() -> fitting.References:
        return fitting.cross_fit(
            owner,
            subject.members,
            subject.strangers,
            folds=folds,
            repeats=repeats,
            seed=int(subject.version.weights[:7], 16),
            about=subject.version.recipe,
            directory=directory,
            progress=told,
        )

    try:
        return cross_fit()
    except ForeignReferences:  # other folds were asked for before, a stranger left, the recipe changed: begin again
        fitting.discard(directory)
        return cross_fit()


def _record(ctx: Context, subject: _Subject, calibration: Json) -> None:
    with transaction(ctx.engine) as tx:
        versions.calibrate(tx, subject.version, calibration)
        detail: dict[str, str | int] = {"version": subject.version.number}
        moves.record(tx, "model.calibrated", model_id=subject.version.model_id, detail=detail)


def _bar(bars: Progress, label: str) -> Told:
    task = bars.add_task(label, total=1.0)
    return lambda share: bars.update(task, completed=share)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
