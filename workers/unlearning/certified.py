"""Certified forgetting for a convex head: solve what is left to a public tolerance, publish with Gaussian noise.

J_R is m-strongly convex (m = its weight decay in sum form), so weights whose *measured* gradient norm is r lie within
r/m of the one minimum w*_R. Unlearning and retraining both stop at a norm ≤ τ; they end at most 2τ/m apart, wherever
they started. With N(0, σ²I) added, the published weights are μ-Gaussian-DP indistinguishable from "retrained, same
noise", μ = 2τ/(mσ) (Dong, Roth & Su 2022). A stream of deletions spends nothing, for the un-noised working copy is
never published; T *releases* compose to μ√T. A measurement is cheaper than a bound: after 400 chained Newton steps on
digits, Guo's (2020) summed bound was 489 times the true residual, and two or three more steps end at 1e-10
(benchmarks/certified.py).

What the certificate does not cover: the frozen part of the model, if it saw the person; τ chosen after looking at r;
the working copy and its report, whose numbers carry no noise; requests of other people that repeat the person's data;
the last bits of floating-point noise (Mironov 2012), kept small by refusing σ near the spacing of the weights; how long
the solve took.

>>> from workers.unlearning.testing import Ridge
>>> ridge = Ridge(samples=40, features=6, seed=0)
>>> working, published, certificate = resolve(
...     ridge, ridge.solved(range(40)), retain_ids=range(7, 40), tolerance=1e-9, epsilon=0.5, delta=1e-5
... )
>>> distance = float((working.weights["weight"] - ridge.solved(range(7, 40))["weight"]).norm())
>>> distance <= certificate.distance <= 1e-9 / certificate.strong_convexity
True

Shape suffixes: N samples, P moving parameters, C numbers in one sample's output.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from .curvature import output_hessian
from .errors import NotConvex, NothingToForget, Uncertifiable
from .gaussian_dp import drawn_once, drawn_with, epsilon_of, mu_of
from .model import Model, Progress, Recipe, Weights
from .newton import Effort, Minimum, minimum, spacing
from .objective import Cost, Objective, check_coverage
from .report import Json, Update, UpdateReport, as_json

AFFINE_WITHIN = 1e-8  # second over first difference of the outputs, in float64
SPACINGS_OF_NOISE = 1024  # σ in spacings of the largest weight, at least


@dataclass(frozen=True)
class Certificate:
    """(ε, δ) of one published copy, or of several together, against "retrained on what is left, same noise".

    Attributes:
        tau: τ, the public tolerance on the gradient norm that retraining obeys as well.
        gradient_norm: r ≤ τ, as measured on the working copy. Carries no noise: for the owner, not in `as_dict`.
        rounding: estimated error of that measurement; r + rounding ≤ τ. For the owner as well.
        strong_convexity: m, the weight decay of the retained objective in sum form.
        sigma: σ, standard deviation of the noise on every moving parameter.
        mu: μ of Gaussian differential privacy.
        epsilon: ε at this δ, from μ without slack.
        delta: δ.
        releases: published copies that this covers together.
        moving: names of the parameters that the certificate covers.
        frozen_buffers: buffers left as they were on the owner's word.
    """

    tau: float
    gradient_norm: float
    rounding: float
    strong_convexity: float
    sigma: float
    mu: float
    epsilon: float
    delta: float
    releases: int
    moving: tuple[str, ...]
    frozen_buffers: tuple[str, ...] = ()

    @property
    def scope(self) -> str:
        """Tell what the numbers are about."""
        buffers = f" and the buffers {', '.join(self.frozen_buffers)}" if self.frozen_buffers else ""
        covered = f"head: {', '.join(self.moving)}"
        return f"{covered}; the frozen part{buffers} is covered only if it never saw the person"

    @property
    def distance(self) -> float:
        """The working copy is at most this far from the minimum, (r + rounding)/m."""
        return (self.gradient_norm + self.rounding) / self.strong_convexity

    def as_dict(self) -> Json:
        """Return what may be published as JSON: r and its rounding are left out, for μ does not pay for them."""
        private = {"gradient_norm", "rounding"}
        public = {name: value for name, value in asdict(self).items() if name not in private}
        return as_json({**public, "scope": self.scope})


def resolve(  # noqa: PLR0913 - the tolerance and the three numbers of the noise are four promises
    recipe: Recipe,
    weights: Weights,
    *,
    retain_ids: Sequence[int],
    tolerance: float,
    epsilon: float,
    delta: float,
    sigma: float | None = None,
    seed: int | None = None,
    settings: Effort | None = None,
    progress: Progress | None = None,
) -> tuple[Update, Update, Certificate]:
    """Minimise the retained objective until |∇J_R| ≤ τ and return the working copy, the published one, the certificate.

    Args:
        recipe: the owner's recipe, convex in its moving parameters.
        weights: where to start: the last working copy, or fresh weights, which makes this the retraining.
        retain_ids: the samples that stay.
        tolerance: τ, a constant fixed before the data is looked at, and the same for retraining.
        epsilon: largest accepted ε of this release.
        delta: δ.
        sigma: noise; None takes the least that keeps ε.
        seed: of the noise, for tests alone: who knows it takes the noise off. None draws from the operating system.
        settings: effort.
        progress: called with a share in [0, 1].

    Returns:
        Un-noised weights to start the next re-solve from, never to be published; noised weights, whose report holds
        nothing measured; the certificate of one release.

    Raises:
        NotConvex: outputs not affine in the moving parameters, a loss not convex, or no weight decay.
        Uncertifiable: τ is below what this precision reaches, σ too small for ε or for the spacing of the weights.
        NothingToForget: no samples are left, or one appears twice.
        NotCovered: learned state lies outside the moving parameters.
    """
    settings = settings or Effort()
    model = Model(recipe, weights, frozen_buffers=settings.frozen_buffers)
    objective = Objective(model, _each_once(retain_ids), batch_size=settings.batch_size, cost=Cost())
    check_convex(objective)
    mu = _mu(2 * tolerance / objective.l2, epsilon=epsilon, delta=delta, sigma=sigma)
    sigma = 2 * tolerance / (objective.l2 * mu)
    found = minimum(objective, tolerance=tolerance, settings=settings, progress=progress or (lambda _: None))
    _check_resolution(objective, found, sigma)
    count = len(found.theta_P)
    noise_P = (drawn_once(count) if seed is None else drawn_with(seed, count)).to(found.theta_P)
    certificate = Certificate(
        tau=tolerance,
        gradient_norm=found.gradient_norm,
        rounding=found.rounding,
        strong_convexity=objective.l2,
        sigma=sigma,
        mu=mu,
        epsilon=epsilon_of(mu, delta=delta),
        delta=delta,
        releases=1,
        moving=tuple(model.names),
        frozen_buffers=model.frozen_buffers,
    )
    working = Update(model.state(found.theta_P), _report(objective, found))
    published = Update(model.state(found.theta_P + sigma * noise_P), _report(objective, None))
    return working, published, certificate


def compose(certificates: Sequence[Certificate], *, delta: float) -> Certificate:
    """Return what several published copies tell together: μ = √Σμ², adaptively chosen ones included (Dong et al. 2022).

    τ, r and rounding are the largest, m and σ the smallest of the list.

    Raises:
        Uncertifiable: no certificate is given, δ is not inside (0, 1), or a certificate's μ is no positive number.
    """
    if not certificates:
        raise Uncertifiable("nothing to compose: no certificate was given")
    mu = math.hypot(*(one.mu for one in certificates))
    return Certificate(
        tau=max(one.tau for one in certificates),
        gradient_norm=max(one.gradient_norm for one in certificates),
        rounding=max(one.rounding for one in certificates),
        strong_convexity=min(one.strong_convexity for one in certificates),
        sigma=min(one.sigma for one in certificates),
        mu=mu,
        epsilon=epsilon_of(mu, delta=delta),
        delta=delta,
        releases=sum(one.releases for one in certificates),
        moving=tuple(dict.fromkeys(name for one in certificates for name in one.moving)),
        frozen_buffers=tuple(dict.fromkeys(name for one in certificates for name in one.frozen_buffers)),
    )


def check_convex(objective: Objective) -> None:
    """Refuse an objective that is not strongly convex in the moving parameters, as far as random probes can see.

    Affine outputs: second differences along random lines, near and far, on random samples. Convex loss: eigenvalues of
    its Hessian in the outputs at random outputs. What no probe met is the recipe's promise.

    Raises:
        NotConvex: with the number that says so.
        NotCovered: learned state lies outside the moving parameters.
    """
    if objective.l2 <= 0:
        raise NotConvex(f"weight decay is {objective.l2:.3g}: without any, the minimum is not unique")
    check_coverage(objective)
    if objective.model.recomputed_buffers:
        raise NotConvex(f"the features move with the batch statistics {list(objective.model.recomputed_buffers)}")
    draw = torch.Generator().manual_seed(0)
    for scale in (1.0, 30.0):
        _check_affine(_few(objective, 256), scale, draw)
    _check_loss(_few(objective, 32), draw)


def _check_affine(few: Objective, scale: float, draw: torch.Generator) -> None:
    theta_P = few.model.theta_P
    scale *= 1 + float(theta_P.square().mean().sqrt())
    centre_P = theta_P + scale * torch.randn(len(theta_P), generator=draw, dtype=torch.float64).to(theta_P)
    line_P = scale * torch.randn(len(theta_P), generator=draw, dtype=torch.float64).to(theta_P)
    low, middle, high = (few.outputs(centre_P + t * line_P)[0].double() for t in (-1, 0, 1))
    bend, change = float((low - 2 * middle + high).abs().max()), float((high - low).abs().max())
    within = max(AFFINE_WITHIN, 1024 * spacing(few))
    if not bend <= within * change:  # written so that a NaN is refused
        raise NotConvex(
            f"the outputs are not affine in {few.model.names}: second difference {bend:.3g}, {within:.1g} of the first "
            f"({change:.3g}) allowed"
        )


def _check_loss(few: Objective, draw: torch.Generator) -> None:
    """Compare the lowest eigenvalue with the largest of all probes: near zero, far out, and where the model is now."""
    now, targets = few.outputs(few.model.theta_P)
    noise = torch.randn(now.shape, generator=draw, dtype=torch.float64).to(now)
    values_C = torch.cat([_curvatures(few, probe, targets) for probe in (noise, 30 * noise, now + noise)])
    lowest, largest = float(values_C.min()), float(values_C.abs().max())
    if not lowest >= -max(AFFINE_WITHIN, 1024 * spacing(few)) * largest:
        raise NotConvex(
            f"the loss is not convex in the outputs: its Hessian has eigenvalues from {lowest:.3g}, the largest is "
            f"{largest:.3g}"
        )


def _curvatures(few: Objective, outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the eigenvalues of every sample's loss Hessian in its outputs."""
    columns = [
        output_hessian(few, outputs, targets, e_C.reshape(outputs[0].shape).expand_as(outputs)).flatten(1)
        for e_C in torch.eye(outputs[0].numel()).to(outputs)
    ]
    values_NC: Tensor = torch.linalg.eigvalsh(torch.stack(columns, dim=2).double())
    return values_NC.flatten()


def _few(objective: Objective, count: int) -> Objective:
    order = torch.randperm(len(objective), generator=torch.Generator().manual_seed(0))
    ids = [objective.sample_ids[place] for place in order[:count].tolist()]
    return Objective(objective.model, ids, cost=objective.cost)


def _report(objective: Objective, found: Minimum | None) -> UpdateReport:
    """Tell how the solve went; without its minimum, only what is public anyway."""
    return UpdateReport(
        method="newton",
        complete=True,
        reason=None,
        forgotten_samples=0,
        retained_samples=len(objective),
        moving_parameters=len(objective.model.theta_P),
        trials=() if found is None else found.trials,
        step_norm=None if found is None else float((found.theta_P - objective.model.theta_P).norm()),
        forward_backwards=None if found is None else objective.cost.forward_backwards,
        frozen_buffers=objective.model.frozen_buffers,
    )


def _mu(sensitivity: float, *, epsilon: float, delta: float, sigma: float | None) -> float:
    """Return μ of the asked noise, or the largest that keeps (ε, δ)."""
    if not (0 < sensitivity < math.inf and 0 < epsilon < math.inf and 0 < delta < 1):
        raise Uncertifiable(f"sensitivity {sensitivity}, ε = {epsilon}, δ = {delta}: must be > 0 and finite, δ < 1")
    if sigma == math.inf:
        raise Uncertifiable("σ is infinite: there would be nothing left to publish")
    largest = mu_of(epsilon, delta=delta)
    if sigma is not None and not sigma * largest >= sensitivity:
        raise Uncertifiable(
            f"σ = {sigma:.3g} is too small for ε = {epsilon}, δ = {delta}: it takes {sensitivity / largest:.3g}"
        )
    return largest if sigma is None else sensitivity / sigma


def _check_resolution(objective: Objective, found: Minimum, sigma: float) -> None:
    """Refuse noise so fine that the weights' own grid would show through it."""
    least = SPACINGS_OF_NOISE * spacing(objective) * float(found.theta_P.abs().max())
    if not sigma >= least:
        raise Uncertifiable(f"σ = {sigma:.3g} is lost in the spacing of the weights: ask for at least {least:.3g}")


def _each_once(retain_ids: Sequence[int]) -> Sequence[int]:
    doubles = len(retain_ids) - len(set(retain_ids))
    if doubles or not retain_ids:
        raise NothingToForget(f"{len(retain_ids)} samples to retain, {doubles} of them twice: each must count once")
    return retain_ids
