"""The test of the gate itself in seconds: a genuine retraining passes and fakes don't, with and without references.

The slow neighbours repeat this on more people; `make bench-gate` measures the rates.
"""

from collections.abc import Callable, Mapping
from functools import cache

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from workers.unlearning import NothingToForget, Settings, Thresholds, UpdateReport, Verdict, forget, retrain, verify
from workers.unlearning.references import References, cross_fit
from workers.unlearning.stability import Trial
from workers.unlearning.testing import Classification

torch.set_num_threads(1)  # these problems are so small that threads get in each other's way

MEMBERS, STRANGERS, GONE = range(50), range(50, 150), (0, 1)
STEP = Trial(0.0, 1.0, 1.0, 0.01, 1.0, 1e-3, 9, accepted=True)
HONEST = UpdateReport("newton", True, None, 12, 288, 1, trials=(STEP,))
ROOMY = Thresholds(loss_margin=0.1, accuracy_margin=0.1, segment_margin=0.2)
"""Fifty members and a hundred strangers bound the cost of losing two people no more closely."""
Weights = Mapping[str, Tensor]
with_and_without = pytest.mark.parametrize("calibrated", [False, True], ids=["raw", "calibrated"])


class World:
    """A convex model that knows everybody by heart, without two of them by retraining, and its references."""

    def __init__(self) -> None:
        self.recipe = Classification(users=150, each=6, hidden=0, waves=150, l2_total=3.0, stubbornness=0.3)
        self.kept = self.recipe.samples_of(*[user for user in MEMBERS if user not in GONE])
        self.gone = self.recipe.samples_of(*GONE)
        self.deployed = retrain(self.recipe, self.recipe.samples_of(*MEMBERS), seed=0).weights
        self.retrained = retrain(self.recipe, self.kept, seed=1)
        members, strangers = ([self.recipe.samples_of(user) for user in side] for side in (MEMBERS, STRANGERS))
        self.references: References = cross_fit(self.recipe, members, strangers, folds=2, repeats=4)

    def judge(
        self,
        after: Weights,
        report: UpdateReport = HONEST,
        *,
        calibrated: bool = True,
        after_epoch: Weights | None = None,
        users: tuple[int, ...] = GONE,
        strangers: range = STRANGERS,
        members: int = len(MEMBERS),
    ) -> Verdict:
        """Judge weights that claim to be an honest update."""
        return verify(
            self.recipe,
            self.deployed,
            after,
            users=[self.recipe.samples_of(user) for user in users],
            retained_users=[self.recipe.samples_of(user) for user in MEMBERS[:members] if user not in GONE],
            retained_ids=self.kept,
            strangers=[self.recipe.samples_of(user) for user in strangers],
            update=report,
            exact=report.method == "retrain",
            references=self.references if calibrated else None,
            after_epoch=after_epoch,
            thresholds=ROOMY,
        )

    def warm(self, steps: int) -> dict[str, Tensor]:
        """Train on from the deployed weights, on the retained samples only: what a lazy train() does."""
        inputs, targets = self.recipe.fetch(self.kept)
        leaves = {name: tensor.clone().requires_grad_() for name, tensor in self.deployed.items()}
        adam = torch.optim.Adam(list(leaves.values()), lr=1e-3)
        for _ in range(steps):
            adam.zero_grad()
            self.recipe.loss(functional.linear(inputs, leaves["weight"], leaves["bias"]), targets).mean().backward()
            adam.step()
        return {name: leaf.detach() for name, leaf in leaves.items()}

    def climb(self, sign: float, *, flip: bool, steps: int) -> dict[str, Tensor]:
        """Follow the users' gradient uphill (-1) or downhill (+1), with their labels or the next ones."""
        inputs, targets = self.recipe.fetch(self.gone)
        leaves = {name: tensor.clone().requires_grad_() for name, tensor in self.deployed.items()}
        for _ in range(steps):
            outputs = functional.linear(inputs, leaves["weight"], leaves["bias"])
            loss = self.recipe.loss(outputs, (targets + 1) % 3 if flip else targets).sum()
            for leaf, grad in zip(leaves.values(), torch.autograd.grad(loss, list(leaves.values())), strict=True):
                leaf.data -= sign * 0.01 * grad
        return {name: leaf.detach() for name, leaf in leaves.items()}


@cache
def world() -> World:
    return World()


def _constant() -> Weights:
    return {name: torch.zeros_like(tensor) for name, tensor in world().deployed.items()}


def _random() -> Weights:
    torch.manual_seed(3)
    return world().recipe.build().state_dict()


def _part_way(share: float) -> Weights:
    target = world().retrained.weights
    return {n: old + share * (target[n] - old) for n, old in world().deployed.items()}


FAKES: dict[str, tuple[Callable[[], Weights], str]] = {
    "unchanged": (lambda: world().deployed, "G0"),
    "unchanged but for a speck": (lambda: {n: w + 1e-7 for n, w in world().deployed.items()}, "G3"),
    "a tenth of the step": (lambda: _part_way(0.1), "G3"),
    "gradient ascent": (lambda: world().climb(-1.0, flip=False, steps=60), ""),
    "label flip": (lambda: world().climb(1.0, flip=True, steps=200), ""),
    "constant output": (_constant, "G2"),
    "random weights": (_random, "G2"),
}


@with_and_without
@pytest.mark.parametrize("fake", FAKES)
def test_a_fake_fails(fake: str, *, calibrated: bool) -> None:
    make, gate = FAKES[fake]
    verdict = world().judge(make(), calibrated=calibrated)
    assert verdict.outcome == "failed"
    assert verdict.gates[-1].name.startswith(gate)


@with_and_without
def test_a_genuine_retraining_passes_even_when_it_is_judged_like_an_update(*, calibrated: bool) -> None:
    retrained = world().retrained
    assert world().judge(retrained.weights, calibrated=calibrated).level == "A2"
    assert world().judge(retrained.weights, retrained.report, calibrated=calibrated).level == "A0"


def test_a_step_whose_own_report_admits_that_it_was_clipped_fails() -> None:
    w = world()
    clipped = forget(
        w.recipe,
        w.deployed,
        forget_ids=w.gone,
        retain_ids=w.kept,
        settings=Settings(tries=1, tolerance=1e-9, max_products=2, groups=0),
    )
    verdict = w.judge(clipped.weights, clipped.report)
    assert (verdict.outcome, verdict.gates[-1].name) == ("failed", "G1 numerics")


def test_a_retraining_after_one_more_epoch_has_nothing_to_remember_and_a_hidden_memory_has() -> None:
    w = world()
    assert w.judge(w.retrained.weights, after_epoch=w.retrained.weights).level == "A2"
    relapsed = w.judge(w.retrained.weights, after_epoch=w.deployed)
    assert relapsed.outcome == "failed"
    assert "suppressed, not removed" in relapsed.sentence


def test_without_samples_there_is_no_verdict() -> None:
    with pytest.raises(NothingToForget, match="users is empty"):
        world().judge(world().retrained.weights, users=())


def test_references_make_the_test_see_more_and_the_verdict_says_which_was_used() -> None:
    by_name = {c: world().judge(world().retrained.weights, calibrated=c).gates[-1].numbers for c in (False, True)}
    assert [by_name[c]["statistic"] for c in (False, True)] == ["raw", "calibrated"]
    assert by_name[True]["power_on_members"] >= by_name[False]["power_on_members"]
    assert by_name[True]["judges"] == 2


@with_and_without
@pytest.mark.parametrize("users", [GONE, GONE[:1]])
@pytest.mark.parametrize("steps", [1, 5])
def test_a_training_that_starts_from_the_old_weights_is_no_retraining(
    steps: int, users: tuple[int, ...], *, calibrated: bool
) -> None:
    w = world()
    verdict = w.judge(w.warm(steps), w.retrained.report, users=users, calibrated=calibrated)
    assert (verdict.outcome, verdict.level) == ("failed", None)
    assert "does train() use only the ids" in verdict.sentence


def test_a_retraining_says_with_whom_it_was_compared_and_when_with_nobody() -> None:
    w = world()

    def told(**sides: object) -> str:
        verdict = w.judge(w.retrained.weights, w.retrained.report, **sides)  # type: ignore[arg-type] # one at a time
        assert (verdict.outcome, verdict.level) == ("passed", "A0")
        return verdict.sentence

    assert "Compared with 100 strangers: of 2 users visible" in told()
    assert "Not compared with strangers: none held out." in told(strangers=range(0))
    assert "Not compared with strangers: no members stay" in told(members=0)
    assert "Not compared with strangers: 18 held out are too few." in told(strangers=STRANGERS[:18])
