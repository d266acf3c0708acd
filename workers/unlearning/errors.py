"""Every way the engine can refuse, in one tree; each message states a fact and its numbers."""

from pathlib import Path


class UnlearningError(Exception):
    """Root of the engine's refusals: catch this to route a request to the next rung of the ladder."""


class WeightsDoNotFit(UnlearningError):
    """The weights are not a state of the module that the recipe builds."""


class RecipeMisbehaves(UnlearningError):
    """The recipe broke its own protocol: wrong shapes, wrong lengths, or a loss that is not per sample."""


class NotCovered(UnlearningError):
    """Something that learned from the samples lies outside the curvature operator, so a step could not reach it."""


class BadSetting(UnlearningError):
    """A setting has a value that means nothing; the message names the field."""


class NonFinite(UnlearningError):
    """A NaN or an infinity appeared where numbers were due."""


class NotTrainable(UnlearningError):
    """The owner's recipe has no `train`, so the retraining rung does not exist for this model."""


class NothingToForget(UnlearningError):
    """The forget set, the retained set or a test sample is empty, or the first two overlap."""


class MissingReferences(UnlearningError):
    """No out-of-fold prediction is kept for a sample or a repeat that was asked for."""


class ForeignReferences(UnlearningError):
    """References on disk belong to other weights, another manifest, or another deal of people."""


class DamagedFile(UnlearningError):
    """A file of ours was cut or altered, or is none of ours; `path` tells which."""

    def __init__(self, path: Path, sentence: str) -> None:
        super().__init__(f"{path.name} {sentence}")
        self.path = path


class NotDealable(UnlearningError):
    """People, folds and repeats do not go together: too few people, an empty one, or one sample on two."""


class TooFewRetrainings(UnlearningError):
    """A distance between honest retrainings was asked of fewer than it takes."""


class NotConvex(UnlearningError):
    """The objective is not strongly convex in the moving parameters, so no distance to its minimum can be promised."""


class Uncertifiable(UnlearningError):
    """A convex head cannot meet the asked tolerance, (ε, δ) or noise at this precision."""


class FactorsDoNotFit(UnlearningError):
    """Curvature factors on disk belong to other weights, another manifest, another model or another fit."""


class NotInvertible(UnlearningError):
    """A preconditioner was asked for that would not be positive definite."""
