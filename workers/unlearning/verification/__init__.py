"""Gates between a candidate and the public: did it forget, is it still good, and how much could the test have seen?

Every gate is passed, failed or inconclusive, with its numbers:

    G0 structure   same names, shapes and dtypes; frozen tensors bit-identical; something moved; sets disjoint
    G1 numerics    finite weights; solver residual met, or the trust region where the solve is cut short on purpose
    G2 utility     paired one-sided non-inferiority of loss and accuracy, over all and per class and declared group
    G3 forgetting  each forgotten user among never-seen users, two-sided, with a positive control before deletion
    G4 process     many deletions together: equivalence of the deleted and the never seen; canaries    (`process`)
    G5 oracle      now and then: the distance to true retrainings                                      (`oracle`)

`verify` runs the first four on one candidate. One request's statistic can catch gross failure; it cannot prove
forgetting, and the verdict says so with its power. The proof must lie in the process.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ..evidence import WORST_FIRST, Outcome, chance_of
from ..model import Recipe, Weights
from ..report import Json, UpdateReport, as_json
from .forgetting import forgetting
from .gate import USUAL, Gate, Sides, Thresholds, Users
from .numerics import numerics
from .oracle import distance_ratio, oracle
from .process import ProcessThresholds, process
from .scores import Scores
from .standing import OutOfFold
from .structure import structure
from .utility import utility

__all__ = [
    "Gate",
    "OutOfFold",
    "ProcessThresholds",
    "Sides",
    "Thresholds",
    "Users",
    "Verdict",
    "distance_ratio",
    "oracle",
    "process",
    "verify",
]

_LEAST_WAY = 0.25
"""Of the way to the strangers' median: who came less far after a retraining, and was and is visible, has stayed."""


@dataclass(frozen=True)
class Verdict:
    """What the gates say together.

    Attributes:
        outcome: passed, failed or inconclusive.
        level: A0 exact (retrained), A2 verified, A3 inconclusive; None when failed.
        sentence: the decision in words, fit for a certificate.
        gates: in order; a failed gate is the last one run.
        exact: the candidate is a retraining.
    """

    outcome: Outcome
    level: str | None
    sentence: str
    gates: tuple[Gate, ...]
    exact: bool = False

    @property
    def not_run(self) -> tuple[str, ...]:
        """Tests that this verdict says nothing about."""
        ran = {key: value for gate in self.gates for key, value in gate.numbers.items()}
        calibrated = ran.get("statistic") == "calibrated"
        tests = {
            "data extraction and model inversion": True,
            "membership inference with reference models (LiRA, RMIA)": not calibrated,
            "membership inference with many models per single sample (U-LiRA)": calibrated,
            "relearning (does a forgotten sample return after further training)": "resurrection" not in ran,
            "process-level equivalence over many requests": True,
            "distance to a true retraining": not self.exact,
        }
        return tuple(test for test, left_out in tests.items() if left_out)

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
    groups: Mapping[str, Sequence[int]] | None = None,
    spread: Sequence[float] = (),
    references: OutOfFold | None = None,
    after_epoch: Weights | None = None,
    thresholds: Thresholds = USUAL,
) -> Verdict:
    """Judge a candidate. Deterministic; reads all weights, writes none.

    Args:
        recipe: the owner's recipe.
        before: the deployed weights that the update started from.
        after: the candidate.
        users: sample ids of each forgotten user.
        retained_users: sample ids of members that stay: the positive control.
        retained_ids: retained samples for the utility gate.
        strangers: sample ids of users that were never trained on.
        update: the engine's report on how the candidate was made.
        exact: the candidate was retrained without the users; G3 then decides only where it can't have been.
        groups: sample ids by declared group (region, age band): G2 judges each, as it does each class.
        spread: differences between honest retrainings, against which G2 reports each segment's change.
        references: out-of-fold predictions of everybody above; G3 then judges by their judges, never by their teachers.
        after_epoch: the candidate after one further ordinary epoch on the retained samples: does the memory return?
        thresholds: levels and margins.

    Raises:
        NothingToForget: a set that the gates need is empty. No evidence is never a pass.
        WeightsDoNotFit: the *deployed* weights are not the recipe's.
        MissingReferences: references do not cover everybody.
    """
    sides = Sides(users, retained_users, retained_ids, strangers)
    sides.require_samples()
    states = {"before": before, "after": after} | ({"after an epoch": after_epoch} if after_epoch is not None else {})
    case = _Case(recipe, states, sides, update, thresholds, exact, groups or {}, spread, references)
    gates: list[Gate] = []
    for gate in _run(case):
        gates.append(gate)
        if gate.outcome == "failed":
            break
    return _decide(gates, exact=exact)


@dataclass(frozen=True)
class _Case:
    """The arguments of `verify`, bound together."""

    recipe: Recipe
    states: Mapping[str, Weights]
    sides: Sides
    update: UpdateReport
    thresholds: Thresholds
    exact: bool
    groups: Mapping[str, Sequence[int]]
    spread: Sequence[float]
    references: OutOfFold | None


def _run(case: _Case) -> Iterator[Gate]:
    """Yield the gates in order, each computed only when asked for."""
    sides, t = case.sides, case.thresholds
    before, after = case.states["before"], case.states["after"]
    yield structure(case.recipe, before, after, sides=sides, update=case.update, exact=case.exact)
    yield numerics(after, case.update, t, exact=case.exact)
    scores = Scores(case.recipe, case.states, batch_size=t.batch_size)
    yield utility(scores, sides, t, groups=case.groups, spread=case.spread, exact=case.exact)
    yield forgetting(scores, sides, case.references, t)


def _decide(gates: Sequence[Gate], *, exact: bool) -> Verdict:
    """Let the worst gate speak; a retraining is stopped by a failure, not by a doubt.

    Two honest trainings differ by their seeds, often by more than a test with few samples can bound: on the wage panel
    G2 doubted 15 of 24 genuine retrainings. The doubt stands in the gate's numbers and in the sentence.
    """
    deciding = [gate if not (exact and gate.name == "G3 forgetting") else _retrained_indeed(gate) for gate in gates]
    worst = min(deciding, key=lambda gate: WORST_FIRST.index(gate.outcome))
    if worst.outcome == "failed" or (worst.outcome == "inconclusive" and not exact):
        level = None if worst.outcome == "failed" else "A3"
        return Verdict(worst.outcome, level, f"{worst.name} {worst.outcome}: {worst.sentence}", tuple(gates), exact)
    if not exact:
        return Verdict("passed", "A2", gates[-1].sentence, tuple(gates))
    made = "Trained again by the owner's train(), which was given only the retained samples."
    told = f"{made} {deciding[-1].sentence} {deciding[-2].sentence}"
    return Verdict("passed", "A0", told, tuple(gates), exact)


def _retrained_indeed(gate: Gate) -> Gate:
    """Judge a retraining by G3 only where it can't be one: who was visible is as visible as before.

    A genuine retraining flags an easy person now and then, which must not stop it; a `train` that starts from the old
    weights, or ignores the ids it is given, leaves people where they were. It is stopped where chance does not explain
    how many stayed, or where all together stayed; never where members, too, look like strangers.
    """
    n = gate.numbers
    if "not_numbers" in n:
        return gate
    if left_out := _not_compared(n):
        return Gate(gate.name, "passed", left_out, n)
    stuck = _stuck(n)
    job = n["alpha_job_each_tail"]
    beyond_chance = chance_of(stuck, users=n["users"], strangers=n["strangers"], level=job) <= job + 1e-12
    if n["members_stand_out"] and ((stuck and beyond_chance) or _stuck_together(n)):
        told = f"{stuck} of {n['users']} users" if stuck and beyond_chance else f"The {n['users']} users together"
        return Gate(
            gate.name, "failed", f"{told} look like members, as before: does train() use only the ids it is given?", n
        )
    return Gate(gate.name, "passed", _compared(n), n)


def _not_compared(n: Json) -> str | None:
    """Say why nobody was compared with anybody, where that is so: the retraining then stands on `train` alone."""
    if not n["strangers"]:
        return "Not compared with strangers: none held out."
    if not n["members"]:
        return "Not compared with strangers: no members stay as a control."
    if n["strangers"] < USUAL.few_strangers:
        return f"Not compared with strangers: {n['strangers']} held out are too few."
    return None


def _compared(n: Json) -> str:
    visible = sum(p <= n["alpha_job_each_tail"] for p in n["p_before"]) if n["members_stand_out"] else 0
    told = f"Compared with {n['strangers']} strangers"
    if not visible:
        return f"{told} to no avail: no user was visible among them before."
    return f"{told}: of {visible} users visible among them before, no more stayed than by chance."


def _stuck(n: Json) -> int:
    """Count users visible before, as visible now (or flagged), who came less than a quarter of the way.

    The raw statistic can't tell an easy person from a remembered one. There the loss must also have stayed: without
    her samples an easy person's loss is small still, but many times what it was (benchmarks/gate.py: 2.4 times the
    least of all who seemed stuck).
    """
    places = zip(n["p_before"], n["p_remembered"], n["share_of_the_way"], _losses_stayed(n), strict=True)
    job, level = n["alpha_job_each_tail"], n["alpha_each_tail"]
    return sum(
        before <= job and after <= max(before, level) and not share >= _LEAST_WAY and stayed
        for before, after, share, stayed in places
    )


def _stuck_together(n: Json) -> bool:
    """Tell whether the users' rank sum was and is a member's, less than half the way gone."""
    before, after = n["p_before_together"], n["p_remembered_together"]
    if before is None or after is None:
        return False
    placed = max(before, after) <= n["alpha_together"] and not n["share_of_the_way_together"] >= USUAL.share_asked
    return bool(placed and 2 * sum(_losses_stayed(n)) >= n["users"])


def _losses_stayed(n: Json) -> list[bool]:
    pairs = zip(n["mean_loss_before"], n["mean_loss_after"], strict=True)
    return [n["statistic"] == "calibrated" or after - before < abs(before) for before, after in pairs]
