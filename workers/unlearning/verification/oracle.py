"""G5: how near is the model to true retrainings, in units of how near retrainings are to each other?

    ρ = mean_i mean_r D(retrained_r, unlearned)_i / mean_i mean_{r≠s} D(retrained_r, retrained_s)_i

D is the KL divergence KL(retrained ‖ other) for classes and the squared difference otherwise. ρ = 1 is one more
retraining. Retraining is what unlearning wants to avoid, so this gate runs now and then, on a batch chosen by lot.

Shape suffixes: U users, N samples, R retrainings.
"""

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..calibration import Law, divergence
from ..errors import TooFewRetrainings
from ..evidence import Outcome
from ..report import Json
from .gate import Gate
from .scores import user_means

NAME = "G5 oracle"
LEAST_RETRAININGS = 3
_ROUNDS = 2000


def distance_ratio(outputs_u: Tensor, retrained: Sequence[Tensor], law: Law) -> tuple[float, float]:
    """Return (ρ, floor): the distance to the retrainings over the floor, and the floor itself.

    Args:
        outputs_u: the unlearned model's outputs on some samples, shape (N, ...).
        retrained: each retraining's outputs on the same samples.
        law: "softmax" for class logits on the last axis, "plain" for numbers.

    Returns:
        ρ is infinite where retrainings agree to the bit and the model does not, and 1 where it agrees with them too.

    Raises:
        TooFewRetrainings: fewer than two.
    """
    far_N, floor_N = _distances(outputs_u, retrained, law)
    return _ratio(float(far_N.mean()), float(floor_N.mean())), float(floor_N.mean())


def oracle(
    outputs_u: Tensor,
    retrained: Sequence[Tensor],
    *,
    sizes: Sequence[int],
    law: Law,
    most: float = 1.5,
    seed: int = 0,
) -> Gate:
    """Judge one batch: passed where the 95 % interval of ρ over users ends below `most`, failed where it starts above.

    Args:
        outputs_u: the unlearned model's outputs on the users' samples, user by user.
        retrained: each retraining's outputs on the same samples.
        sizes: samples of each user, in that order.
        law: as for `distance_ratio`.
        most: the largest ρ that is called near.
        seed: of the bootstrap over users (Efron 1979, percentiles).

    Raises:
        TooFewRetrainings: fewer than two.
    """
    far_N, floor_N = _distances(outputs_u, retrained, law)
    rho = _ratio(float(far_N.mean()), float(floor_N.mean()))
    numbers: Json = {
        "distance_ratio": rho,
        "interval_95": _interval(far_N, floor_N, sizes, seed),
        "floor": float(floor_N.mean()),
        "retrainings": len(retrained),
        "users": len(sizes),
        "most": most,
        "law": law,
    }
    return Gate(NAME, *_outcome(numbers), numbers)


def _distances(outputs_u: Tensor, retrained: Sequence[Tensor], law: Law) -> tuple[Tensor, Tensor]:
    """Return per sample the mean distance to the retrainings and the mean distance among them."""
    if len(retrained) < 2:
        raise TooFewRetrainings(f"{len(retrained)} retrainings have no distance between them: 2 are needed")
    far_RN = torch.stack([divergence(one, outputs_u, law=law) for one in retrained])
    among = [divergence(a, b, law=law) for a, b in itertools.permutations(retrained, 2)]
    return far_RN.mean(0), torch.stack(among).mean(0)


def _ratio(far: float, floor: float) -> float:
    if floor > 0:
        return far / floor
    return math.inf if far > 0 else 1.0


def _interval(far_N: Tensor, floor_N: Tensor, sizes: Sequence[int], seed: int) -> list[float] | None:
    """Draw users with their samples, not samples: one person's samples go together."""
    if len(sizes) < 2:
        return None
    groups, weight_U = [range(n) for n in sizes], torch.tensor(sizes, dtype=torch.float64)
    far_U, floor_U = (user_means(values_N, groups) * weight_U for values_N in (far_N, floor_N))
    drawn = torch.randint(len(sizes), (_ROUNDS, len(sizes)), generator=torch.Generator().manual_seed(seed))
    ratios = [_ratio(a, b) for a, b in zip(far_U[drawn].sum(1).tolist(), floor_U[drawn].sum(1).tolist(), strict=True)]
    ratios.sort()
    return [ratios[math.floor(0.025 * _ROUNDS)], ratios[math.ceil(0.975 * _ROUNDS) - 1]]


def _outcome(n: Json) -> tuple[Outcome, str]:
    interval, seeds = n["interval_95"], n["retrainings"]
    told = f"ρ = {n['distance_ratio']:.3g} over {n['users']} users and {seeds} retrainings"
    if interval is None or seeds < LEAST_RETRAININGS:
        return "inconclusive", f"{told}: an interval takes 2 users and {LEAST_RETRAININGS} retrainings."
    told = f"{told}, 95 % interval {interval[0]:.3g} to {interval[1]:.3g}"
    if interval[1] <= n["most"]:
        return "passed", f"{told}: within {n['most']} times the distance between retrainings."
    outcome: Outcome = "failed" if interval[0] > n["most"] else "inconclusive"
    return outcome, f"{told}: asked is at most {n['most']}."
