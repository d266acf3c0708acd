"""The torch process: reads one order from stdin, computes, answers on stdout; knows no database, broker or key."""

from __future__ import annotations

import json
import os
import sys
import threading
import traceback
from collections.abc import Callable, Collection
from pathlib import Path
from typing import IO, Any

import torch

from app import logs
from app.errors import ExpungeError
from workers import calibrated, recipes
from workers.registry import Store
from workers.unlearning import (
    Recipe,
    Trains,
    UnlearningError,
    Update,
    UpdateReport,
    Weights,
    forget,
    residual,
    retrain,
    verify,
)
from workers.unlearning.errors import MissingReferences
from workers.unlearning.factors import Ekfac
from workers.unlearning.model import Paced
from workers.unlearning.projection import project
from workers.unlearning.references import References
from workers.unlearning.renewal import ordinary_epoch, renew

Json = dict[str, Any]  # Any: JSON
Say = Callable[[Json], None]
Progress = Callable[[float], None]
LARGEST_EPOCH = 200_000
"""Retained samples beyond which the resurrection test is left out: it costs one ordinary epoch on all of them."""
_REFIT = 0.5  # of the step's time, where the factors are fitted anew; for people who wait


def main(name: str) -> int:
    """Carry out one order; the exit code is 0 when it was answered, be it with an error."""
    logs.configure("INFO")
    logs.own_process()
    say = _mouth()
    order = json.loads(sys.stdin.readline())
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    try:
        say({"result": ORDERS[name](order, lambda fraction: say({"progress": fraction}))})
    except (ExpungeError, UnlearningError) as error:  # these name what is wrong; trying again gives the same
        say({"error": str(error), "final": True})
    return 0


def unlearn(order: Json, progress: Progress) -> Json:
    """Compute the candidate by the rung ordered; returns digests and the report, or why this rung can't.

    What the owner's code or torch dies of is such a reason too, unless trying again may help: a store or a dataset
    that is away, memory that was short. Only its type is told: an exception's message could quote anybody's data.
    """
    recipe, store = recipes.load(Path(order["recipes"]), order["model"]), Store(order["store"])
    try:
        return RUNGS[order["rung"]](recipe, store, order, progress)
    except (ExpungeError, MemoryError, torch.OutOfMemoryError, OSError):
        raise
    except Exception as error:  # whatever the owner's code raises: this rung can't, the next may
        if order["rung"] == "retrain":
            raise
        return {"weights": None, "refused": _refusal(error), "can_retrain": isinstance(recipe, Trains)}


def _refusal(error: Exception) -> str:
    """The sentence of our own errors; of others the type, and in the log the place."""
    if isinstance(error, UnlearningError):
        return str(error)
    frame = traceback.extract_tb(error.__traceback__)[-1]
    logs.log.error("recipe stopped", kind=type(error).__name__, place=f"{frame.filename}:{frame.lineno}")
    return f"it stopped with {type(error).__name__}, raised by the recipe or by torch; the worker's log has the place"


def judge(order: Json, progress: Progress) -> Json:
    """Compare the candidate with the base; returns the verdict and whether the recipe could retrain."""
    recipe, store = recipes.load(Path(order["recipes"]), order["model"]), Store(order["store"])
    after, exact = store.get(order["after"]), order["rung"] == "retrain"
    placed = [*order["forget"], *order["members"], *order["strangers"]]
    verdict = verify(
        recipe,
        store.get(order["base"]),
        after,
        users=order["forget"],
        retained_users=order["members"],
        retained_ids=order["retain"],
        strangers=order["strangers"],
        update=UpdateReport.from_dict(order["update"]),
        exact=exact,
        references=_references(order, covering={sample_id for ids in placed for sample_id in ids}),
        after_epoch=None if exact else _after_epoch(recipe, after, order),
    )
    progress(1.0)
    return {"verdict": verdict.as_dict(), "can_retrain": isinstance(recipe, Trains)}


def redact(order: Json, progress: Progress) -> Json:
    """Write the base's references anew without everybody who is to have none; returns their digest, None if gone."""
    found = _references(order, covering=())
    if found is None:
        return {"references": None}
    drop = sorted(set(found.sample_ids.tolist()).difference(order["keep"]))
    bound = {"weights": order["calibration"]["weights"], "manifest": order["calibration"]["manifest"]}
    digest = calibrated.keep_references(order["store"], found.without(drop), **bound)
    progress(1.0)
    return {"references": digest}


ORDERS: dict[str, Callable[[Json, Progress], Json]] = {"unlearn": unlearn, "verify": judge, "redact": redact}


def _influence(recipe: Recipe, store: Store, order: Json, progress: Progress) -> Json:
    """Project onto the references where the base is calibrated, else take the Newton step."""
    found = _references(order, covering=_forgotten(order))
    if found is None:
        return _answer(store, _newton(recipe, store, order, progress), calibrated=False)
    weights, fresh = store.get(order["base"]), order["refresh_factors"]
    if fresh:
        factors = _fit(recipe, weights, order, lambda share: progress(_REFIT * share))
    else:
        factors = calibrated.factors(order["store"], order["calibration"], recipe, weights, model=order["model"])
    begun = _REFIT if fresh else 0.0
    update = project(
        recipe,
        weights,
        forget_ids=_forgotten(order),
        retain_ids=order["retain"],
        references=found,
        factors=factors,
        law=order["calibration"]["law"],
        progress=lambda share: progress(begun + (1 - begun) * share),
    )
    fitted = _kept(factors, order["base"], order) if fresh else {}
    return _answer(store, update, calibrated=True, **fitted)


def _renewal(recipe: Recipe, store: Store, order: Json, progress: Progress) -> Json:
    found = _references(order, covering=_forgotten(order))
    if found is None:
        raise MissingReferences("there are no references of the people to forget, by which weights could be renewed")
    update = renew(
        recipe,
        store.get(order["base"]),
        forget_ids=_forgotten(order),
        retain_ids=order["retain"],
        references=found,
        law=order["calibration"]["law"],
        seed=order["seed"],
        progress=progress,
    )
    return _answer(store, update, calibrated=True)


def _retrain(recipe: Recipe, store: Store, order: Json, progress: Progress) -> Json:
    """Train anew; the curvature of a calibrated model is fitted to where the training ended."""
    update = retrain(recipe, order["retain"], seed=order["seed"], progress=progress)
    left = store.put({"residual": residual(recipe, update.weights, order["retain"])})
    answer = _answer(store, update, residual=left)
    if order["calibration"] is None:
        return answer
    factors = _fit(recipe, update.weights, order, lambda _: None)
    return {**answer, **_kept(factors, answer["weights"], order)}


RUNGS: dict[str, Callable[[Recipe, Store, Json, Progress], Json]] = {
    "influence": _influence,
    "renewal": _renewal,
    "retrain": _retrain,
}


def _newton(recipe: Recipe, store: Store, order: Json, progress: Progress) -> Update:
    return forget(
        recipe,
        store.get(order["base"]),
        forget_ids=_forgotten(order),
        retain_ids=order["retain"],
        residual=store.get(order["residual"])["residual"] if order["residual"] else None,
        progress=progress,
    )


def _answer(store: Store, update: Update, **more: Any) -> Json:  # Any: JSON
    return {"residual": None, **more, "weights": store.put(update.weights), "update": update.report.as_dict()}


def _references(order: Json, *, covering: Collection[int]) -> References | None:
    return calibrated.references(order["store"], order["calibration"], model=order["model"], covering=covering)


def _fit(recipe: Recipe, weights: Weights, order: Json, progress: Progress) -> Ekfac:
    return calibrated.fit_factors(recipe, weights, order["retain"], progress=progress)


def _kept(factors: Ekfac, fitted_to: str, order: Json) -> Json:
    """Store factors; what the published version's calibration takes over from the report."""
    digest = calibrated.keep_factors(
        order["store"], factors, weights=fitted_to, manifest=order["calibration"]["manifest"]
    )
    return {"fitted": {"factors": digest, "fitted_to": fitted_to}}


def _after_epoch(recipe: Recipe, after: Weights, order: Json) -> Weights | None:
    """Train the candidate on for one ordinary epoch: a memory that was only hidden returns."""
    if not isinstance(recipe, Paced) or len(order["retain"]) > LARGEST_EPOCH:
        return None
    return ordinary_epoch(recipe, after, order["retain"], seed=order["seed"])


def _forgotten(order: Json) -> list[int]:
    return sorted({sample_id for group in order["forget"] for sample_id in group})


def _mouth() -> Say:
    """Keep stdout for answers: whatever the owner's recipe prints goes to stderr."""
    out: IO[str] = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def say(message: Json) -> None:
        out.write(json.dumps(message) + "\n")
        out.flush()

    return say


def _leave_with_parent() -> None:
    """Our worker holds the other end of stdin; when it dies, however it dies, stdin ends and so do we."""
    sys.stdin.read()
    os._exit(75)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
