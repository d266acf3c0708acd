"""The torch process: reads one order from stdin, computes, answers on stdout; knows no database, broker or key."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from app.errors import ExpungeError
from workers import recipes
from workers.registry import Store
from workers.unlearning import (
    Recipe,
    Trains,
    UnlearningError,
    Update,
    UpdateReport,
    forget,
    residual,
    retrain,
    verify,
)

Json = dict[str, Any]  # Any: JSON
Say = Callable[[Json], None]


def main(name: str) -> int:
    """Carry out one order; the exit code is 0 when it was answered, be it with an error."""
    say = _mouth()
    order = json.loads(sys.stdin.readline())
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    try:
        say({"result": ORDERS[name](order, lambda fraction: say({"progress": fraction}))})
    except (ExpungeError, UnlearningError) as error:  # these name what is wrong; trying again gives the same
        say({"error": str(error), "final": True})
    return 0


def unlearn(order: Json, progress: Callable[[float], None]) -> Json:
    """Compute the candidate by the rung ordered; returns its digest, the report and, when retrained, its residual."""
    recipe, store = recipes.load(Path(order["recipes"]), order["model"]), Store(order["store"])
    if order["rung"] == "retrain":
        update = retrain(recipe, order["retain"], seed=order["seed"], progress=progress)
        left = store.put({"residual": residual(recipe, update.weights, order["retain"])})
    else:
        try:
            update, left = _influence(recipe, store, order, progress), None
        except UnlearningError as refusal:  # this engine can't; a retraining may
            return {"weights": None, "refused": str(refusal), "can_retrain": isinstance(recipe, Trains)}
    return {"weights": store.put(update.weights), "update": update.report.as_dict(), "residual": left}


def judge(order: Json, progress: Callable[[float], None]) -> Json:
    """Compare the candidate with the base; returns the verdict and whether the recipe could retrain."""
    recipe, store = recipes.load(Path(order["recipes"]), order["model"]), Store(order["store"])
    verdict = verify(
        recipe,
        store.get(order["base"]),
        store.get(order["after"]),
        users=order["forget"],
        retained_users=order["members"],
        retained_ids=order["retain"],
        strangers=order["strangers"],
        update=UpdateReport.from_dict(order["update"]),
        exact=order["rung"] == "retrain",
    )
    progress(1.0)
    return {"verdict": verdict.as_dict(), "can_retrain": isinstance(recipe, Trains)}


ORDERS: dict[str, Callable[[Json, Callable[[float], None]], Json]] = {"unlearn": unlearn, "verify": judge}


def _influence(recipe: Recipe, store: Store, order: Json, progress: Callable[[float], None]) -> Update:
    return forget(
        recipe,
        store.get(order["base"]),
        forget_ids=sorted({sample_id for group in order["forget"] for sample_id in group}),
        retain_ids=order["retain"],
        residual=store.get(order["residual"])["residual"] if order["residual"] else None,
        progress=progress,
    )


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
