"""What the engine says about its own work: plain numbers that become JSON."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from torch import Tensor

from .stability import Trial

Json = dict[str, Any]  # Any: JSON values, checked by json.dumps in the tests


@dataclass(frozen=True)
class UpdateReport:
    """How one update went.

    Attributes:
        method: "newton", "projection", "renewal" or "retrain".
        complete: False when the update was cut short and still holds data.
        reason: what cut it short.
        forgotten_samples: |S|; 0 for a retraining, which never reads them.
        retained_samples: |R|.
        moving_parameters: P.
        trials: every proposed step, in order.
        step_norm: |θ − θ0|.
        function_step: q = ½ΔᵀGΔ per retained sample for the whole update.
        tolerance: relative residual asked of each solve.
        preconditioned: whether the solves had a preconditioner.
        forward_backwards: work in per-sample forward-backward equivalents (None where the owner's code did it).
        frozen_buffers: buffers that training moves and that were left as they were.
        recomputed_buffers: batch statistics estimated anew on retained samples; they may differ from before.
        truncated: the solve was cut short on purpose: the cut is its trust region, so its residual decides nothing.
        erased_rows: rows that existed only because of the forgotten samples and now hold a fresh draw.
        seed: of a retraining or a renewal.
    """

    method: str
    complete: bool
    reason: str | None
    forgotten_samples: int
    retained_samples: int
    moving_parameters: int
    trials: tuple[Trial, ...] = ()
    step_norm: float | None = None
    function_step: float | None = None
    tolerance: float | None = None
    preconditioned: bool = False
    forward_backwards: float | None = None
    frozen_buffers: tuple[str, ...] = ()
    recomputed_buffers: tuple[str, ...] = ()
    truncated: bool = False
    erased_rows: int = 0
    seed: int | None = None

    @property
    def taken(self) -> tuple[Trial, ...]:
        """The accepted steps."""
        return tuple(trial for trial in self.trials if trial.accepted)

    @property
    def worst_residual(self) -> float | None:
        """The largest relative residual among the accepted steps."""
        return max((trial.relative_residual for trial in self.taken), default=None)

    def share_of_training(self, passes: float) -> float | None:
        """Return the work as a fraction of a training of `passes` passes over the retained samples."""
        return None if self.forward_backwards is None else self.forward_backwards / (passes * self.retained_samples)

    def as_dict(self) -> Json:
        """Return JSON-able values; numbers that are not finite become null."""
        ratios = [trial.ratio for trial in self.trials]
        return as_json({**dataclasses.asdict(self), "ratios": ratios, "worst_residual": self.worst_residual})

    @classmethod
    def from_dict(cls, values: Json) -> Self:
        """Read back what `as_dict` wrote, in another process."""
        fields = {field.name: values[field.name] for field in dataclasses.fields(cls) if field.name in values}
        trials = tuple(_trial(trial) for trial in values["trials"])
        buffers = {name: tuple(values.get(name, ())) for name in ("frozen_buffers", "recomputed_buffers")}
        return cls(**{**fields, "trials": trials, **buffers})


@dataclass(frozen=True)
class Update:
    """New weights (a full state dict) and how they came about."""

    weights: dict[str, Tensor]
    report: UpdateReport


def as_json(values: Mapping[str, Any]) -> Json:  # Any: whatever a report holds
    """Return the mapping with tuples as lists and NaN or infinity as None, so that strict JSON accepts it."""
    return {key: _plain(value) for key, value in values.items()}


def _trial(values: Json) -> Trial:
    """Read a trial back; null stands for a number that was not finite."""
    numbers: Json = {key: math.nan if value is None else value for key, value in values.items()}
    return Trial(**numbers)


def _plain(value: Any) -> Any:  # Any: one JSON value in, one out
    if isinstance(value, Mapping):
        return as_json(value)
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
