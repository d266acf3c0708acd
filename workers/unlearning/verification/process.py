"""G4: are the deleted, taken together, indistinguishable from people whom the model never saw?

One request's test sees little; hundreds together see enough. Two audits roll over them:

1. Equivalence. The area A = P(T_deleted > T_never seen) lies in the band [0.45, 0.55] if both one-sided tests against
   its ends reject (TOST, Schuirmann 1987), with DeLong's standard error (1988). With n people per arm the error is
   about 1/√(6n) where A = ½, and the power of both tests together 2Φ(d√(6n) − z_α) − 1: for d = 0.05, α = 0.05 and
   power 0.8 that takes 572 per arm (413 give power 0.8 against one end, 0.6 against both).
2. Canaries. Of r sealed coin flips (was this canary trained on and deleted, or never there?) v were guessed rightly. A
   process that leaves people ε-indistinguishable lets at most a share e^ε/(1 + e^ε) be guessed, so
   ε ≥ logit(Clopper-Pearson lower bound of v/r) with confidence 1 − α (Steinke, Nasr & Jagielski 2023, pure form).

T must be comparable over requests: the calibrated statistic, or ranks among the strangers of the same verdict.
"""

import math
from dataclasses import dataclass
from statistics import NormalDist

from torch import Tensor

from ..errors import NothingToForget
from ..evidence import WORST_FIRST, Outcome, at_least, delong
from ..report import Json
from .gate import Gate

NAME = "G4 process"
_NORMAL = NormalDist()


@dataclass(frozen=True)
class ProcessThresholds:
    """What the process is held to.

    Attributes:
        alpha: chance of declaring equivalence when the area lies outside the band; of an ε bound that is too high.
        band: areas that count as "no different", around ½.
        power: chance to ask for of declaring equivalence when the area is ½.
        most_epsilon: largest proven ε.
    """

    alpha: float = 0.05
    band: tuple[float, float] = (0.45, 0.55)
    power: float = 0.8
    most_epsilon: float = 0.2


def process(
    deleted_T: Tensor,
    strangers_T: Tensor,
    *,
    canary_hits: tuple[int, int] | None = None,
    thresholds: ProcessThresholds = ProcessThresholds(),
) -> Gate:
    """Judge many deletions together.

    Args:
        deleted_T: T of each deleted user under the model published after the deletion, high where remembered.
        strangers_T: T of people never trained on.
        canary_hits: (right guesses v, guesses r) of the sealed audit; None if it was not run, and the gate says so.
        thresholds: levels and margins.

    Raises:
        NothingToForget: one arm is empty, or no canary was guessed.
    """
    if not len(deleted_T) or not len(strangers_T) or (canary_hits is not None and canary_hits[1] < 1):
        raise NothingToForget(f"{len(deleted_T)} deleted, {len(strangers_T)} never seen, canaries {canary_hits}")
    numbers = _equivalence(deleted_T, strangers_T, thresholds)
    if canary_hits is not None:
        numbers |= _canaries(*canary_hits, thresholds)
    found = [_of_area(numbers, thresholds), _of_canaries(numbers, thresholds)]
    outcome = min((outcome for outcome, _ in found), key=WORST_FIRST.index)
    return Gate(NAME, outcome, " ".join(sentence for _, sentence in found), numbers)


def needed_per_arm(thresholds: ProcessThresholds) -> int:
    """Return the people per arm with which both one-sided tests reject at A = ½ with the power asked for.

    >>> needed_per_arm(ProcessThresholds())
    572
    """
    reach = _NORMAL.inv_cdf(1 - thresholds.alpha) + _NORMAL.inv_cdf((1 + thresholds.power) / 2)
    wanted = min(0.5 - thresholds.band[0], thresholds.band[1] - 0.5) / reach
    n = math.ceil(1 / (6 * wanted**2))  # the error of n per arm is √((2n + 1)/(12 n²)), a little above 1/√(6n)
    return n if (2 * n + 1) / (12 * n * n) <= wanted**2 else n + 1


def _equivalence(deleted_T: Tensor, strangers_T: Tensor, t: ProcessThresholds) -> Json:
    area, error = delong(-deleted_T, -strangers_T)
    low, high = (area - t.band[0], t.band[1] - area)
    p_values = [
        1 - _NORMAL.cdf(room / error) if error > 0 else 1.0 for room in (low, high)
    ]  # a constant T sees nothing
    reach, per_arm = _NORMAL.inv_cdf(1 - t.alpha) * error, needed_per_arm(t)
    return {
        "deleted": len(deleted_T),
        "never_seen": len(strangers_T),
        "auc": area,
        "standard_error": error,
        "interval": [area - reach, area + reach],
        "interval_level": 1 - 2 * t.alpha,
        "band": list(t.band),
        "p_equivalence": max(p_values),
        "alpha_equivalence": t.alpha,
        "needed_per_arm": per_arm,
        "more_needed": {
            "deleted": max(0, per_arm - len(deleted_T)),
            "never_seen": max(0, per_arm - len(strangers_T)),
        },
    }


def _canaries(right: int, guesses: int, t: ProcessThresholds) -> Json:
    return {
        "canaries": guesses,
        "canaries_guessed": right,
        "epsilon_lower_bound": _epsilon(right, guesses, t.alpha),
        "epsilon_greatest_visible": _epsilon(guesses, guesses, t.alpha),
        "alpha_canaries": t.alpha,
    }


def _epsilon(right: int, guesses: int, alpha: float) -> float:
    share = at_least(right, guesses, alpha=alpha)
    return max(0.0, math.log(share / (1 - share))) if share > 0 else 0.0


def _of_area(n: Json, t: ProcessThresholds) -> tuple[Outcome, str]:
    low, high = n["interval"]
    arms = f"{n['deleted']} deleted against {n['never_seen']} never seen"
    told = f"AUC of {arms}: {n['auc']:.3f} ± {n['standard_error']:.3f}"
    if n["p_equivalence"] <= t.alpha:
        return "passed", f"{told}, within {t.band[0]} to {t.band[1]} (p = {n['p_equivalence']:.2g}, level {t.alpha})."
    if high < t.band[0] or low > t.band[1]:
        return "failed", f"{told}, outside {t.band[0]} to {t.band[1]}."
    more = n["more_needed"]
    wanted = f"{more['deleted']} more deleted and {more['never_seen']} more never seen for power {t.power}"
    return "inconclusive", f"{told}: neither inside nor outside {t.band[0]} to {t.band[1]}; it takes {wanted}."


def _of_canaries(n: Json, t: ProcessThresholds) -> tuple[Outcome, str]:
    if "canaries" not in n:
        return "passed", "No canaries were audited."
    told = f"{n['canaries_guessed']} of {n['canaries']} canaries guessed: ε ≥ {n['epsilon_lower_bound']:.2g}"
    if n["epsilon_lower_bound"] > t.most_epsilon:
        return "failed", f"{told}, more than {t.most_epsilon}."
    if n["epsilon_greatest_visible"] <= t.most_epsilon:
        return "inconclusive", f"{told}; so few could not have shown more than {n['epsilon_greatest_visible']:.2g}."
    return "passed", f"{told} with confidence {1 - t.alpha:.0%}, at most {t.most_epsilon}."
