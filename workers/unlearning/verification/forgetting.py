"""G3: each forgotten user among never-seen users, two-sided, with a positive control before deletion.

If the user is now like a stranger, the rank of its T among the m strangers is uniform, whatever the distribution
(conformal), so

    p_remembered = (1 + #{j: T_j ≥ T_u}) / (m + 1),   p_overforgotten = (1 + #{j: T_j ≤ T_u}) / (m + 1)

are valid p-values. Both tails count: "more forgotten than a stranger" points at the user as much as "still remembered".
Suppressed is not removed: where a candidate trained one further epoch on the retained samples is given, users who look
like members *there* were only hidden, and the gate fails.

Shape suffix: U users.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..calibration import Law
from ..evidence import Outcome, auc, chance_of, low_tail, wilson
from ..report import Json
from .gate import Gate, Sides, Thresholds, samples_of
from .oracle import distance_ratio
from .scores import Scores, user_means
from .standing import OutOfFold, Standing, Statistic

NAME = "G3 forgetting"
MOST_SHOWN = 300
"""So many statistics of each side go into the verdict, for the page; sorted, rounded, without ids."""


def forgetting(scores: Scores, sides: Sides, references: OutOfFold | None, thresholds: Thresholds) -> Gate:
    """Place each forgotten user among the strangers, before and after, and after one further epoch where it was run."""
    if not sides.strangers or not sides.members:
        return _no_yardstick(sides)
    statistic = Statistic(scores, sides, references)
    level = max(thresholds.alpha_each, 1 / (len(sides.strangers) + 1))
    before, after = (_Placed(*statistic.standings(model), level) for model in ("before", "after"))
    numbers: Json = {
        "statistic": statistic.name,
        "judges": statistic.judges,
        **_sizes_and_levels(sides, thresholds, level),
        **_of_users(scores, sides, before, after, alpha_job=thresholds.alpha_job),
        **_of_members(before, after),
        **_distances(scores, sides, references if statistic.judges else None),
    }
    if "after an epoch" in scores.names:
        numbers["resurrection"] = _resurrection(_Placed(*statistic.standings("after an epoch"), level))
    return Gate(NAME, *_outcome(numbers, thresholds), numbers)


@dataclass(frozen=True)
class _Placed:
    """Everybody's T under one model, with ranks among the strangers."""

    by_confidence: Standing
    by_loss: Standing
    level: float

    def remembered(self, *, by_loss: bool = False) -> list[float]:
        standing = self.by_loss if by_loss else self.by_confidence
        return _high(standing.users, standing.strangers)

    def flagged(self) -> int:
        return sum(p <= self.level for p in self.remembered())

    def chance(self) -> float:
        """Chance of so many flags if all were forgotten."""
        standing = self.by_confidence
        users, strangers = len(standing.users), len(standing.strangers)
        return chance_of(self.flagged(), users=users, strangers=strangers, level=self.level)

    def overforgotten(self) -> list[float]:
        turned = self.by_confidence.reversed()
        return _high(turned.users, turned.strangers)

    def members_recognised(self) -> float:
        standing = self.by_confidence
        p = _high(standing.members, standing.strangers)
        return sum(value <= self.level for value in p) / len(p)

    def area(self) -> float:
        """Chance that a member stands above a stranger."""
        turned = self.by_confidence.reversed()
        return auc(turned.members, turned.strangers)

    def shown(self) -> Json:
        standing = self.by_confidence
        sides = {"strangers": standing.strangers, "members": standing.members}
        return {"users": _rounded(standing.users), **{side: _rounded(_some(of_U)) for side, of_U in sides.items()}}


def _high(values_U: Tensor, strangers: Tensor) -> list[float]:
    p_values: list[float] = low_tail(-values_U, -strangers).tolist()
    return p_values


def _some(values_U: Tensor) -> Tensor:
    """Sort, and keep evenly spaced ranks where there are many: a distribution, and nobody's place in a list."""
    ordered = values_U.sort().values
    picked = torch.linspace(0, len(ordered) - 1, min(len(ordered), MOST_SHOWN)).round().long()
    return ordered[picked]


def _rounded(values_U: Tensor) -> list[float]:
    return [float(f"{value:.4g}") for value in values_U.tolist()]


def _no_yardstick(sides: Sides) -> Gate:
    strangers, members = len(sides.strangers), len(sides.members)
    sentence = f"{strangers} strangers and {members} members are no yardstick; both are needed."
    numbers: Json = {"strangers": strangers, "members": members, "users": len(sides.users)}
    return Gate(NAME, "inconclusive", sentence, numbers)


def _sizes_and_levels(sides: Sides, t: Thresholds, level: float) -> Json:
    return {
        "strangers": len(sides.strangers),
        "users": len(sides.users),
        "members": len(sides.members),
        "alpha_each_tail": level,
        "alpha_job_each_tail": t.alpha_job,
        "smallest_possible_p": 1 / (len(sides.strangers) + 1),
        "expected_false_alarms": 2 * level * len(sides.users),
    }


def _of_users(scores: Scores, sides: Sides, before: _Placed, after: _Placed, *, alpha_job: float) -> Json:
    losses = {model: scores.answers(model, samples_of(sides.users)).losses for model in ("before", "after")}
    return {
        "p_before": before.remembered(),
        "p_remembered": after.remembered(),
        "p_overforgotten": after.overforgotten(),
        "p_remembered_by_loss": after.remembered(by_loss=True),
        "unchanged_would_fail": before.chance() <= alpha_job,
        "share_of_the_way": _share_of_the_way(before.by_confidence, after.by_confidence),
        "mean_loss_before": user_means(losses["before"], sides.users).tolist(),
        "mean_loss_after": user_means(losses["after"], sides.users).tolist(),
    }


def _of_members(before: _Placed, after: _Placed) -> Json:
    members, power = len(before.by_confidence.members), before.members_recognised()
    return {
        "power_on_members": power,
        "power_interval_95": wilson(power, members),
        "beta_on_members": 1 - power,
        "auc_members_before": before.area(),
        "auc_members_after": after.area(),
        "statistics_before": before.shown(),
        "statistics_after": after.shown(),
    }


def _distances(scores: Scores, sides: Sides, references: OutOfFold | None) -> Json:
    """Report, without deciding, how far the model is from the judges on the users' samples: 1 is as far as they are."""
    if references is None or len(references.judges) < 2:
        return {}
    ids = samples_of(sides.users)
    judged = list(references.of(ids, repeats=references.judges))
    answers = {model: scores.answers(model, ids) for model in ("before", "after")}
    law: Law = "softmax" if answers["before"].are_classes else "plain"
    ratios = {model: distance_ratio(given.outputs, judged, law)[0] for model, given in answers.items()}
    return {"reference_distance_ratio": ratios["after"], "reference_distance_ratio_before": ratios["before"]}


def _share_of_the_way(before: Standing, after: Standing) -> list[float]:
    """Return for each user how much of its lead over the strangers' median is gone; all, where it had none."""
    lead_U, left_U = before.users - before.strangers.median(), after.users - after.strangers.median()
    shares: list[float] = torch.where(lead_U > 0, 1 - left_U / lead_U, 1.0).tolist()
    return shares


def _resurrection(placed: _Placed) -> Json:
    told: Json = {"p_remembered": placed.remembered(), "flagged": placed.flagged(), "chance": placed.chance()}
    return {**told, "statistics": placed.shown()}


def _outcome(n: Json, t: Thresholds) -> tuple[Outcome, str]:
    """Failures speak first; then what the test could not have seen."""
    if n["strangers"] < t.few_strangers:
        least = 1 / (n["strangers"] + 1)
        told = f"{n['strangers']} strangers allow no p-value below {least:.2g}; {t.few_strangers} are needed."
        return "inconclusive", told
    if found := _stands_out(n, t):
        return "failed", found
    if found := _blind(n, t):
        return "inconclusive", found
    hidden, power = sum(p > t.visible_below for p in n["p_before"]), n["power_on_members"]
    return "passed", (
        f"No remaining influence was detected by a two-sided user-level test against {n['strangers']} strangers at "
        f"level {n['alpha_each_tail']:.2g} per tail; before deletion it recognised {power:.0%} of {n['members']} "
        f"members.{_little_to_forget(n, hidden)}"
    )


def _stands_out(n: Json, t: Thresholds) -> str | None:
    level, m = n["alpha_each_tail"], n["strangers"]
    claims = {"p_remembered": "still look like members", "p_overforgotten": "stand out as forgotten"}
    for tail, claim in claims.items():
        flagged = sum(p <= level for p in n[tail])
        chance = chance_of(flagged, users=n["users"], strangers=m, level=level)
        if chance <= t.alpha_job:
            told = f"{flagged} of {n['users']} users {claim} (p ≤ {level:.2g}, {m} strangers)"
            return f"{told}; so many by chance: {chance:.2g}."
    again = n.get("resurrection")
    if again and again["chance"] <= t.alpha_job:
        told = (
            f"After one more epoch on the retained samples {again['flagged']} of {n['users']} users look like members"
        )
        return f"{told} again (by chance: {again['chance']:.2g}): the memory is suppressed, not removed."
    return None


def _blind(n: Json, t: Thresholds) -> str | None:
    """Say why silence means little here: the unchanged model would have passed too, or nobody is recognised.

    Where the unchanged model would have passed, users whom it half knew must have come half the way to the strangers'
    median; of users whom it did not seem to know nothing can be said.
    """
    hidden, power = sum(p > t.visible_below for p in n["p_before"]), n["power_on_members"]
    if hidden and (power < t.power_asked or not n["unchanged_would_fail"]):
        return (
            f"{hidden} of {n['users']} users were not distinguishable from strangers before deletion, and the test "
            f"recognises {power:.0%} of members: its silence means little, or there was little to forget."
        )
    stayed = sum(share < 0.5 for share in n["share_of_the_way"])
    if stayed and not n["unchanged_would_fail"]:
        return f"{stayed} of {n['users']} users came less than half the way to the strangers, unseen at this level."
    return None


def _little_to_forget(n: Json, hidden: int) -> str:
    """A model that knew little of somebody must be reported as such."""
    return (
        f" {hidden} of {n['users']} users were like strangers before it: there was little to forget." if hidden else ""
    )
