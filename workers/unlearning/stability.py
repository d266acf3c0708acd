"""When a step may be taken: the ratio test and the function-space trust region of Levenberg and Marquardt.

A step is judged by what it does to the objective it was built to lower, and by how far it moves the outputs. A rejected
step is tried again with more damping. Damping keeps data in the model, so an update that *ends* on a damped step is not
finished: it is reported incomplete and routed on.
"""

import math
from dataclasses import dataclass

from .bounds import within


@dataclass(frozen=True)
class Trial:
    """One proposed step and what it did.

    Attributes:
        damping: μ added to the curvature for this step.
        predicted_decrease: of the quadratic model.
        actual_decrease: of the true objective.
        function_step: q = ½ΔᵀGΔ per retained sample; for cross-entropy, the predicted mean KL on retained data.
        step_norm: |Δ|.
        relative_residual: of the linear solve.
        iterations: products of the linear solve.
        accepted: whether the step was taken.
    """

    damping: float
    predicted_decrease: float
    actual_decrease: float
    function_step: float
    step_norm: float
    relative_residual: float
    iterations: int
    accepted: bool

    @property
    def ratio(self) -> float:
        """Actual over predicted decrease: 1 where the quadratic model was right."""
        return ratio(self.actual_decrease, self.predicted_decrease)


@dataclass(frozen=True)
class StepControl:
    """Thresholds of the ratio test, the trust region and the damping schedule (Moré 1978).

    Attributes:
        accept_above: least ratio of actual to predicted decrease.
        relax_above: ratio above which the damping falls.
        raise_by: factor on the damping after a rejection.
        relax_by: divisor of the damping after a good step.
        max_function_step: trust region on q = ½ΔᵀGΔ per retained sample.
    """

    accept_above: float = 0.25
    relax_above: float = 0.75
    raise_by: float = 4.0
    relax_by: float = 3.0
    max_function_step: float = 0.5

    def __post_init__(self) -> None:
        """Refuse thresholds by which every step or none could be taken unnoticed.

        Raises:
            BadSetting: naming the field.
        """
        within(self, -math.inf, math.inf, names=["accept_above", "relax_above"])
        within(self, 1.0, math.inf, names=["raise_by", "relax_by"])
        within(self, 0.0, math.inf, names=["max_function_step"])

    def accepts(self, *, actual: float, predicted: float, function_step: float, rounding: float) -> bool:
        """Tell whether a step may be taken; differences below `rounding` count as agreement."""
        if not (math.isfinite(actual) and math.isfinite(function_step)) or function_step > self.max_function_step:
            return False
        return abs(actual - predicted) <= rounding or ratio(actual, predicted) > self.accept_above

    def next_damping(self, trial: Trial, *, floor: float) -> float:
        """Return the damping of the next trial; below `floor`, damping starts or vanishes."""
        if not trial.accepted:
            return max(trial.damping * self.raise_by, floor)
        if trial.ratio <= self.relax_above:
            return trial.damping
        relaxed = trial.damping / self.relax_by
        return relaxed if relaxed >= floor else 0.0


def ratio(actual: float, predicted: float) -> float:
    """Return actual over predicted decrease; 0 where nothing was predicted."""
    return actual / predicted if predicted > 0 else 0.0
