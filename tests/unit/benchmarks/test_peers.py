"""Each peer against its own formula, worked out by hand or by another route, on problems of a few samples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.peers import (
    GRIDS,
    PEERS,
    BudgetSpent,
    NotCarriedOver,
    distil,
    ekfac_influence,
    ekfac_step,
    fine_tune,
    neg_grad_plus,
    salun,
    scrub,
    scrub_rewind,
    ssd,
)
from benchmarks.peers.grids import Peer
from benchmarks.peers.likeness import divergence, random_targets
from workers.unlearning.model import Model
from workers.unlearning.objective import Cost, Objective
from workers.unlearning.solve import Operator
from workers.unlearning.testing import Classification, Ridge

pytestmark = pytest.mark.slow  # seconds each: make check leaves them to make test

torch.set_num_threads(1)

Settings = dict[str, Any]  # keyword arguments of whichever peer
Bed = Any  # any of the recipes below

PEOPLE = Classification(users=6, each=4, hidden=5, features=3, l2_total=0.1)
FORGET, RETAIN = PEOPLE.samples_of(0, 1)[:6], PEOPLE.samples_of(2, 3, 4, 5)
SETS: Settings = {"forget_ids": FORGET, "retain_ids": RETAIN, "seed": 3}
RIDGE = Ridge(samples=30, features=4, seed=0)
SOME, REST = [1, 2, 11], [i for i in range(30) if i not in (1, 2, 11)]


class Tokens:
    """A language model of two layers over five symbols: outputs (N, T, V), a loss summed over positions."""

    l2_per_sample, l2_total = 0.0, 0.05

    def __init__(self) -> None:
        self.text = torch.randint(0, 5, (20, 4), generator=torch.Generator().manual_seed(1))

    def build(self) -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 5)).double()

    def fetch(self, sample_ids: Sequence[int]) -> tuple[Tensor, Tensor]:
        rows = self.text[list(sample_ids)]
        return rows[:, :-1], rows[:, 1:]

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return functional.cross_entropy(outputs.transpose(1, 2), targets, reduction="none").sum(1)


class TwoWeights:
    """y = w₁x₁ + w₂x₂ with half the squared error."""

    l2_per_sample, l2_total = 0.0, 0.0
    x = torch.tensor([[3.0, 0.0], [0.0, 1.0], [1.0, 1.0]], dtype=torch.float64)
    y = torch.tensor([[1.0], [1.0], [0.0]], dtype=torch.float64)

    def build(self) -> nn.Module:
        return nn.Linear(2, 1, bias=False, dtype=torch.float64)

    def fetch(self, sample_ids: Sequence[int]) -> tuple[Tensor, Tensor]:
        return self.x[list(sample_ids)], self.y[list(sample_ids)]

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return 0.5 * (outputs - targets).square().sum(-1)


class OneLogit(TwoWeights):
    """A Bernoulli likelihood that the peers know nothing about: integer targets, no classes among the outputs."""

    y = torch.tensor([[1], [1], [0]])

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return functional.binary_cross_entropy_with_logits(outputs, targets.double(), reduction="none").sum(-1)


def deployed(bed: Bed) -> dict[str, Tensor]:
    torch.manual_seed(7)
    return {name: tensor.clone() for name, tensor in bed.build().state_dict().items()}


def outputs(bed: Bed, weights: dict[str, Tensor], ids: Sequence[int]) -> Tensor:
    module = bed.build()
    module.load_state_dict(weights)
    with torch.no_grad():
        said: Tensor = module(bed.fetch(ids)[0])
    return said


def loss_on(bed: Bed, weights: dict[str, Tensor], ids: Sequence[int]) -> float:
    return float(bed.loss(outputs(bed, weights, ids), bed.fetch(ids)[1]).mean())


def apart(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def references(bed: Bed, ids: Sequence[int]) -> Tensor:
    return torch.full_like(outputs(bed, deployed(bed), ids), 0.0).log_softmax(-1)


# |S| = 6, |R| = 16, |D| = 22; batches of 5 make 4 steps on R, 2 on S. Teachers cost a third of each sample once.
PRICES: dict[str, tuple[Settings, float]] = {
    "fine_tune": ({"epochs": 3, "batch_size": 5}, 3 * 16),
    "distil": ({"epochs": 2, "batch_size": 5}, 2 * 22),
    "distil, itself": ({"epochs": 2, "batch_size": 5, "retained": "self"}, 2 * 22 + 16 / 3),
    "neg_grad_plus": ({"epochs": 2, "batch_size": 5}, 2 * (16 + 5 + 1 + 5 + 1)),
    "ssd": ({}, 6 + 22),
    "scrub": ({}, 2 * 6 + 3 * 16 + 22 / 3),
    "scrub_rewind": ({}, 2 * 6 + 3 * 16 + 22 / 3 + 3 * 6 / 3 + 2 / 3),
    "salun": ({"epochs": 2}, 6 + 2 * 22),
}


@pytest.mark.parametrize("case", PRICES)
def test_every_sample_that_is_read_is_counted(case: str) -> None:
    (settings, price), name = PRICES[case], case.split(",", maxsplit=1)[0]
    cost = Cost(100.0)
    run(name, cost=cost, **settings)
    assert math.isclose(cost.forward_backwards - 100, price, abs_tol=1e-9)


@pytest.mark.parametrize("case", [case for case in PRICES if case != "ssd"])
@pytest.mark.parametrize("budget", [0.0, 9.0, 17.5])
def test_a_walk_ends_within_one_step_of_its_budget(case: str, budget: float) -> None:
    cost = Cost(100.0)
    run(case.split(",", maxsplit=1)[0], cost=cost, budget=budget, **(PRICES[case][0] | {"batch_size": 4}))
    assert budget - 12 < cost.forward_backwards - 100 <= budget + 1e-9


def test_nothing_is_changed_on_an_empty_purse() -> None:
    for name in set(PEERS) - {"ssd", "ekfac_influence", "ekfac_step"}:
        assert apart(run(name, cost=Cost(), budget=0.0), deployed(PEOPLE)) == 0


def test_a_dampening_that_cannot_be_paid_is_refused_and_not_charged() -> None:
    cost = Cost()
    with pytest.raises(BudgetSpent, match="28 forward-backward equivalents needed, 27 left"):
        run("ssd", cost=cost, budget=27.0)
    assert cost.forward_backwards == 0


def test_fine_tuning_lowers_the_loss_on_what_stays() -> None:
    tuned = run("fine_tune", cost=Cost(), optimiser="adam", lr=0.01)
    assert loss_on(PEOPLE, tuned, RETAIN) < 0.95 * loss_on(PEOPLE, deployed(PEOPLE), RETAIN)


def test_fine_tuning_in_one_batch_is_gradient_descent_on_the_objective() -> None:
    weights = deployed(PEOPLE)
    model = Model(PEOPLE, weights)
    gradient = Objective(model, RETAIN).gradient(model.theta_P)
    by_hand = model.state(model.theta_P - 0.1 * gradient / len(RETAIN))
    tuned = run("fine_tune", cost=Cost(), epochs=1, lr=0.1, batch_size=16)
    assert apart(tuned, by_hand) < 1e-14


def test_neggrad_with_alpha_one_is_fine_tuning() -> None:
    assert apart(run("neg_grad_plus", cost=Cost(), alpha=1.0), run("fine_tune", cost=Cost())) == 0


def test_neggrad_walks_up_the_forgotten_loss_and_down_the_retained_one() -> None:
    climbed = run("neg_grad_plus", cost=Cost(), alpha=0.6, epochs=1, batch_size=16, lr=0.1, weight_decay=0.0)
    start = {name: tensor.requires_grad_() for name, tensor in deployed(PEOPLE).items()}
    means = [mean_loss(start, ids) for ids in (RETAIN, FORGET)]
    grads = torch.autograd.grad(0.6 * means[0] - 0.4 * means[1], list(start.values()))
    by_hand = {name: start[name].detach() - 0.1 * grad for name, grad in zip(start, grads, strict=True)}
    assert apart(climbed, by_hand) < 1e-14


@pytest.mark.parametrize("bed", [PEOPLE, Tokens()], ids=["labels", "sequences"])
def test_distilling_to_what_the_model_says_already_leaves_it_where_it_is(bed: Bed) -> None:
    weights = deployed(bed)
    said = outputs(bed, weights, FORGET).log_softmax(-1)
    sets: Settings = {"forget_ids": FORGET, "retain_ids": range(8, 20), "seed": 0, "retained": "self"}
    still = distil(bed, weights, **sets, targets=said, cost=Cost(), optimiser="sgd", lr=1.0, epochs=3)
    assert apart(still, weights) < 1e-12


def test_distilling_draws_the_forgotten_outputs_to_their_references() -> None:
    weights, flat = deployed(PEOPLE), references(PEOPLE, FORGET)
    taught = run("distil", cost=Cost(), lr=0.03, epochs=10, retained="self")
    before, after = (outputs(PEOPLE, w, FORGET).log_softmax(-1) for w in (weights, taught))
    assert (after - flat).abs().mean() < 0.5 * (before - flat).abs().mean()


def test_dampening_by_hand() -> None:
    """w = (1, 2): residuals 2, 1, 3; squared gradients per sample (36, 0), (0, 1), (9, 9).

    F_S = (36, 0); F_D = (36 + 0 + 9, 0 + 1 + 9)/3 = (15, 10/3). With α = 2, λ = 0.5 only w₁ is chosen: × 0.5·15/36.
    """
    weights = {"weight": torch.tensor([[1.0, 2.0]], dtype=torch.float64)}
    settings: Settings = {"alpha": 2.0, "dampening": 0.5, "fisher_batch_size": 1}
    damped = ssd(TwoWeights(), weights, forget_ids=[0], retain_ids=[1, 2], seed=0, cost=Cost(), **settings)
    assert math.isclose(float(damped["weight"][0, 0]), 0.5 * 15 / 36, rel_tol=1e-15)
    assert damped["weight"][0, 1] == weights["weight"][0, 1]


def test_dampening_squares_the_mean_gradient_of_a_mini_batch_as_its_authors_do() -> None:
    """Mini-batches (1, 2) and (0): mean gradients (1.5, 2) and (6, 0), so F_D = (2.25 + 36, 4)/2 and F_S = (36, 0)."""
    weights = {"weight": torch.tensor([[1.0, 2.0]], dtype=torch.float64)}
    settings: Settings = {"alpha": 1.5, "dampening": 1.0, "fisher_batch_size": 2}
    damped = ssd(TwoWeights(), weights, forget_ids=[0], retain_ids=[1, 2], seed=0, cost=Cost(), **settings)
    assert math.isclose(float(damped["weight"][0, 0]), 19.125 / 36, rel_tol=1e-15)


def test_dampening_never_grows_a_weight_and_spares_the_unimportant_ones() -> None:
    weights = deployed(PEOPLE)
    before = torch.cat([tensor.flatten() for tensor in weights.values()])
    damped = torch.cat([tensor.flatten() for tensor in run("ssd", cost=Cost(), alpha=1.5).values()])
    assert 0 < (damped == before).sum() < len(before)
    assert (damped.abs() <= before.abs()).all()


def test_saliency_holds_half_of_the_weights_bit_for_bit_and_they_are_the_least_pulled() -> None:
    before = deployed(PEOPLE)
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in before.items()}
    grads = torch.autograd.grad(mean_loss(leaves, FORGET), list(leaves.values()))
    pulled = torch.cat([grad.abs().flatten() for grad in grads])
    after = run("salun", cost=Cost(), optimiser="adam", lr=0.01)
    moved = torch.cat([(after[name] != before[name]).flatten() for name in before])
    assert int(moved.sum()) == len(moved) // 2
    assert pulled[moved].min() >= pulled[~moved].max()


def test_saliency_draws_real_targets_from_those_who_stay() -> None:
    start = RIDGE.solved(range(30))
    moved = salun(RIDGE, start, forget_ids=SOME, retain_ids=REST, seed=0, cost=Cost(), lr=0.05)
    assert loss_on(RIDGE, moved, SOME) != loss_on(RIDGE, start, SOME)


def test_the_student_disobeys_on_what_is_forgotten_and_obeys_on_what_stays() -> None:
    weights = deployed(PEOPLE)
    settings: Settings = {"lr": 0.02, "optimiser": "adam", "forget_batch_size": 3, "max_epochs": 3, "epochs": 3}
    far = run("scrub", cost=Cost(), alpha=1.0, gamma=0.0, weight_decay=0.0, **settings)
    assert divergence_by_hand(weights, far, FORGET) > 3 * divergence_by_hand(weights, far, RETAIN) > 0


def test_a_student_that_is_never_disobedient_is_fine_tuned() -> None:
    settings: Settings = {"epochs": 3, "lr": 5e-4, "batch_size": 256, "momentum": 0.9}
    obeyed = run("scrub", cost=Cost(), alpha=0.0, gamma=1.0, max_epochs=0)
    assert apart(obeyed, run("fine_tune", cost=Cost(), **settings)) < 1e-14


def test_rewinding_takes_the_epoch_whose_error_is_nearest_to_the_strangers() -> None:
    start, strangers, rest = RIDGE.solved(range(30)), REST[1:3], REST[4:]
    sets: Settings = {
        "forget_ids": SOME,
        "retain_ids": rest,
        "seed": 0,
        "lr": 0.05,
        "forget_batch_size": 1,
        "max_epochs": 6,
    }
    visited = [scrub(RIDGE, start, **sets, epochs=epochs, cost=Cost()) for epochs in range(1, 7)]
    aim = loss_on(RIDGE, visited[-1], strangers)
    nearest = min(visited, key=lambda weights: abs(loss_on(RIDGE, weights, SOME) - aim))
    chosen = scrub_rewind(RIDGE, start, **sets, epochs=6, validation_ids=strangers, cost=Cost())
    assert nearest is not visited[-1]
    assert apart(chosen, nearest) == 0


@pytest.mark.parametrize("peer", [fine_tune, distil, neg_grad_plus, scrub, salun, ssd])
def test_sequences_are_carried_over(peer: Peer) -> None:
    bed = Tokens()
    more = {"targets": references(bed, [0, 1])} if peer is distil else {}
    changed = peer(bed, deployed(bed), forget_ids=[0, 1], retain_ids=range(2, 20), seed=0, cost=Cost(), **more)
    assert all(tensor.isfinite().all() for tensor in changed.values())
    assert peer is ssd or apart(changed, deployed(bed)) > 0


def test_padding_is_neither_compared_nor_relabelled() -> None:
    logits, other = torch.zeros(1, 3, 4), torch.randn(1, 3, 4, generator=torch.Generator().manual_seed(0))
    padded = torch.tensor([[1, -100, -100]])
    kl = functional.kl_div(logits[0, 0].log_softmax(0), other[0, 0].softmax(0), reduction="sum")
    assert torch.allclose(divergence(PEOPLE, logits, other, targets=padded), kl)
    drawn = random_targets(PEOPLE, logits, padded, donors=[], draw=torch.Generator())
    assert (drawn[0, 1:] == -100).all()
    assert 0 <= drawn[0, 0] < 4


@pytest.mark.parametrize("peer", [scrub, salun])
def test_a_likelihood_without_classes_is_refused(peer: Peer) -> None:
    weights = {"weight": torch.tensor([[1.0, 2.0]], dtype=torch.float64)}
    with pytest.raises(NotCarriedOver, match="do not index the last dimension"):
        peer(OneLogit(), weights, forget_ids=[0], retain_ids=[1, 2], seed=0, cost=Cost())


def test_a_setting_that_does_not_exist_is_refused() -> None:
    with pytest.raises(TypeError, match="learning_rate"):
        run("fine_tune", cost=Cost(), learning_rate=0.1)


def test_the_deployed_weights_are_never_written_to() -> None:
    weights = deployed(PEOPLE)
    for name in set(PEERS) - {"ekfac_influence", "ekfac_step"}:
        PEERS[name](PEOPLE, weights, **SETS, cost=Cost(), **needs(name))
        assert apart(weights, deployed(PEOPLE)) == 0


def test_every_peer_has_a_grid_that_begins_with_the_published_setting_and_runs() -> None:
    assert GRIDS.keys() == PEERS.keys()
    for name in set(PEERS) - {"ekfac_influence", "ekfac_step"}:
        for settings in GRIDS[name]:
            run(name, cost=Cost(), budget=28.0, **settings)


class DenseFactors:
    """The exact curvature of a ridge problem, where EK-FAC is exact too: one layer, one output."""

    def __init__(self, ids: Sequence[int]) -> None:
        x = RIDGE.inputs_NF[list(ids)]
        self._gram, self.samples = x.T @ x, len(ids)

    def inverse(self, *, shift: float, scale: float = 1.0) -> Operator:
        matrix = scale * self._gram + shift * torch.eye(4, dtype=torch.float64)
        return lambda v: torch.linalg.solve(matrix, v)


def test_one_step_through_the_retained_curvature_is_retraining_for_ridge() -> None:
    factors = DenseFactors(REST)
    moved = ekfac_step(
        RIDGE, RIDGE.solved(range(30)), forget_ids=SOME, retain_ids=REST, seed=0, cost=Cost(), factors=factors
    )
    assert apart(moved, RIDGE.solved(REST)) < 1e-12


def test_a_residual_makes_the_step_correct_what_earlier_ones_left() -> None:
    zero, off = torch.zeros(4, dtype=torch.float64), {"weight": RIDGE.solved(range(30))["weight"] + 0.3}
    sets: Settings = {"forget_ids": SOME, "retain_ids": REST, "seed": 0, "factors": DenseFactors(REST)}
    assert apart(ekfac_step(RIDGE, off, **sets, cost=Cost(), residual=zero), RIDGE.solved(REST)) < 1e-12


def test_the_classical_influence_function_uses_the_curvature_of_all() -> None:
    start, everyone = RIDGE.solved(range(30)), list(range(30))
    x, y = RIDGE.inputs_NF[SOME], RIDGE.targets_N1[SOME]
    pull = x.T @ (x @ start["weight"].T - y) + 3 * 0.01 * start["weight"].T
    hessian = RIDGE.inputs_NF.T @ RIDGE.inputs_NF + (0.1 + 30 * (0.01 + 0.02)) * torch.eye(4, dtype=torch.float64)
    by_hand = {"weight": start["weight"] + torch.linalg.solve(hessian, pull).T}
    sets: Settings = {"forget_ids": SOME, "retain_ids": REST, "seed": 0, "factors": DenseFactors(everyone)}
    cost = Cost()
    assert apart(ekfac_influence(RIDGE, start, **sets, cost=cost, damping=0.02), by_hand) < 1e-12
    assert cost.forward_backwards == len(SOME)


def test_the_engines_factors_give_the_same_step_and_their_fit_is_charged() -> None:
    pytest.importorskip("workers.unlearning.ekfac")
    cost = Cost()
    moved = ekfac_step(RIDGE, RIDGE.solved(range(30)), forget_ids=SOME, retain_ids=REST, seed=0, cost=cost)
    assert apart(moved, RIDGE.solved(REST)) < 1e-9
    assert cost.forward_backwards > len(SOME)


def run(name: str, *, cost: Cost, **settings: Any) -> dict[str, Tensor]:
    return PEERS[name](PEOPLE, deployed(PEOPLE), **SETS, cost=cost, **(needs(name) | settings))


def needs(name: str) -> Settings:
    if name == "distil":
        return {"targets": references(PEOPLE, FORGET)}
    return {"validation_ids": [22, 23]} if name == "scrub_rewind" else {}


def mean_loss(weights: dict[str, Tensor], ids: Sequence[int]) -> Tensor:
    inputs, targets = PEOPLE.fetch(ids)
    return functional.cross_entropy(torch.func.functional_call(PEOPLE.build(), weights, (inputs,)), targets)


def divergence_by_hand(one: dict[str, Tensor], other: dict[str, Tensor], ids: Sequence[int]) -> float:
    p, q = (outputs(PEOPLE, weights, ids).softmax(-1) for weights in (one, other))
    return float((p * (p / q).log()).sum(1).mean())
