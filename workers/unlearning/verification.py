"""Gates between a candidate and the public: did it forget, is it still good, and how much could the test have seen?

Every gate is passed, failed or inconclusive, with its numbers:

    G0 structure   same names, shapes and dtypes; frozen tensors bit-identical; something moved; sets disjoint
    G1 numerics    finite weights; solver residual met; steps accepted and not clipped
    G2 utility     paired one-sided non-inferiority of loss (and accuracy) on retained and never-seen samples
    G3 forgetting  each forgotten user among never-seen users, two-sided, with a positive control before deletion

The statistic of a user is the mean loss over the user's samples. If the user is now like a stranger, its rank among the
m strangers is uniform, whatever the distribution (conformal), so

    p_remembered = (1 + #{j: T_j ≤ T_u}) / (m + 1),   p_overforgotten = (1 + #{j: T_j ≥ T_u}) / (m + 1)

are valid p-values. Both tails count: "more forgotten than a stranger" points at the user as much as "still remembered".
One request's statistic can catch gross failure; it cannot prove forgetting. The verdict says so with its power.

Shape suffixes: U users, N samples.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import NonFinite, NothingToForget, WeightsDoNotFit
from .evidence import Outcome, auc, chance_of, low_tail, non_inferior, wilson
from .objective import Model, Objective, Recipe, Weights, build, check_fit
from .report import Json, UpdateReport, as_json

Users = Sequence[Sequence[int]]

NOT_RUN = (
    "data extraction and model inversion",
    "membership inference with reference models (LiRA, RMIA)",
    "relearning (does a forgotten sample return after further training)",
    "process-level equivalence over many requests",
)


@dataclass(frozen=True)
class Thresholds:
    """What the gates ask for; named error rates rather than magic numbers.

    Attributes:
        alpha_utility: chance of accepting a model that is worse by the margin.
        loss_margin: tolerated rise of the mean loss, as a share of the mean loss on strangers before the update.
        accuracy_margin: tolerated fall of accuracy.
        alpha_each: level of each tail of the user test, where there are enough strangers for it.
        alpha_job: chance of failing a job of fully forgotten users, per tail, however many they are.
        few_strangers: with fewer, no sensible level exists and G3 is inconclusive.
        visible_below: a user with a pre-deletion p above this was not visible to the test.
        power_asked: share of retained members that the test must recognise for its silence to mean something.
        worst_residual: largest relative residual of a solve.
        least_spread: outputs whose spread falls below this share of what it was are degenerate.
        batch_size: samples per forward pass.
    """

    alpha_utility: float = 0.05
    loss_margin: float = 0.05
    accuracy_margin: float = 0.02
    alpha_each: float = 0.01
    alpha_job: float = 0.05
    few_strangers: int = 19
    visible_below: float = 0.2
    power_asked: float = 0.8
    worst_residual: float = 1e-2
    least_spread: float = 0.01
    batch_size: int = 1024


@dataclass(frozen=True)
class Gate:
    """One gate's outcome, its sentence and the numbers behind it."""

    name: str
    outcome: Outcome
    sentence: str
    numbers: Json


@dataclass(frozen=True)
class Verdict:
    """What the gates say together.

    Attributes:
        outcome: passed, failed or inconclusive.
        level: A0 exact (retrained), A2 verified, A3 inconclusive; None when failed.
        sentence: the decision in words, fit for a certificate.
        gates: in order; a failed gate is the last one run.
        not_run: tests that this verdict says nothing about.
    """

    outcome: Outcome
    level: str | None
    sentence: str
    gates: tuple[Gate, ...]
    not_run: tuple[str, ...] = NOT_RUN

    def as_dict(self) -> Json:
        """Return JSON-able values."""
        gates = [
            as_json({"name": g.name, "outcome": g.outcome, "sentence": g.sentence, **g.numbers}) for g in self.gates
        ]
        rest = {"outcome": self.outcome, "level": self.level, "sentence": self.sentence}
        return as_json({**rest, "gates": gates, "run": [g.name for g in self.gates], "not_run": self.not_run})


def verify(  # noqa: PLR0913 - one argument per side of the test
    recipe: Recipe,
    before: Weights,
    after: Weights,
    *,
    users: Users,
    retained_users: Users,
    retained_ids: Sequence[int],
    strangers: Users,
    update: UpdateReport,
    exact: bool = False,
    thresholds: Thresholds = Thresholds(),
) -> Verdict:
    """Judge a candidate. Deterministic; reads both weights, writes neither.

    Args:
        recipe: the owner's recipe.
        before: the deployed weights that the update started from.
        after: the candidate.
        users: sample ids of each forgotten user.
        retained_users: sample ids of members that stay: the positive control.
        retained_ids: retained samples for the utility gate.
        strangers: sample ids of users that were never trained on.
        update: the engine's report on how the candidate was made.
        exact: the candidate was retrained without the users; G3 is then reported but does not decide.
        thresholds: levels and margins.

    Raises:
        NothingToForget: a set that the gates need is empty. No evidence is never a pass.
        WeightsDoNotFit: the *deployed* weights are not the recipe's.
    """
    _require_samples(users=users, retained_ids=[retained_ids])
    gates: list[Gate] = []
    sides = users, retained_users, retained_ids, strangers
    for gate in _run(recipe, (before, after), sides, update, thresholds, exact):
        gates.append(gate)
        if gate.outcome == "failed":
            break
    return _decide(gates, exact=exact)


def _run(
    recipe: Recipe,
    weights: tuple[Weights, Weights],
    sides: tuple[Users, Users, Sequence[int], Users],
    update: UpdateReport,
    thresholds: Thresholds,
    exact: bool,  # noqa: FBT001 - passed through
) -> Iterator[Gate]:
    """Yield the gates in order, each computed only when asked for."""
    (before, after), (users, retained_users, retained_ids, strangers) = weights, sides
    yield _structure(recipe, before, after, (users, [retained_ids, *retained_users], strangers), exact=exact)
    yield _numerics(after, update, thresholds, exact=exact)
    seen = _Scores(recipe, before, after, thresholds)
    yield _utility(seen, retained_ids, strangers)
    yield _forgetting(seen, users, retained_users, strangers)


def _decide(gates: Sequence[Gate], *, exact: bool) -> Verdict:
    """Let the worst gate speak; a retraining is stopped by a failure, not by a doubt.

    Two honest trainings differ by their seeds, often by more than a test with few samples can bound: on the wage panel
    15 of 24 genuine retrainings did not pass G2. The doubt stands in the gate's numbers and in the sentence.
    """
    deciding = [gate if not (exact and gate.name == "G3 forgetting") else _retrained_indeed(gate) for gate in gates]
    worst = min(deciding, key=_severity)
    if worst.outcome == "failed" or (worst.outcome == "inconclusive" and not exact):
        level = None if worst.outcome == "failed" else "A3"
        return Verdict(worst.outcome, level, f"{worst.name} {worst.outcome}: {worst.sentence}", tuple(gates))
    if not exact:
        return Verdict("passed", "A2", gates[-1].sentence, tuple(gates))
    made = "Trained again by the owner's train(), which was given only the retained samples."
    return Verdict("passed", "A0", f"{made} {deciding[-2].sentence}", tuple(gates))


def _retrained_indeed(gate: Gate) -> Gate:
    """Judge a retraining by G3 only where it can't be one: the users look like members, with the loss they had before.

    A genuine retraining flags an easy person now and then, which must not stop it; a `train` that starts from the old
    weights, or ignores the ids it is given, leaves their losses where they were.
    """
    n = gate.numbers
    level, sides = (
        n.get("alpha_each_tail", 0.0),
        zip(n.get("mean_loss_before", ()), n.get("mean_loss_after", ()), strict=True),
    )
    unmoved = [after <= 1.01 * before for before, after in sides]
    stuck = sum(p <= level and still for p, still in zip(n.get("p_remembered", ()), unmoved, strict=True))
    if not stuck:
        return Gate(gate.name, "passed", gate.sentence, n)
    sentence = f"{stuck} of {n['users']} users look like members, as before: does train() use only the ids it is given?"
    return Gate(gate.name, "failed", sentence, n)


def _severity(gate: Gate) -> int:
    """Order failures before doubts before passes."""
    return ("failed", "inconclusive", "passed").index(gate.outcome)


# --- G0 ----------------------------------------------------------------------------------------------------------


def _structure(
    recipe: Recipe, before: Weights, after: Weights, sides: tuple[Users, Users, Users], *, exact: bool
) -> Gate:
    """Same tensors, frozen ones bit-identical, something moved, and no sample on two sides."""
    module = build(recipe)
    check_fit(module, before)
    model = Model(recipe, before)
    try:
        check_fit(module, after)
    except NonFinite:
        pass  # G1's business
    except WeightsDoNotFit as misfit:
        return _gate("G0 structure", False, str(misfit))
    touched = [n for n in before if not model.may_move(n) and not torch.equal(before[n], after[n])]
    moved = [n for n in before if model.may_move(n) and not torch.equal(before[n], after[n])]
    forgotten, kept, unseen = ({i for user in group for i in user} for group in sides)
    shared = len(forgotten & kept) + len(forgotten & unseen) + len(kept & unseen)
    numbers: Json = {"tensors_moved": len(moved), "frozen_tensors_touched": touched, "samples_on_two_sides": shared}
    if touched and not exact:  # a retraining makes its own batch statistics
        return _gate("G0 structure", False, f"{len(touched)} tensors that must not move have changed.", **numbers)
    if shared:
        return _gate("G0 structure", False, f"{shared} samples stand on two sides of the test.", **numbers)
    if not moved:
        return _gate("G0 structure", False, "No weight has changed.", **numbers)
    return _gate("G0 structure", True, f"{len(moved)} tensors moved, all others are bit-identical.", **numbers)


# --- G1 ----------------------------------------------------------------------------------------------------------


def _numerics(after: Weights, update: UpdateReport, thresholds: Thresholds, *, exact: bool) -> Gate:
    """Finite, and for a computed update: solved to tolerance by accepted, unclipped steps."""
    bad = [name for name, tensor in after.items() if not bool(tensor.isfinite().all())]
    residual = update.worst_residual
    numbers: Json = {
        "not_finite": bad,
        "method": update.method,
        "worst_residual": residual,
        "complete": update.complete,
    }
    if bad:
        return _gate("G1 numerics", False, f"{len(bad)} tensors hold NaN or infinity.", **numbers)
    if exact:
        return _gate("G1 numerics", True, "All weights are finite.", **numbers)
    if not update.complete:
        return _gate("G1 numerics", False, f"The update is incomplete: {update.reason}.", **numbers)
    if residual is None or residual > thresholds.worst_residual:
        return _gate(
            "G1 numerics", False, f"Relative residual {residual}, at most {thresholds.worst_residual}.", **numbers
        )
    return _gate("G1 numerics", True, f"Solved to relative residual {residual:.2g} by accepted steps.", **numbers)


# --- G2 ----------------------------------------------------------------------------------------------------------


class _Scores:
    """Losses, hits and outputs of both weights on given samples."""

    def __init__(self, recipe: Recipe, before: Weights, after: Weights, thresholds: Thresholds) -> None:
        self.models = Model(recipe, before), Model(recipe, after)
        self.thresholds = thresholds

    def losses(self, sample_ids: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return per-sample losses before and after."""
        before, after = (self._on(model, sample_ids).losses(model.theta_P) for model in self.models)
        return before, after

    def user_means(self, users: Users) -> tuple[Tensor, Tensor]:
        """Return each user's mean loss before and after, shape (U,)."""
        before_N, after_N = self.losses([i for user in users for i in user])
        lengths = [len(user) for user in users]
        before, after = (torch.split(losses_N, lengths) for losses_N in (before_N, after_N))
        return torch.stack([part.mean() for part in before]), torch.stack([part.mean() for part in after])

    def outputs(self, sample_ids: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Return outputs before, outputs after and targets."""
        (before, targets), (after, _) = (self._on(m, sample_ids).outputs(m.theta_P) for m in self.models)
        return before, after, targets

    def _on(self, model: Model, sample_ids: Sequence[int]) -> Objective:
        return Objective(model, sample_ids, batch_size=self.thresholds.batch_size)


def _utility(seen: _Scores, retained_ids: Sequence[int], strangers: Users) -> Gate:
    """Hold every paired comparison to its margin; the worst one speaks."""
    thresholds, alpha = seen.thresholds, seen.thresholds.alpha_utility
    by_name = {"loss, retained samples": seen.losses(retained_ids)}
    sides: dict[str, Sequence[int]] = {"retained samples": retained_ids}
    if strangers:
        by_name["loss, strangers by user"] = seen.user_means(strangers)
        sides["strangers"] = [i for user in strangers for i in user]
    scale = list(by_name.values())[-1][0].mean()  # what the model loses on people it never saw, where there are any
    margin = thresholds.loss_margin * float(scale)
    checks = {
        name: non_inferior(after - before, margin=margin, alpha=alpha) for name, (before, after) in by_name.items()
    }
    spreads: Json = {}
    for name, ids in sides.items():
        before, after, targets = seen.outputs(ids)
        spreads[name] = _spread(after) / _spread(before) if _spread(before) else 1.0  # constant before: not our doing
        if _are_classes(before, targets):
            lost_N = _hits(before, targets) - _hits(after, targets)
            checks[f"accuracy, {name}"] = non_inferior(lost_N, margin=thresholds.accuracy_margin, alpha=alpha)
    numbers: Json = {"checks": checks, "output_spread_ratio": spreads, "alpha": alpha}
    flat = [name for name, share in spreads.items() if not share >= thresholds.least_spread]
    if flat:
        return _gate("G2 utility", False, f"Outputs are all but constant on {' and '.join(flat)}.", **numbers)
    return Gate("G2 utility", *_worst(checks), numbers)


def _worst(checks: dict[str, Json]) -> tuple[Outcome, str]:
    """Return the worst outcome among the checks, and its sentence."""
    failed, unclear = "is worse by more than the margin", "could be worse by more than the margin: too few samples"
    for outcome, claim in (("failed", failed), ("inconclusive", unclear)):
        for name, c in checks.items():
            if c["outcome"] == outcome:
                numbers = f"mean {c['mean_worsening']:.3g}, bound {c['upper_bound']:.3g}, margin {c['margin']:.3g}"
                return c["outcome"], f"{name} {claim} ({numbers}, {c['pairs']} pairs)."
    return "passed", f"No worse than the margin in {len(checks)} paired comparisons."


def _are_classes(outputs: Tensor, targets: Tensor) -> bool:
    return not targets.is_floating_point() and targets.dim() == 1 and outputs.dim() == 2


def _hits(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs.argmax(-1) == targets).double()


def _spread(outputs: Tensor) -> float:
    """Mean over outputs of the standard deviation over samples."""
    return float(outputs.reshape(len(outputs), -1).double().std(dim=0, unbiased=False).mean())


# --- G3 ----------------------------------------------------------------------------------------------------------


def _forgetting(seen: _Scores, users: Users, retained_users: Users, strangers: Users) -> Gate:
    """Place each forgotten user among the strangers, before and after."""
    t = seen.thresholds
    if not strangers or not retained_users:
        numbers: Json = {"strangers": len(strangers), "members": len(retained_users), "users": len(users)}
        sentence = f"{len(strangers)} strangers and {len(retained_users)} members are no yardstick; both are needed."
        return Gate("G3 forgetting", "inconclusive", sentence, numbers)
    strangers_before, strangers_after = seen.user_means(strangers)
    before, after = seen.user_means(users)
    members, _ = seen.user_means(retained_users)
    level = max(t.alpha_each, 1 / (len(strangers) + 1))
    power = float((low_tail(members, strangers_before) <= level).double().mean())
    numbers = {
        "strangers": len(strangers),
        "users": len(users),
        "members": len(retained_users),
        "alpha_each_tail": level,
        "smallest_possible_p": 1 / (len(strangers) + 1),
        "expected_false_alarms": 2 * level * len(users),
        "p_before": low_tail(before, strangers_before).tolist(),
        "p_remembered": low_tail(after, strangers_after).tolist(),
        "p_overforgotten": low_tail(-after, -strangers_after).tolist(),
        "mean_loss_before": before.tolist(),
        "mean_loss_after": after.tolist(),
        "power_on_members": power,
        "power_interval_95": wilson(power, len(retained_users)),
        "auc_members_before": auc(members, strangers_before),
    }
    return Gate("G3 forgetting", *_rank_outcome(numbers, t), numbers)


def _rank_outcome(n: Json, t: Thresholds) -> tuple[Outcome, str]:
    level, m, power = n["alpha_each_tail"], n["strangers"], n["power_on_members"]
    remembered = sum(p <= level for p in n["p_remembered"])
    overforgotten = sum(p <= level for p in n["p_overforgotten"])
    hidden = sum(p > t.visible_below for p in n["p_before"])
    if m < t.few_strangers:
        return "inconclusive", f"{m} strangers allow no p-value below {1 / (m + 1):.2g}; {t.few_strangers} are needed."
    for flagged, claim in ((remembered, "still look like members"), (overforgotten, "stand out as forgotten")):
        chance = chance_of(flagged, users=n["users"], strangers=m, level=level)
        if chance <= t.alpha_job:
            sentence = f"{flagged} of {n['users']} users {claim} (p ≤ {level:.2g}, {m} strangers)"
            return "failed", f"{sentence}; so many by chance: {chance:.2g}."
    if hidden and power < t.power_asked:
        return "inconclusive", (
            f"{hidden} of {n['users']} users were not distinguishable from strangers before deletion, and the test "
            f"recognises only {power:.0%} of members: its silence means little."
        )
    return "passed", (
        f"No remaining influence was detected by a two-sided user-level test against {m} strangers at level "
        f"{level:.2g} per tail; before deletion it recognised {power:.0%} of {n['members']} members."
    )


def _gate(name: str, passed: bool, sentence: str, **numbers: object) -> Gate:  # noqa: FBT001 - the gate's own answer
    return Gate(name, "passed" if passed else "failed", sentence, dict(numbers))


def _require_samples(**groups: Users) -> None:
    for name, group in groups.items():
        if not group or not all(group):
            raise NothingToForget(f"{name} is empty or holds an entry without samples: nothing can be concluded")
