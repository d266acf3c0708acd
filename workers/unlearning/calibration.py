"""Honest retrainings and how far they differ: the noise floor that every distance is read against.

No method can be asked to be closer to *one* retraining than retrainings are to each other. The floor of a score set S
is the mean divergence over ordered pairs of retrainings on the same people with different seeds. Pairs share
retrainings, so their values are not independent; the standard error comes from leaving one retraining out at a time.

The people who calibrate the judges are chosen here too, by a keyed hash of the person and the seed: the choice depends
neither on the order of the list nor on the version of a library, and a sealed seed seals it.

Shape suffix: N samples. Outputs have any further shape; classes are the last axis.
"""

import hashlib
import itertools
import math
import statistics
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn

from .bounds import one_of
from .errors import NotDealable, RecipeMisbehaves, TooFewRetrainings, WeightsDoNotFit
from .model import Progress, Recipe, Weights, build, fetch, one_tensor, split_arguments
from .objective import require_finite
from .retrain import retrain

Law = Literal["softmax", "plain"]
"""What outputs mean: "softmax" for class logits on the last axis (cross-entropy), "plain" for numbers (regression)."""

LAWS = "softmax", "plain"

Person = TypeVar("Person", bound=Hashable)


@dataclass(frozen=True)
class NoiseFloor:
    """How far honest retrainings differ on one set of samples.

    Attributes:
        seeds: of the retrainings, in order.
        pairs: (seed a, seed b) → mean divergence of b from a over the samples, both directions.
        samples: how many were scored.
    """

    seeds: tuple[int, ...]
    pairs: Mapping[tuple[int, int], float]
    samples: int

    @property
    def mean(self) -> float:
        """The floor: the mean over ordered pairs."""
        return statistics.fmean(self.pairs.values())

    @property
    def spread(self) -> float:
        """The standard deviation of the pairs' values around their mean: how much one pair's reading varies."""
        return statistics.stdev(self.pairs.values())

    @property
    def standard_error(self) -> float:
        """The jackknife standard error of the mean, one retraining left out at a time."""
        left = [statistics.fmean(v for pair, v in self.pairs.items() if seed not in pair) for seed in self.seeds]
        return math.sqrt((len(left) - 1) * statistics.pvariance(left))


def noise_floor(
    recipe: Recipe,
    retain_ids: Sequence[int],
    score_ids: Sequence[int],
    *,
    seeds: Sequence[int],
    law: Law,
    keep: Callable[[int, Weights], None] | None = None,
    progress: Progress | None = None,
) -> NoiseFloor:
    """Retrain on the same samples with every seed and return how far the results differ on the scored ones.

    Args:
        recipe: must also be a `Trains`.
        retain_ids: the samples trained on.
        score_ids: the samples compared on, normally those of the people to forget.
        seeds: three or more different ones.
        law: what the outputs mean.
        keep: called with each seed and its retrained weights, so that other measurements need not train again.
        progress: called with a share in [0, 1], inside the trainings too.

    Raises:
        TooFewRetrainings: fewer than three different seeds.
        NotTrainable: the recipe has no `train`.
        RecipeMisbehaves: `train` returned another module than `build`, or outputs are not one row per sample.
    """
    if len(seeds) < 3 or len(set(seeds)) < len(seeds):
        raise TooFewRetrainings(
            f"{len(set(seeds))} different seeds of {len(seeds)}: 3 or more, all different, give one"
        )
    outputs: dict[int, Tensor] = {}
    for step, seed in enumerate(seeds):
        weights = trained(recipe, retain_ids, seed=seed, progress=part_of(progress, step, len(seeds)))
        outputs[seed] = predict(recipe, weights, score_ids)
        if keep is not None:
            keep(seed, weights)
    pairs = {(a, b): _apart(outputs[a], outputs[b], law) for a, b in itertools.permutations(seeds, 2)}
    return NoiseFloor(tuple(seeds), pairs, len(score_ids))


def choose_held_out(users: Sequence[Person], share: float, *, seed: int) -> tuple[list[Person], list[Person]]:
    """Split people into (members, held out), round(share·n) held out and at least one on either side, in given order.

    Raises:
        NotDealable: a person is listed twice, or one side would be empty.
    """
    count = round(share * len(users))
    if not 0 < count < len(users) or len(set(users)) < len(users):
        raise NotDealable(f"{count} of {len(users)} people ({len(set(users))} different) cannot be held out")
    held_out = set(_by_lot(users, f"{seed}/held out")[:count])
    return [user for user in users if user not in held_out], [user for user in users if user in held_out]


def draw_canaries(users: Sequence[Person], *, count: int, seed: int) -> tuple[list[Person], list[Person]]:
    """Choose canaries among people held out and flip a fair coin for each: (trained on, not trained on).

    The coins are independent, as auditing in one training run asks (Steinke, Nasr & Jagielski 2023), so the two sides
    rarely have the same size; both keep the given order. Whoever judges the canaries must not know the seed.

    Raises:
        NotDealable: fewer people than canaries, or a person is listed twice.
    """
    if not 0 < count <= len(users) or len(set(users)) < len(users):
        raise NotDealable(f"{count} canaries asked of {len(users)} people, {len(set(users))} of them different")
    chosen = set(_by_lot(users, f"{seed}/canaries")[:count])
    inside = {user for user in chosen if number(f"{seed}/coin/{user}") & 1}
    outside = chosen - inside
    return [user for user in users if user in inside], [user for user in users if user in outside]


def trained(recipe: Recipe, sample_ids: Sequence[int], *, seed: int, progress: Progress | None = None) -> Weights:
    """Return the weights of one honest training; the caller's random state is left alone.

    Raises:
        NotTrainable: the recipe has no `train`.
        RecipeMisbehaves: `train` returned another module than `build`.
        NonFinite: the training diverged.
    """
    try:
        return retrain(recipe, sample_ids, seed=seed, progress=progress).weights
    except WeightsDoNotFit as misfit:
        raise RecipeMisbehaves(f"train() returned another module than build(): {misfit}") from misfit


def predict(recipe: Recipe, weights: Weights, sample_ids: Sequence[int], *, batch_size: int = 1024) -> Tensor:
    """Return the network's raw outputs in eval mode, shape (N, *outputs), float32, on the CPU.

    Raises:
        RecipeMisbehaves: the outputs are not one floating-point row per sample.
        NonFinite: an output is NaN or infinite.
    """
    module = build(recipe)
    module.load_state_dict(dict(weights))
    module.eval()
    starts = range(0, len(sample_ids), batch_size)
    with torch.no_grad(), torch.random.fork_rng():
        return torch.cat([_rows(recipe, module, sample_ids[start : start + batch_size]) for start in starts])


def divergence(expected: Tensor, given: Tensor, *, law: Law) -> Tensor:
    """Return how far `given` is from `expected` for every sample, shape (N,), float64.

    KL(expected ‖ given) in nats under the softmax law, the squared difference under the plain one; a mean over output
    positions other than the classes.

    Raises:
        RecipeMisbehaves: under the softmax law, there is no axis of two or more classes.
    """
    check_law(law)
    a, b = expected.double(), given.double()
    apart = (a - b).square() if law == "plain" else _kl(log_probabilities(a), log_probabilities(b))
    return apart.reshape(len(a), -1).mean(1)


def check_law(law: str) -> None:
    """Refuse a word for the outputs' law that nobody knows.

    Raises:
        BadSetting: naming the known ones.
    """
    one_of("law", law, LAWS)


def log_probabilities(logits: Tensor) -> Tensor:
    """Return log softmax over the last axis, refusing outputs that have no classes there."""
    if logits.ndim < 2 or logits.shape[-1] < 2:
        raise RecipeMisbehaves(f"outputs {tuple(logits.shape)} have no axis of 2 or more classes: use the plain law")
    return logits.log_softmax(-1)


def part_of(progress: Progress | None, step: int, steps: int) -> Progress:
    """Map the share of one step onto its part of the whole."""
    return lambda share: progress((step + min(max(share, 0.0), 1.0)) / steps) if progress else None


def number(text: str) -> int:
    """Return 64 bits that any Python computes alike."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def _by_lot(users: Sequence[Person], key: str) -> list[Person]:
    return sorted(users, key=lambda user: number(f"{key}/{user}"))


def _apart(expected: Tensor, given: Tensor, law: Law) -> float:
    return float(divergence(expected, given, law=law).mean())


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def _rows(recipe: Recipe, module: nn.Module, sample_ids: Sequence[int]) -> Tensor:
    arguments, named = split_arguments(fetch(recipe, sample_ids)[0])
    outputs = one_tensor(module(*arguments, **named))
    if outputs.ndim == 0 or len(outputs) != len(sample_ids) or not outputs.is_floating_point():
        raise RecipeMisbehaves(f"outputs {tuple(outputs.shape)}, {outputs.dtype} for {len(sample_ids)} samples")
    require_finite("a prediction", outputs)
    return outputs.float().cpu()
