"""Influence-based unlearning for PyTorch: a plain library that knows nothing of the service around it.

    update = forget(recipe, weights, forget_ids=..., retain_ids=..., residual=...)
    verdict = verify(recipe, weights, update.weights, users=..., strangers=..., update=update.report, ...)

How does it forget? Read objective, curvature, influence, stability, verification, in this order.
"""

from .errors import (
    NonFinite,
    NotCovered,
    NothingToForget,
    NotTrainable,
    RecipeMisbehaves,
    UnlearningError,
    WeightsDoNotFit,
)
from .influence import Settings, forget
from .objective import Cost, MovesSome, Objective, Recipe, Trains, Weights, residual
from .report import Update, UpdateReport
from .retrain import retrain
from .solve import NoConvergence
from .verification import Gate, Thresholds, Verdict, verify

__all__ = [
    "Cost",
    "Gate",
    "MovesSome",
    "NoConvergence",
    "NonFinite",
    "NotCovered",
    "NotTrainable",
    "NothingToForget",
    "Objective",
    "Recipe",
    "RecipeMisbehaves",
    "Settings",
    "Thresholds",
    "Trains",
    "UnlearningError",
    "Update",
    "UpdateReport",
    "Verdict",
    "Weights",
    "WeightsDoNotFit",
    "forget",
    "residual",
    "retrain",
    "verify",
]
