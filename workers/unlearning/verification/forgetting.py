"""G3: each forgotten user among never-seen users, two-sided, with a positive control before deletion.

If the user is now like a stranger, the rank of its T among the m strangers is uniform, whatever the distribution
(conformal), so

    p_remembered = (1 + #{j: T_j ≥ T_u}) / (m + 1),   p_overforgotten = (1 + #{j: T_j ≤ T_u}) / (m + 1)

are valid p-values. Both tails count: "more forgotten than a stranger" points at the user as much as "still remembered".
Several users are also tested together, by their rank sum: six who all stand a little too high are no chance either.
Users who stand high among the strangers and have come less than half the way to them raise a doubt; a T that is no
number is a failure. The share of members that was recognised before is the test's power, told with its lower bound;
of few members none is told, and nothing passes. Suppressed is not removed: where a candidate trained one further epoch
on the retained samples is given, users who look like members *there* were only hidden, and the gate fails.

Shape suffix: U users.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..calibration import Law
from ..evidence import Outcome, at_least, auc, chance_of, delong, low_tail, together, wilson
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
    placed = {model: _Placed(*statistic.standings(model), level) for model in scores.names}
    if unplaced := {model: count for model, standing in placed.items() if (count := standing.not_numbers())}:
        return _no_numbers(unplaced)
    before, after = placed["before"], placed["after"]
    numbers: Json = {
        "statistic": statistic.name,
        "judges": statistic.judges,
        **_sizes_and_levels(sides, thresholds, level),
        **_of_users(before, after),
        **_losses(scores, sides),
        "unchanged_would_fail": _fails(before.flagged(), before.together(), sides, thresholds, level),
        **_of_members(before, after),
        **_distances(scores, sides, references if statistic.judges else None),
    }
    if "after an epoch" in placed:
        numbers["resurrection"] = _resurrection(placed["after an epoch"])
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

    def not_numbers(self) -> int:
        """Count the people whose T is NaN under either statistic."""
        pairs = zip(self.by_confidence.sides, self.by_loss.sides, strict=True)
        return sum(int((of_U.isnan() | by_loss_U.isnan()).sum()) for of_U, by_loss_U in pairs)

    def together(self) -> float | None:
        """Return p of all users' standing so high together, where there are several."""
        return _together(self.by_confidence)

    def overforgotten_together(self) -> float | None:
        """Return the same for the other tail."""
        return _together(self.by_confidence.reversed())

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

    def members_recognised(self) -> int:
        standing = self.by_confidence
        return sum(p <= self.level for p in _high(standing.members, standing.strangers))

    def members_stand_out(self) -> bool:
        """Tell whether members, as a group, stand above strangers at level 0.01."""
        area, error = delong(-self.by_confidence.members, -self.by_confidence.strangers)
        return area - 0.5 > 2.33 * error

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


def _together(standing: Standing) -> float | None:
    return together(-standing.users, -standing.strangers) if len(standing.users) > 1 else None


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


def _no_numbers(unplaced: Json) -> Gate:
    """Fail: a NaN compares as false with everything, and would count as the highest rank of all."""
    told = ", ".join(f"{count} {model} the update" for model, count in unplaced.items())
    return Gate(NAME, "failed", f"Statistics of people are not numbers: {told}.", {"not_numbers": unplaced})


def _sizes_and_levels(sides: Sides, t: Thresholds, level: float) -> Json:
    return {
        "strangers": len(sides.strangers),
        "users": len(sides.users),
        "members": len(sides.members),
        "alpha_each_tail": level,
        "alpha_job_each_tail": t.alpha_job,
        "alpha_together": t.alpha_each,
        "smallest_possible_p": 1 / (len(sides.strangers) + 1),
        "expected_false_alarms": 2 * level * len(sides.users),
    }


def _of_users(before: _Placed, after: _Placed) -> Json:
    share_U, share_together = _share_of_the_way(before.by_confidence, after.by_confidence)
    return {
        "p_before": before.remembered(),
        "p_remembered": after.remembered(),
        "p_overforgotten": after.overforgotten(),
        "p_remembered_by_loss": after.remembered(by_loss=True),
        "p_before_together": before.together(),
        "p_remembered_together": after.together(),
        "p_overforgotten_together": after.overforgotten_together(),
        "share_of_the_way": share_U,
        "share_of_the_way_together": share_together,
    }


def _losses(scores: Scores, sides: Sides) -> Json:
    losses = {model: scores.answers(model, samples_of(sides.users)).losses for model in ("before", "after")}
    return {f"mean_loss_{model}": user_means(losses_N, sides.users).tolist() for model, losses_N in losses.items()}


def _of_members(before: _Placed, after: _Placed) -> Json:
    members, recognised = len(before.by_confidence.members), before.members_recognised()
    power = recognised / members
    return {
        "power_on_members": power,
        "power_interval_95": wilson(power, members),
        "power_at_least": at_least(recognised, members, alpha=0.05),
        "beta_on_members": 1 - power,
        "members_stand_out": before.members_stand_out(),
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


def _share_of_the_way(before: Standing, after: Standing) -> tuple[list[float], float]:
    """Return how much of its lead over the strangers' median each user has lost, and all users together have.

    Where there was no lead, all of it is gone.
    """
    lead_U, left_U = before.users - before.strangers.median(), after.users - after.strangers.median()
    shares: list[float] = torch.where(lead_U > 0, 1 - left_U / lead_U, 1.0).tolist()
    return shares, float(1 - left_U.mean() / lead_U.mean()) if lead_U.mean() > 0 else 1.0


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
    if found := _blind(n, t) or _stayed(n, t):
        return "inconclusive", found
    hidden = sum(p > t.visible_below for p in n["p_before"])
    return "passed", (
        f"No remaining influence was detected by a two-sided user-level test against {n['strangers']} strangers at "
        f"level {n['alpha_each_tail']:.2g} per tail; before deletion it recognised {n['power_on_members']:.0%} of "
        f"{n['members']} members (at least {n['power_at_least']:.0%}).{_little_to_forget(n, hidden)}"
    )


def _fails(flagged: int, p_together: float | None, sides: Sides, t: Thresholds, level: float) -> bool:
    """Tell whether so many flags, or so high a standing of all together, are beyond chance."""
    chance = chance_of(flagged, users=len(sides.users), strangers=len(sides.strangers), level=level)
    return _rare(chance, _for_flags(t, p_together)) or (p_together is not None and p_together <= t.alpha_each)


def _for_flags(t: Thresholds, p_together: float | None) -> float:
    """Return what of the job's level is left for the number of flags: the rest is the test of all together."""
    return t.alpha_job if p_together is None else t.alpha_job - t.alpha_each


def _rare(chance: float, level: float) -> bool:
    return chance <= level + 1e-12  # one flag among 19 strangers has chance 0.05 but for rounding


def _stands_out(n: Json, t: Thresholds) -> str | None:
    level, m, users = n["alpha_each_tail"], n["strangers"], n["users"]
    claims = {"p_remembered": "still look like members", "p_overforgotten": "stand out as forgotten"}
    for tail, claim in claims.items():
        flagged, p_together = sum(p <= level for p in n[tail]), n[f"{tail}_together"]
        chance = chance_of(flagged, users=users, strangers=m, level=level)
        if _rare(chance, _for_flags(t, p_together)):
            told = f"{flagged} of {users} users {claim} (p ≤ {level:.2g}, {m} strangers)"
            return f"{told}; so many by chance: {chance:.2g}."
        if p_together is not None and p_together <= t.alpha_each:
            return f"The {users} users together {claim} (rank sum among {m} strangers, p = {p_together:.2g})."
    again = n.get("resurrection")
    if again and again["chance"] <= t.alpha_job:
        told = f"After one more epoch on the retained samples {again['flagged']} of {users} users look like members"
        return f"{told} again (by chance: {again['chance']:.2g}): the memory is suppressed, not removed."
    return None


def _blind(n: Json, t: Thresholds) -> str | None:
    """Say why silence means little here: too few members for a control, or the unchanged model would have passed."""
    if n["members"] < t.few_members:
        return f"{n['members']} members are no positive control; {t.few_members} are needed to tell the test's power."
    hidden = sum(p > t.visible_below for p in n["p_before"])
    if hidden and (n["power_at_least"] < t.power_asked or not n["unchanged_would_fail"]):
        return (
            f"{hidden} of {n['users']} users were not distinguishable from strangers before deletion, and the test "
            f"recognises {n['power_on_members']:.0%} of members: its silence means little, or there was little to "
            f"forget."
        )
    return None


def _stayed(n: Json, t: Thresholds) -> str | None:
    """Doubt users who have come less than half the way to the strangers' median.

    Strangers stand anywhere, and a forgotten user may land high by chance: where the unchanged model would have
    failed, only those count who stand high at the job's level, and only as many as chance does not explain. Where it
    would have passed, every one counts.
    """
    near = [not share >= t.share_asked for share in n["share_of_the_way"]]
    high = sum(still and p <= t.alpha_job for still, p in zip(near, n["p_remembered"], strict=True))
    chance = chance_of(high, users=n["users"], strangers=n["strangers"], level=t.alpha_job)
    stayed = high if n["unchanged_would_fail"] else sum(near)
    if stayed and (_rare(chance, t.alpha_job) or not n["unchanged_would_fail"]):
        return f"{stayed} of {n['users']} users came less than half the way to the strangers, unseen at this level."
    return None


def _little_to_forget(n: Json, hidden: int) -> str:
    """A model that knew little of somebody must be reported as such."""
    return (
        f" {hidden} of {n['users']} users were like strangers before it: there was little to forget." if hidden else ""
    )
