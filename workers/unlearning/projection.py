"""Forget by the smallest change that says on the forgotten samples what a model without them would say.

    min_d  ½ dᵀ(E_R + μI) d + (1/2ε) (J_S d − Δz)ᵀ M (J_S d − Δz)

J_S is the exact Jacobian of the outputs on the forgotten samples S; Δz what the cross-fitted references say there, less
what the model says; M the loss's own curvature at the references. Small is measured in the curvature of the retained
data: E_R is its EK-FAC, fitted once per registered version, so that a step reads S alone and its cost does not grow
with the training set. On the handwriting network (six forget sets) this metric came nearer to retraining than the exact
GGN of a random subsample at the same counted cost: ρ 0.67 at 4.9 % of a retraining against 0.80 at 5.5 %
(a scratch study, docs/adr/0008; `make bench-unlearning` has 0.82 at 2.8 %). The solve is cut short after a few
products on purpose; the cut is its trust region.

Shape suffixes: N samples of a chunk, K samples to forget, P moving parameters.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.func import grad

from .bounds import above_zero, not_below_zero, one_of, plain_ids, whole
from .calibration import Law, check_law
from .curvature import GaussNewton
from .errors import ForeignReferences, NonFinite
from .factors import Ekfac
from .model import Inputs, Model, Progress, Recipe, Weights, fetch
from .objective import Cost, Objective, check_coverage, check_sets
from .references import LEVELS, Level, References
from .report import Update, UpdateReport
from .rows import check_unreached, without_owned
from .solve import NoConvergence, Solution, conjugate_gradients
from .stability import StepControl, Trial
from .statistics import with_statistics

_HALVINGS = 4
_PROBE = 256  # samples on which coverage is checked: enough to see a path, few enough to cost nothing


@dataclass(frozen=True)
class Projection:
    """How hard to pull, and how far.

    Attributes:
        products: of the truncated solve; each reads the forgotten samples once.
        slack: ε, how much missing the references may cost; smaller pulls harder.
        damping: μ beyond the weight decay, in units of the summed curvature.
        steps: times the network is linearised anew.
        level: how several references become one target.
        batch_size: samples per chunk.
        statistics_samples: retained samples that batch statistics are estimated on.
        frozen_buffers: buffers that training moves and that the caller accepts to leave.
        control: thresholds of the step control.

    Raises:
        BadSetting: a value by which nothing would move, or nobody could tell what; the message names the field.
    """

    products: int = 10
    slack: float = 0.03
    damping: float = 1.0
    steps: int = 1
    level: Level = "probabilities"
    batch_size: int = 1024
    statistics_samples: int = 4096
    frozen_buffers: tuple[str, ...] = ()
    control: StepControl = field(default_factory=StepControl)

    def __post_init__(self) -> None:
        """Refuse what means nothing."""
        whole(self, least=1, names=["products", "steps", "batch_size", "statistics_samples"])
        above_zero(self, names=["slack"])
        not_below_zero(self, names=["damping"])
        one_of("level", self.level, LEVELS)


def project(  # noqa: PLR0913 - model, sides, and what was fitted for it beforehand
    recipe: Recipe,
    weights: Weights,
    *,
    forget_ids: Sequence[int],
    retain_ids: Sequence[int],
    references: References,
    factors: Ekfac,
    law: Law,
    settings: Projection = Projection(),
    progress: Progress | None = None,
) -> Update:
    """Return weights whose outputs on the forgotten samples are the references'; the given weights are not written to.

    Args:
        recipe: the owner's recipe.
        weights: the deployed state dict.
        forget_ids: samples of all users to forget: one joint solve.
        retain_ids: the samples that stay; only their number, and where needed their batch statistics, are used.
        references: out-of-fold predictions; only the teachers' are read, the judges' are left to verification.
        factors: EK-FAC of the training data's GGN at registration, or refitted since.
        law: what the outputs mean.
        settings: effort and thresholds.
        progress: called with a share in [0, 1].

    Raises:
        NothingToForget: a set is empty, has doubles, or the two overlap.
        MissingReferences: a forgotten sample has none.
        BadSetting: the law is none.
        FactorsDoNotFit: the curvature is of other parameters.
        ForeignReferences: the references have another shape than the outputs.
        NotCovered: learned state lies outside the operator.
        RecipeMisbehaves: losses are not per sample, or retained samples reach rows that are to be erased.
        NonFinite: numbers broke down.
    """
    check_law(law)
    forget_ids, retain_ids = plain_ids(forget_ids), plain_ids(retain_ids)
    check_sets(forget_ids, retain_ids)
    model, erased = without_owned(Model(recipe, weights, frozen_buffers=settings.frozen_buffers), forget_ids)
    factors.check_fits(model)
    retained = Objective(model, retain_ids, batch_size=settings.batch_size, cost=Cost())
    check_coverage(Objective(model, [*forget_ids[:_PROBE], *retain_ids[:_PROBE]], batch_size=_PROBE))
    check_unreached(Objective(model, retain_ids[:_PROBE], cost=retained.cost))
    target_K = references.target(forget_ids, repeats=references.teachers, level=settings.level, law=law)
    pulled = _pulled(model, forget_ids, target_K, settings, retained.cost)
    walk = _Walk(pulled, retained, factors, settings, progress or (lambda _: None))
    theta_P = walk.run()
    state = with_statistics(retained, theta_P, samples=settings.statistics_samples, batch_size=settings.batch_size)
    return Update(weights=state, report=walk.report(theta_P, erased))


class Pull:
    """A recipe whose loss is ½(z − t)ᵀ M (z − t)/ε: quadratic around the reference t, with the owner's curvature there.

    Its gradient is −JᵀMΔz/ε and its GGN JᵀMJ/ε, so that the engine's exact products serve the projection unchanged.

    Args:
        owner: whose module, samples and loss these are.
        sample_ids: S.
        target_K: t for each of them.
        slack: ε.
    """

    l2_per_sample = 0.0
    l2_total = 0.0

    def __init__(self, owner: Recipe, sample_ids: Sequence[int], target_K: Tensor, *, slack: float) -> None:
        self.owner, self.slack, self.target_K = owner, slack, target_K
        self.build = owner.build
        self._row = {sample_id: row for row, sample_id in enumerate(sample_ids)}
        self._truth_K: Tensor | None = None

    def fetch(self, sample_ids: Sequence[int], /) -> tuple[Inputs, Tensor]:
        """Return the owner's inputs, and row numbers into the references for targets."""
        inputs, truth_N = fetch(self.owner, sample_ids)
        rows_N = torch.tensor([self._row[i] for i in sample_ids], device=truth_N.device)
        if self._truth_K is None:
            self._truth_K = truth_N.new_zeros((len(self._row), *truth_N.shape[1:]))
        self._truth_K[rows_N] = truth_N
        return inputs, rows_N

    def loss(self, outputs: Tensor, rows_N: Tensor, /) -> Tensor:
        """Return the quadratic per sample, shape (N,)."""
        assert self._truth_K is not None
        reference_N = same_shape(self.target_K[rows_N].to(outputs), outputs)
        truth_N = self._truth_K[rows_N]
        away_N = outputs - reference_N
        slope = grad(lambda z: self.owner.loss(z, truth_N).sum())
        curved_N = grad(lambda z: (slope(z) * away_N).sum())(reference_N)
        products: Tensor = away_N * curved_N
        return products.reshape(len(products), -1).sum(1) / (2 * self.slack)


def same_shape(reference_N: Tensor, outputs: Tensor) -> Tensor:
    """Return the references, which torch would stretch to the outputs' shape if it could.

    Raises:
        ForeignReferences: with both shapes.
    """
    if reference_N.shape != outputs.shape:
        kept, said = tuple(reference_N.shape[1:]), tuple(outputs.shape[1:])
        raise ForeignReferences(f"references have shape {kept} per sample, the model's outputs {said}")
    return reference_N


def _pulled(model: Model, forget_ids: Sequence[int], target_K: Tensor, settings: Projection, cost: Cost) -> Objective:
    """Bind the pull to the same module, frozen tensors and held-still rows as the model's."""
    pull = Pull(model.recipe, forget_ids, target_K.to(model.theta_P.device), slack=settings.slack)
    twin = model.bound_to(pull)
    return Objective(twin, forget_ids, batch_size=settings.batch_size, cost=cost)


class _Walk:
    """One or more truncated solves, each tried in full and, where the outputs disagree, in halves."""

    def __init__(
        self, pulled: Objective, retained: Objective, factors: Ekfac, settings: Projection, progress: Progress
    ) -> None:
        self.pulled, self.retained, self.factors = pulled, retained, factors
        self.settings, self.progress = settings, progress
        self.scale = len(retained) / factors.samples
        self.shift = retained.l2 + settings.damping
        self.trials: list[Trial] = []
        self.shortened = self.pulls = False

    def run(self) -> Tensor:
        """Return where the steps ended."""
        theta_P = self.pulled.model.theta_P
        for number in range(self.settings.steps):
            value, slope_P = self.pulled.value(theta_P), self.pulled.gradient(theta_P)
            if not bool(slope_P.isfinite().all()):
                raise NonFinite("the pull towards the references is not finite")
            self.pulls = self.pulls or bool(slope_P.any())
            solved = self._solve(theta_P, -slope_P, done=number / self.settings.steps)
            step_P = self._longest(theta_P, value, slope_P, solved)
            if step_P is None:
                break
            theta_P = theta_P + step_P
        self.progress(1.0)
        return theta_P

    def report(self, theta_P: Tensor, erased: int) -> UpdateReport:
        """Sum the steps up; what cut the last one short leaves data in the model, and is told."""
        moved_P, model = theta_P - self.pulled.model.theta_P, self.retained.model
        reason = self._shortfall(theta_P)
        return UpdateReport(
            method="projection",
            complete=reason is None,
            reason=reason,
            forgotten_samples=len(self.pulled),
            retained_samples=len(self.retained),
            moving_parameters=len(moved_P),
            trials=tuple(self.trials),
            step_norm=float(moved_P.norm()),
            function_step=self._function_step(moved_P),
            preconditioned=True,
            truncated=True,
            forward_backwards=self.retained.cost.forward_backwards,
            frozen_buffers=model.frozen_buffers,
            recomputed_buffers=model.recomputed_buffers,
            erased_rows=erased,
        )

    def _shortfall(self, theta_P: Tensor) -> str | None:
        if not self.trials or not self.trials[-1].accepted:
            return "no step was accepted"
        model = self.retained.model
        if self.pulls and torch.equal(model.flatten(model.unflatten(theta_P)), model.theta_P):
            return "nothing moved, though the outputs are not the references': no way down, or a step below rounding"
        return "the last step was shortened" if self.shortened else None

    def _solve(self, theta_P: Tensor, b_P: Tensor, *, done: float) -> Solution:
        """Run the solve's products; what it has not reached by then it is not meant to reach."""
        free, pull = self.retained.model.free, GaussNewton(self.pulled, theta_P)
        inverse = self.factors.inverse(shift=self.shift, scale=self.scale)
        try:
            return conjugate_gradients(
                lambda v_P: free(self.scale * self.factors.product(v_P)) + self.shift * v_P + pull.product(v_P),
                b_P,
                tolerance=1e-6,
                max_iterations=self.settings.products,
                precondition=lambda r_P: free(inverse(r_P)),
                progress=lambda share: self.progress(done + share / self.settings.steps),
            )
        except NoConvergence as cut:
            return cut.solution

    def _longest(self, theta_P: Tensor, value: float, slope_P: Tensor, solved: Solution) -> Tensor | None:
        """Return the longest of the step and its halves that the outputs agree with; None if none does."""
        bend = float(solved.point_P @ GaussNewton(self.pulled, theta_P).product(solved.point_P))
        lean = float(slope_P @ solved.point_P)
        for halving in range(_HALVINGS):
            share = 0.5**halving
            step_P = share * solved.point_P
            trial = self._trial(theta_P, step_P, solved, value=value, predicted=-share * lean - share**2 * bend / 2)
            self.trials.append(trial)
            if trial.accepted:
                self.shortened = halving > 0
                return step_P
        return None

    def _trial(self, theta_P: Tensor, step_P: Tensor, solved: Solution, *, value: float, predicted: float) -> Trial:
        actual = value - self.pulled.value(theta_P + step_P)
        q = self._function_step(step_P)
        accepts = self.settings.control.accepts(actual=actual, predicted=predicted, function_step=q, rounding=1e-12)
        return Trial(
            damping=self.settings.damping,
            predicted_decrease=predicted,
            actual_decrease=actual,
            function_step=q,
            step_norm=float(step_P.norm()),
            relative_residual=solved.relative_residual,
            iterations=solved.iterations,
            accepted=accepts,
        )

    def _function_step(self, step_P: Tensor) -> float:
        """Q = ½dᵀE_R d per retained sample: for cross-entropy, the predicted mean KL on retained data."""
        return 0.5 * self.scale * float(step_P @ self.factors.product(step_P)) / len(self.retained)
