"""G2: paired one-sided non-inferiority on retained and never-seen samples, over all and segment by segment.

Margins on losses are a share of the mean *size* of the loss, |loss|, on people the model never saw: the same as the
mean where losses are positive, and still a tolerance where they are logarithms of densities and fall below zero.
"""

from collections.abc import Mapping, Sequence

import torch

from ..evidence import Outcome, non_inferior
from ..report import Json
from .gate import Gate, Sides, Thresholds, failed, samples_of
from .scores import Answers, Scores, user_means
from .segments import Segment, by_segment

NAME = "G2 utility"
Pair = tuple[Answers, Answers]
"""Answers before and after, to the same samples."""


def utility(
    scores: Scores,
    sides: Sides,
    thresholds: Thresholds,
    *,
    groups: Mapping[str, Sequence[int]],
    spread: Sequence[float],
    exact: bool,
) -> Gate:
    """Hold every paired comparison to its margin; the worst one speaks.

    Args:
        scores: the models "before" and "after".
        sides: whose samples are compared.
        thresholds: levels and margins.
        groups: sample ids per declared group; ids outside the sides are left out.
        spread: differences between honest retrainings (of accuracy, or of mean loss where outputs are no classes); each
            segment's change is reported as a multiple of their root mean square.
        exact: the candidate was retrained; a segment then raises a doubt at most, since seeds move segments too.
    """
    ids = _samples(sides)
    pairs = {side: (scores.answers("before", of), scores.answers("after", of)) for side, of in ids.items()}
    scale = float(list(pairs.values())[-1][0].losses.abs().mean())  # on people it never saw, where there are any
    checks = _checks(pairs, sides, thresholds, scale)
    segments = by_segment(pairs, ids, groups=groups, scale=scale, thresholds=thresholds)
    numbers: Json = {
        "checks": checks,
        "alpha": thresholds.alpha_utility,
        "loss_scale": scale,
        "output_spread_ratio": {side: _spread_ratio(*pair) for side, pair in pairs.items()},
        "changed_predictions": {side: _changed(*pair) for side, pair in pairs.items() if pair[0].are_classes},
        "segments": [segment.as_dict(spread) for segment in segments],
        "segments_not_judged": [segment.name for segment in segments if segment.outcome == "not judged"],
        "retraining_spread": list(spread),
    }
    flat = [side for side, ratio in numbers["output_spread_ratio"].items() if not ratio >= thresholds.least_spread]
    if flat:
        return failed(NAME, f"Outputs are all but constant on {' and '.join(flat)}.", numbers)
    return Gate(NAME, *_worst(checks, segments, exact=exact), numbers)


def _samples(sides: Sides) -> dict[str, Sequence[int]]:
    seen: dict[str, Sequence[int]] = {"retained samples": sides.retained_ids}
    return {**seen, "strangers": samples_of(sides.strangers)} if sides.strangers else seen


def _checks(pairs: Mapping[str, Pair], sides: Sides, t: Thresholds, scale: float) -> dict[str, Json]:
    """Compare losses and, for classes, accuracy on each side; strangers' losses user by user."""
    checks = {}
    for side, (before, after) in pairs.items():
        rise = after.losses - before.losses
        name, worse = f"loss, {side}", rise
        if side == "strangers":
            name, worse = f"loss, {side} by user", user_means(rise, sides.strangers)
        checks[name] = non_inferior(worse, margin=t.loss_margin * scale, alpha=t.alpha_utility)
    for side, (before, after) in pairs.items():
        if before.are_classes:
            lost = before.hits - after.hits
            checks[f"accuracy, {side}"] = non_inferior(lost, margin=t.accuracy_margin, alpha=t.alpha_utility)
    return checks


def _worst(checks: Mapping[str, Json], segments: Sequence[Segment], *, exact: bool) -> tuple[Outcome, str]:
    """Return the worst outcome among checks and judged segments, and its sentence."""
    failed_ones = {name: c for name, c in checks.items() if c["outcome"] == "failed"}
    doubts = {name: c for name, c in checks.items() if c["outcome"] == "inconclusive"}
    worse = [segment for segment in segments if segment.outcome == "failed"]
    unclear = [segment for segment in segments if segment.outcome == "inconclusive"]
    if failed_ones:
        return "failed", _told(failed_ones, "is worse by more than the margin")
    if worse:
        return "inconclusive" if exact else "failed", worse[0].sentence
    if doubts:
        return "inconclusive", _told(doubts, "could be worse by more than the margin: too few samples")
    if unclear:
        return "inconclusive", unclear[0].sentence
    return "passed", _passing(len(checks), segments)


def _told(checks: Mapping[str, Json], claim: str) -> str:
    name, c = next(iter(checks.items()))
    numbers = f"mean {c['mean_worsening']:.3g}, bound {c['upper_bound']:.3g}, margin {c['margin']:.3g}"
    return f"{name} {claim} ({numbers}, {c['pairs']} pairs)."


def _passing(checks: int, segments: Sequence[Segment]) -> str:
    skipped = sum(segment.outcome == "not judged" for segment in segments)
    of_segments = f" and in {len(segments) - skipped} classes or groups" if len(segments) > skipped else ""
    left = f" {skipped} classes or groups have too few samples to be judged." if skipped else ""
    return f"No worse than the margin in {checks} paired comparisons{of_segments}.{left}"


def _spread_ratio(before: Answers, after: Answers) -> float:
    return after.spread / before.spread if before.spread else 1.0  # constant before: not our doing


def _changed(before: Answers, after: Answers) -> float:
    return float(torch.ne(before.labels, after.labels).double().mean())
