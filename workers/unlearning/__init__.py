"""Influence-based unlearning for PyTorch: a plain library that knows nothing of the service around it.

    references = cross_fit(recipe, members, strangers, directory=...)     # once per model
    factors = ekfac.fit(Objective(model, ids), model.theta_P)             # once per model
    update = project(recipe, weights, forget_ids=..., retain_ids=..., references=..., factors=..., law="softmax")
    verdict = verify(recipe, weights, update.weights, users=..., references=..., update=update.report, ...)

The rungs, from cheap to sure: `project` (or `forget`, a Newton step, without references), `renew`, `retrain`; for
convex heads `certified.resolve`. Read objective, curvature, projection, renewal, verification, in this order.
`choose_held_out`, `draw_canaries` and `noise_floor` are for whoever trains; gates by declared group, G4 (a process over
many deletions) and G5 (true retrainings) are for whoever has such data: the service calls none of these.
"""

from . import certified, ekfac
from .calibration import choose_held_out, draw_canaries, noise_floor
from .errors import (
    BadSetting,
    DamagedFile,
    NonFinite,
    NotCovered,
    NothingToForget,
    NotTrainable,
    RecipeMisbehaves,
    UnlearningError,
    WeightsDoNotFit,
)
from .factors import Ekfac
from .influence import Settings, forget
from .model import FreezesBuffers, Model, MovesSome, OwnsRows, Paced, Recipe, Trains, Weights
from .objective import Cost, Objective, residual
from .projection import Projection, project
from .references import References, cross_fit
from .renewal import Renewal, ordinary_epoch, renew
from .report import Update, UpdateReport
from .retrain import retrain
from .sharding import ProcessGroup
from .solve import NoConvergence
from .verification import Gate, Thresholds, Verdict, verify

__all__ = [
    "BadSetting",
    "Cost",
    "DamagedFile",
    "Ekfac",
    "FreezesBuffers",
    "Gate",
    "Model",
    "MovesSome",
    "NoConvergence",
    "NonFinite",
    "NotCovered",
    "NotTrainable",
    "NothingToForget",
    "Objective",
    "OwnsRows",
    "Paced",
    "ProcessGroup",
    "Projection",
    "Recipe",
    "RecipeMisbehaves",
    "References",
    "Renewal",
    "Settings",
    "Thresholds",
    "Trains",
    "UnlearningError",
    "Update",
    "UpdateReport",
    "Verdict",
    "Weights",
    "WeightsDoNotFit",
    "certified",
    "choose_held_out",
    "cross_fit",
    "draw_canaries",
    "ekfac",
    "forget",
    "noise_floor",
    "ordinary_epoch",
    "project",
    "renew",
    "residual",
    "retrain",
    "verify",
]
