"""Newton's method down to a measured gradient norm, or an error that says how far this precision goes.

Where the outputs are affine and the loss is convex, the GGN is the Hessian, every step goes downhill, and backtracking
(Armijo 1966) makes it converge from anywhere. It ends at a point that the model's own dtype can hold, with |∇J| and an
estimate of that number's rounding error together inside the tolerance, or it raises.

Shape suffix: P moving parameters.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .curvature import GaussNewton
from .errors import Uncertifiable
from .model import Progress
from .objective import Objective, require_finite
from .sketch import sketched_inverse
from .solve import NoConvergence, Operator, Solution, conjugate_gradients
from .stability import Trial

ARMIJO = 1e-4  # share of the promised decrease that counts as progress
STALE = 20  # products of a solve above which the next one gets a new preconditioner, which costs about one
SHORTEST = 2.0**-30  # share of a step below which backtracking gives up


@dataclass(frozen=True)
class Effort:
    """How hard to work on one minimisation; decides the cost and whether the tolerance is met, not what is met.

    Attributes:
        newton_steps: most steps before giving up.
        max_products: GGN products per linear solve.
        groups: rows of the sketched preconditioner; 0 switches it off.
        batch_size: samples per chunk.
        frozen_buffers: buffers that training moves and that the caller vouches for; a certificate's scope names them.
    """

    newton_steps: int = 60
    max_products: int = 1000
    groups: int = 1024
    batch_size: int = 1024
    frozen_buffers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Minimum:
    """Where Newton's method stopped.

    Attributes:
        theta_P: a point that the model's own dtype can hold.
        gradient_norm: |∇J| measured there.
        rounding: estimated error of that number.
        trials: the steps that led there.
    """

    theta_P: Tensor  # noqa: N815 - a shape suffix
    gradient_norm: float
    rounding: float
    trials: tuple[Trial, ...]


def minimum(objective: Objective, *, tolerance: float, settings: Effort, progress: Progress) -> Minimum:
    """Minimise a strongly convex objective from its model's weights until |∇J| and its rounding are within tolerance.

    Raises:
        Uncertifiable: the tolerance was missed, with the norm reached and what rounding alone leaves.
        NonFinite: numbers broke down.
    """
    return _Newton(objective, tolerance, settings, progress).run()


def spacing(objective: Objective) -> float:
    """Return the relative spacing of the coarsest moving parameter's dtype."""
    model = objective.model
    return max(torch.finfo(tensor.dtype).eps for tensor in model.unflatten(model.theta_P).values())


class _Newton:
    """The state of one minimisation."""

    def __init__(self, objective: Objective, tolerance: float, settings: Effort, progress: Progress) -> None:
        self.objective = objective
        self.tolerance = tolerance
        self.settings = settings
        self.progress = progress
        self.trials: list[Trial] = []
        self.blind_below = 0.0
        self.inverse: Operator | None = None

    def run(self) -> Minimum:
        theta_P, before = self.objective.model.theta_P, math.inf
        while True:
            gradient_P = self.objective.gradient(theta_P)
            require_finite("the retained gradient", gradient_P)
            norm = float(gradient_P.norm())
            rounding = self._rounding(theta_P, gradient_P) if norm <= self.tolerance else math.inf
            if norm + rounding <= self.tolerance:
                self.progress(1.0)
                return Minimum(theta_P, norm, rounding, tuple(self.trials))
            if self._stalled(norm, before):
                raise self._missed(theta_P, gradient_P)
            theta_P, before = self._step(theta_P, gradient_P, before), norm

    def _stalled(self, norm: float, before: float) -> bool:
        """Out of steps, or a step too small for J to show did not even halve the gradient."""
        if len(self.trials) >= self.settings.newton_steps:
            return True
        blind = bool(self.trials) and self.trials[-1].predicted_decrease <= self.blind_below
        return blind and norm > 0.5 * before

    def _step(self, theta_P: Tensor, gradient_P: Tensor, before: float) -> Tensor:
        curvature = GaussNewton(self.objective, theta_P)
        solved = self._solve(theta_P, curvature, gradient_P, before)
        value = self.objective.value(theta_P)
        self.blind_below = 16 * spacing(self.objective) * abs(value)
        delta_P, reached = self._backtrack(theta_P, solved.point_P, value, float(gradient_P @ solved.point_P))
        bend = float(delta_P @ curvature.product(delta_P))
        decay = self.objective.l2 * float(delta_P @ delta_P)
        self.trials.append(
            Trial(
                damping=0.0,
                predicted_decrease=-float(gradient_P @ delta_P) - 0.5 * (bend + decay),
                actual_decrease=value - reached,
                function_step=0.5 * bend / len(self.objective),
                step_norm=float(delta_P.norm()),
                relative_residual=solved.relative_residual,
                iterations=solved.iterations,
                accepted=True,
            )
        )
        return theta_P + delta_P

    def _solve(self, theta_P: Tensor, curvature: GaussNewton, gradient_P: Tensor, before: float) -> Solution:
        """Solve as precisely as the next gradient can show (Eisenstat & Walker 1996), not far past the tolerance."""
        norm, l2 = float(gradient_P.norm()), self.objective.l2
        forcing = (norm / before) ** 2 if self.trials else 1e-3
        if not self.trials or self.trials[-1].iterations > STALE:
            self.inverse = sketched_inverse(self.objective, theta_P, groups=self.settings.groups, shift=l2, seed=0)
        try:
            return conjugate_gradients(
                lambda v_P: curvature.product(v_P) + l2 * v_P,
                -gradient_P,
                tolerance=min(1e-2, max(forcing, 0.1 * self.tolerance / norm)),
                max_iterations=self.settings.max_products,
                precondition=self.inverse,
                progress=lambda share: self.progress((len(self.trials) + share) / self.settings.newton_steps),
            )
        except NoConvergence as missed:
            return missed.solution  # still a direction downhill, and the gradient where it leads is measured anyway

    def _backtrack(self, theta_P: Tensor, step_P: Tensor, value: float, slope: float) -> tuple[Tensor, float]:
        """Halve the step until J falls by a share of what its slope promised, as far as J's rounding shows it."""
        model, share = self.objective.model, 1.0
        while True:
            reached_P = model.flatten(model.unflatten(theta_P + share * step_P))
            reached = self.objective.value(reached_P)
            if value - reached >= -ARMIJO * share * slope - self.blind_below or share < SHORTEST:
                return reached_P - theta_P, reached
            share /= 2

    def _rounding(self, theta_P: Tensor, gradient_P: Tensor) -> float:
        """Estimate the measured gradient's error: 4 × (the sum in another order + one spacing on every weight)."""
        ids, third = self.objective.sample_ids, -(-len(self.objective) // 3)
        backwards = Objective(
            self.objective.model, ids[::-1], batch_size=min(third, self.settings.batch_size), cost=self.objective.cost
        )
        order_P = backwards.gradient(theta_P) - gradient_P
        signs_P = torch.randint(0, 2, theta_P.shape, generator=torch.Generator().manual_seed(0)).to(theta_P) * 2 - 1
        nudge_P = spacing(self.objective) * theta_P.abs() * signs_P
        bent_P = GaussNewton(self.objective, theta_P).product(nudge_P) + self.objective.l2 * nudge_P
        return 4 * float(order_P.norm() + bent_P.norm())

    def _missed(self, theta_P: Tensor, gradient_P: Tensor) -> Uncertifiable:
        return Uncertifiable(
            f"gradient norm {float(gradient_P.norm()):.3g} after {len(self.trials)} Newton steps, "
            f"{self.tolerance:.3g} asked; rounding (spacing {spacing(self.objective):.2g}) alone leaves about "
            f"{self._rounding(theta_P, gradient_P):.2g}"
        )
