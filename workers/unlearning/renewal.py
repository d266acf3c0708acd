"""Forget for good where a network knows its samples by heart: shrink towards a fresh draw, train briefly, pull S away.

    θ ← (1 − s)·θ + s·θ_fresh,   then mini-batches of  mean_R ℓ(θ) + mean_S KL(reference ‖ θ)

A step that moves an interpolating network's outputs on S hides the memory without removing it: one ordinary epoch on
the retained samples brings it back (ρ 2-5 again on the digits and vowel networks). Shrinking and perturbing the weights
(Ash & Adams 2020, there for warm starts) leaves the basin that holds the memory, and the references keep S out while R
is learned again. Measured at 5 % of a retraining (`make bench-unlearning`): ρ after that epoch 0.52 (digits, ordinary
people) and 1.14 (vowel), against 0.79 and 1.66 without the shrinking; where it does not arrive: docs/benchmarks.md.

Shape suffix: N samples of a batch.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from .bounds import above_zero, not_below_zero, one_of, plain_ids, whole, within
from .calibration import Law, check_law
from .errors import NonFinite, NotCovered
from .model import Model, Paced, Progress, Recipe, Weights, fetch
from .objective import Cost, Objective, check_coverage, check_sets
from .projection import same_shape
from .references import LEVELS, Level, References
from .report import Update, UpdateReport
from .rows import check_unreached, without_owned
from .statistics import with_statistics

_PROBE = 256  # samples on which coverage is checked


@dataclass(frozen=True)
class Renewal:
    """How far to step back and how long to train again.

    Attributes:
        shrink: s, the share of the weights that a fresh draw replaces; 0 makes it plain distillation.
        epochs_for_shrink: passes over R that such a step back needs to be learned again; with fewer, s is less in
            proportion. Without this no renewal of a short training passed its utility gate (docs/adr/0009).
        share: passes over R as a share of the owner's training.
        pull: weight of S against R; 0 leaves the references out.
        pull_share: samples of S per batch, as a share of the batch size.
        level: how several references become one target.
        statistics_samples: retained samples that batch statistics are estimated on.

    Raises:
        BadSetting: a value by which nothing would be renewed; the message names the field.
    """

    shrink: float = 0.3
    epochs_for_shrink: float = 6.0
    share: float = 0.04
    pull: float = 1.0
    pull_share: float = 0.25
    level: Level = "probabilities"
    statistics_samples: int = 4096

    def __post_init__(self) -> None:
        """Refuse what means nothing."""
        within(self, 0.0, 1.0, names=["shrink"])
        above_zero(self, names=["epochs_for_shrink", "share", "pull_share"])
        not_below_zero(self, names=["pull"])
        one_of("level", self.level, LEVELS)
        whole(self, least=1, names=["statistics_samples"])

    def step_back(self, epochs: float) -> float:
        """Return s for a training of so many epochs.

        >>> [Renewal().step_back(epochs) for epochs in (240, 60)]
        [0.3, 0.12]
        """
        return round(self.shrink * min(1.0, self.share * epochs / self.epochs_for_shrink), 12)


def renew(  # noqa: PLR0913 - model, sides, and what was fitted for it beforehand
    recipe: Recipe,
    weights: Weights,
    *,
    forget_ids: Sequence[int],
    retain_ids: Sequence[int],
    references: References,
    law: Law,
    seed: int,
    settings: Renewal = Renewal(),
    progress: Progress | None = None,
) -> Update:
    """Return weights that were renewed without the forgotten samples; the given weights are not written to.

    Args:
        recipe: the owner's recipe, with lr, batch_size and epochs (`Paced`).
        weights: the deployed state dict.
        forget_ids: samples of all users to forget.
        retain_ids: the samples that stay.
        references: out-of-fold predictions; only the teachers' are read.
        law: what the outputs mean.
        seed: of the fresh draw and of the order.
        settings: how far and how long.
        progress: called with a share in [0, 1].

    Raises:
        BadSetting: the law is none, or the recipe's pace trains nothing.
        NotCovered: the recipe does not tell how it trains, or learned state lies outside the moving parameters.
        NothingToForget: a set is empty, has doubles, or the two overlap.
        MissingReferences: a forgotten sample has none.
        ForeignReferences: the references have another shape than the outputs.
        RecipeMisbehaves: losses are not per sample, or retained samples reach rows that are to be erased.
        NonFinite: training diverged.
    """
    check_law(law)
    forget_ids, retain_ids = plain_ids(forget_ids), plain_ids(retain_ids)
    check_sets(forget_ids, retain_ids)
    paced = _paced(recipe)
    model, erased = without_owned(Model(recipe, weights), forget_ids)
    retained = Objective(model, retain_ids, batch_size=1024, cost=Cost())
    check_coverage(Objective(model, [*forget_ids[:_PROBE], *retain_ids[:_PROBE]], batch_size=_PROBE))
    check_unreached(Objective(model, retain_ids[:_PROBE], cost=retained.cost))
    walk = _Walk(retained, paced, seed, settings.share * paced.epochs)
    if settings.pull:
        target_N = references.target(forget_ids, repeats=references.teachers, level=settings.level, law=law)
        walk.pull(forget_ids, target_N, law=law, weight=settings.pull, share=settings.pull_share)
    theta_P = walk.run(_shrunk(model, settings.step_back(paced.epochs), seed), progress or (lambda _: None))
    state = with_statistics(retained, theta_P, samples=settings.statistics_samples)
    return Update(
        weights=state,
        report=replace(_report(model, theta_P, retained, forgotten=len(forget_ids), seed=seed), erased_rows=erased),
    )


def ordinary_epoch(
    recipe: Recipe, weights: Weights, retain_ids: Sequence[int], *, seed: int, epochs: float = 1.0
) -> dict[str, Tensor]:
    """Return the weights after further ordinary training on the retained samples: the resurrection test's question.

    Adam at the owner's rate and batch size, with fresh moments, as it has when an owner goes on from a checkpoint of
    weights. The module stays in eval mode, as everywhere in this library: dropout is off, batch statistics are kept and
    estimated anew at the end.

    Raises:
        NotCovered: the recipe does not tell how it trains.
        BadSetting: its pace trains nothing.
        NonFinite: training diverged.
    """
    model = Model(recipe, weights)
    retained = Objective(model, plain_ids(retain_ids))
    theta_P = _Walk(retained, _paced(recipe), seed, epochs).run(model.theta_P, lambda _: None)
    return with_statistics(retained, theta_P)


class _Walk:
    """Mini-batches of Adam over the retained samples, beside them some of S pulled to their references."""

    def __init__(self, retained: Objective, paced: Paced, seed: int, epochs: float) -> None:
        self.retained, self.paced = retained, paced
        self.draw = torch.Generator().manual_seed(seed)
        self.batches = max(1, math.ceil(epochs * math.ceil(len(retained) / paced.batch_size) - 1e-9))
        self._forget_ids: Sequence[int] = ()
        self._weight, self._beside = 0.0, 0

    def pull(self, forget_ids: Sequence[int], target_N: Tensor, *, law: Law, weight: float, share: float) -> None:
        """From now on every batch also pulls some of S to their references."""
        self._forget_ids, self._target_N, self._law = forget_ids, target_N, law
        self._weight, self._beside = weight, max(1, round(share * self.paced.batch_size))

    def run(self, theta_P: Tensor, progress: Progress) -> Tensor:
        """Return where the batches lead from here."""
        model = self.retained.model
        leaves = {name: tensor.clone().requires_grad_() for name, tensor in model.unflatten(theta_P).items()}
        decay = self.retained.l2 / len(self.retained)
        optimiser = torch.optim.Adam(list(leaves.values()), lr=self.paced.lr, weight_decay=decay)
        mine = _dealt(len(self.retained), self.paced.batch_size, self.batches, self.draw)
        beside = _dealt(len(self._forget_ids), self._beside, self.batches, self.draw)
        for number, (rows, others) in enumerate(zip(mine, beside, strict=True)):
            optimiser.zero_grad(set_to_none=True)
            with torch.enable_grad():
                (self._batch_loss(leaves, rows) + self._weight * self._pull_loss(leaves, others)).backward()  # type: ignore[no-untyped-call]  # torch publishes no type for it
            _hold(model, leaves)
            optimiser.step()
            progress((number + 1) / self.batches)
        return _arrived(model, leaves, theta_P)

    def _batch_loss(self, leaves: dict[str, Tensor], rows: Sequence[int]) -> Tensor:
        model = self.retained.model
        inputs, targets = fetch(model.recipe, [self.retained.sample_ids[row] for row in rows])
        self.retained.cost.add(len(rows), 1)
        return model.recipe.loss(model.call(leaves, inputs), targets).mean()

    def _pull_loss(self, leaves: dict[str, Tensor], rows: Sequence[int]) -> Tensor:
        if not rows:
            return torch.zeros(())
        model = self.retained.model
        inputs, _ = fetch(model.recipe, [self._forget_ids[row] for row in rows])
        outputs = model.call(leaves, inputs)
        target = same_shape(self._target_N[torch.tensor(rows)].to(outputs), outputs)
        self.retained.cost.add(len(rows), 1)
        if self._law == "plain":
            return 0.5 * (outputs - target).square().reshape(len(rows), -1).sum(1).mean()
        kl = functional.kl_div(outputs.log_softmax(-1), target.log_softmax(-1), reduction="none", log_target=True)
        return kl.reshape(len(rows), -1).sum(1).mean()


def _shrunk(model: Model, share: float, seed: int) -> Tensor:
    """Return (1 − s)·θ + s·θ_fresh; what is held still stays."""
    return model.theta_P + share * model.free(model.drawn(seed) - model.theta_P)


def _dealt(many: int, batch: int, batches: int, draw: torch.Generator) -> Iterator[list[int]]:
    """Yield batches of row numbers: shuffled pass after pass, empty ones where there is nothing to deal."""
    order: list[int] = []
    for _ in range(batches):
        if many and not order:
            order = torch.randperm(many, generator=draw).tolist()
        yield order[:batch]
        order = order[batch:]


def _hold(model: Model, leaves: dict[str, Tensor]) -> None:
    """Zero the slopes of what is held still; Adam then leaves it where it is."""
    if model.still_P is None:
        return
    for name, still in model.unflatten(model.still_P.double()).items():
        slope = leaves[name].grad
        if slope is not None:
            slope.masked_fill_(still.bool(), 0.0)


def _arrived(model: Model, leaves: dict[str, Tensor], before_P: Tensor) -> Tensor:
    """Return the flat weights; held-still ones exactly as before, whatever weight decay did to them."""
    after_P = model.flatten(leaves)
    if not bool(after_P.isfinite().all()):
        raise NonFinite("renewal diverged: a weight is NaN or infinite")
    return after_P if model.still_P is None else torch.where(model.still_P, before_P, after_P)


def _paced(recipe: Recipe) -> Paced:
    if not isinstance(recipe, Paced):
        raise NotCovered("the recipe has no lr, batch_size and epochs: renewal does not know how it trains")
    above_zero(recipe, names=["lr", "epochs"])
    whole(recipe, least=1, names=["batch_size"])
    return recipe


def _report(model: Model, theta_P: Tensor, retained: Objective, *, forgotten: int, seed: int) -> UpdateReport:
    return UpdateReport(
        method="renewal",
        complete=True,
        reason=None,
        forgotten_samples=forgotten,
        retained_samples=len(retained),
        moving_parameters=len(theta_P),
        step_norm=float((theta_P - model.theta_P).norm()),
        forward_backwards=retained.cost.forward_backwards,
        recomputed_buffers=model.recomputed_buffers,
        frozen_buffers=model.frozen_buffers,
        seed=seed,
    )
