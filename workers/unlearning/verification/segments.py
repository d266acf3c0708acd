"""Utility class by class and group by group: an average may hide that one class pays for the forgetting.

Within one segment the hits before and after are paired. The change of accuracy has the mean (b − c)/(n + 2) and the
variance ((b + c + 1) − (b − c)²/(n + 2))/(n + 2)², where b hits were lost and c gained: half a pair is added to each
cell, without which a segment in which nothing changed would be certain (Agresti & Min 2005). Losses use the mean and
its standard error. All p-values are corrected for the number of segments (Holm 1979), in both directions: a bad segment
is not passed, a lucky one out of many is not blamed.

A segment too small to pass, even if nothing were wrong, is *not judged*, and listed, unless it fails all the same.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Literal

import torch
from torch import Tensor

from ..evidence import holm
from ..report import Json
from .gate import Thresholds
from .scores import Answers

SegmentOutcome = Literal["passed", "failed", "inconclusive", "not judged"]
_NORMAL = NormalDist()
_DOUBTS = 0.1
"""Chance of any doubt about segments that are all unharmed, by their usual variance."""
_LEAST_LOSSES = 30
"""Below this many pairs a mean of losses is not close to normal."""


@dataclass(frozen=True)
class Segment:
    """One class or declared group on one side, before and after.

    Attributes:
        name: such as "class 2, strangers" or "group north, retained samples"; a class and a group never share one.
        pairs: samples compared.
        needed: samples with which the segments, if all are unharmed, all pass with probability 0.9.
        worsening: fall of accuracy, or rise of the mean loss where outputs are no classes.
        error: its standard error.
        margin: tolerated worsening.
        accuracy: before and after, for classes.
        loss: mean before and after.
        changed: share of predictions that changed, for classes.
        p_passing: of "worse by the margin", corrected; small where the segment is fine.
        p_failing: of "within the margin", corrected; small where the segment is harmed.
        outcome: passed, failed, inconclusive or not judged.
    """

    name: str
    pairs: int
    needed: int
    worsening: float
    error: float
    margin: float
    accuracy: tuple[float, float] | None
    loss: tuple[float, float]
    changed: float | None
    p_passing: float = math.nan
    p_failing: float = math.nan
    outcome: SegmentOutcome = "not judged"

    @property
    def sentence(self) -> str:
        """Tell what is wrong with it."""
        claim = "is worse" if self.outcome == "failed" else "could be worse"
        numbers = f"{self.worsening:.3g} ± {self.error:.2g}, margin {self.margin:.3g}, {self.pairs} pairs"
        return f"{self.name} {claim} by more than the margin ({numbers})."

    def as_dict(self, spread: Sequence[float]) -> Json:
        """Return JSON-able values, with the change as a multiple of what honest retrainings differ by."""
        usual = math.sqrt(sum(difference**2 for difference in spread) / len(spread)) if spread else 0.0
        in_spreads = abs(self.worsening) / usual if usual else None
        return {**self.__dict__, "worsening_in_retraining_spreads": in_spreads}


def by_segment(
    pairs: Mapping[str, tuple[Answers, Answers]],
    ids: Mapping[str, Sequence[int]],
    *,
    groups: Mapping[str, Sequence[int]],
    scale: float,
    thresholds: Thresholds,
) -> list[Segment]:
    """Judge every class and group on every side, corrected for their number.

    Args:
        pairs: answers before and after by side.
        ids: the sides' sample ids.
        groups: sample ids by declared group.
        scale: the mean size of the loss, of which margins on losses are a share.
        thresholds: levels and margins.
    """
    masks = [(side, *mask) for side in pairs for mask in _masks(pairs[side][0], ids[side], groups)]
    segments = []
    for side, name, mask_N in masks:
        before, after = (_only(answers, mask_N) for answers in pairs[side])
        usual = _variance(*pairs[side])
        segments.append(_measured(f"{name}, {side}", (before, after), usual, scale, thresholds, len(masks)))
    return _judged(segments, thresholds.alpha_utility)


def _masks(answers: Answers, ids: Sequence[int], groups: Mapping[str, Sequence[int]]) -> list[tuple[str, Tensor]]:
    """Say which of the side's samples belong to each class and each group."""
    classes = sorted(set(answers.targets.tolist())) if answers.are_classes else []
    of_classes = [(f"class {label}", answers.targets == label) for label in classes]
    inside = {name: set(members) for name, members in groups.items()}
    return of_classes + [(f"group {name}", torch.tensor([i in these for i in ids])) for name, these in inside.items()]


def _only(answers: Answers, mask_N: Tensor) -> Answers:
    return Answers(answers.outputs[mask_N], answers.targets[mask_N], answers.losses[mask_N])


def _variance(before: Answers, after: Answers) -> float:
    """Variance of the paired differences over the whole side: what a segment's may be expected to be."""
    worse_N = before.hits - after.hits if before.are_classes else after.losses - before.losses
    return float(worse_N.var(unbiased=False))


def _measured(
    name: str, pair: tuple[Answers, Answers], usual: float, scale: float, t: Thresholds, count: int
) -> Segment:
    before, after = pair
    classes, n = before.are_classes, len(before.losses)
    margin = t.segment_margin if classes else t.segment_loss_margin * scale
    worsening, error = _change_of_hits(before, after) if classes else _change_of_losses(before, after)
    return Segment(
        name=name,
        pairs=n,
        needed=_needed(usual, margin, t.alpha_utility, count=count, classes=classes),
        worsening=worsening,
        error=error,
        margin=margin,
        accuracy=(_mean(before.hits), _mean(after.hits)) if classes else None,
        loss=(_mean(before.losses), _mean(after.losses)),
        changed=_mean((before.labels != after.labels).double()) if classes else None,
    )


def _mean(values_N: Tensor) -> float:
    return float(values_N.mean()) if len(values_N) else math.nan


def _change_of_hits(before: Answers, after: Answers) -> tuple[float, float]:
    """Return the fall of accuracy and its standard error, by Agresti & Min's half pairs."""
    worse_N, n = before.hits - after.hits, len(before.losses) + 2
    lost, gained = int((worse_N > 0).sum()), int((worse_N < 0).sum())
    variance = ((lost + gained + 1) - (lost - gained) ** 2 / n) / n**2
    return (lost - gained) / n, math.sqrt(variance)


def _change_of_losses(before: Answers, after: Answers) -> tuple[float, float]:
    worse_N = after.losses - before.losses
    if len(worse_N) < _LEAST_LOSSES:
        return _mean(worse_N), math.inf
    return _mean(worse_N), float(worse_N.std()) / math.sqrt(len(worse_N))


def _needed(variance: float, margin: float, alpha: float, *, count: int, classes: bool) -> int:
    """Pairs to bound an unharmed segment: by its usual variance, and by the level if no hit changed (1 − margin)^n."""
    level = alpha / count
    reach = _NORMAL.inv_cdf(1 - level) + _NORMAL.inv_cdf(1 - _DOUBTS / count)
    by_variance = math.ceil(reach**2 * variance / margin**2) if margin > 0 else 0
    return max(by_variance, math.ceil(math.log(1 / level) / margin) if classes else _LEAST_LOSSES)


def _judged(segments: Sequence[Segment], alpha: float) -> list[Segment]:
    """Blame whatever is worse beyond chance, however small; let pass only what is large enough to be seen."""
    p_failing = _corrected(segments, lambda s: _NORMAL.cdf(-_distance(s)))
    large = [segment.pairs >= segment.needed for segment in segments]
    judged = (segment for segment, enough in zip(segments, large, strict=True) if enough)
    corrected = iter(_corrected(list(judged), lambda s: _NORMAL.cdf(_distance(s))))
    p_passing = [next(corrected) if enough else math.nan for enough in large]
    return [_settled(s, *p, alpha) for s, p in zip(segments, zip(p_passing, p_failing, strict=True), strict=True)]


def _corrected(segments: Sequence[Segment], p_value: Callable[[Segment], float]) -> list[float]:
    return holm([p_value(segment) for segment in segments])


def _settled(segment: Segment, p_passing: float, p_failing: float, alpha: float) -> Segment:
    outcome: SegmentOutcome = "passed" if p_passing <= alpha else "inconclusive"
    if math.isnan(p_passing):
        outcome = "not judged"
    if p_failing <= alpha:
        outcome = "failed"
    return replace(segment, p_passing=p_passing, p_failing=p_failing, outcome=outcome)


def _distance(segment: Segment) -> float:
    """How many standard errors the worsening lies above the margin; 0 where no error is known."""
    beyond = segment.worsening - segment.margin
    if not math.isfinite(segment.error):
        return 0.0
    return beyond / segment.error if segment.error > 0 else math.copysign(math.inf, beyond)
